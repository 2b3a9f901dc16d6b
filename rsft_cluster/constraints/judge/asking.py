"""Questions to an endpoint, many at once, each only once: equal questions share an answer."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar
from weakref import finalize

from rsft_cluster.constraints.judge.answers import Answer, UnreadableError
from rsft_cluster.constraints.judge.cache import Cache
from rsft_cluster.constraints.judge.client import Client, Completion, Patience
from rsft_cluster.constraints.judge.endpoint import Endpoint
from rsft_cluster.constraints.judge.framing import Question
from rsft_cluster.constraints.judge.limits import Limits

T = TypeVar("T")


class Asker:
    """Asks, within limits, and remembers; cheap until the first question. All of it runs in one thread of its own."""

    def __init__(self, endpoint: Endpoint, limits: Limits, cache: Cache) -> None:
        self._endpoint, self._limits, self._cache = endpoint, limits, cache
        self._client = Client(endpoint, limits)
        self._slots = asyncio.Semaphore(limits.max_concurrency)
        self._pending: dict[str, asyncio.Task[str]] = {}
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that awaits answers to its end; for callers of any thread."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._started())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def answer(self, question: Question) -> Answer:
        """Return the answer; raises EndpointError, UnreadableError or ConfigError, with the reason why there is none.

        Equal questions share one task.
        """
        digest = self._digest(question)
        if digest not in self._pending:
            task = asyncio.create_task(self._cached(question, digest))
            self._pending[digest] = task
            task.add_done_callback(lambda _: self._pending.pop(digest))
        return question.read(await asyncio.shield(self._pending[digest]))

    async def _cached(self, question: Question, digest: str) -> str:
        cached = await self._cache.get(digest)
        if cached is not None:
            return cached
        async with self._slots:
            text = await self._ask(question)
        return await self._cache.put(digest, text)

    async def _ask(self, question: Question) -> str:
        """Return the text of an answer that can be read."""
        patience = Patience(self._limits.max_wait_s)
        messages, num_tries = list(question.messages), self._limits.max_unreadable + 1
        problem: UnreadableError | None = None
        for _ in range(num_tries):
            completion = await self._client.complete(messages, patience)
            try:
                _check_whole(completion)
                question.read(completion.text)
            except UnreadableError as error:
                problem = error
                messages = question.again(completion.text, str(error))
            else:
                return completion.text
        raise UnreadableError(f"no readable answer in {num_tries} tries, the last one: {problem}")

    def _digest(self, question: Question) -> str:
        request = [self._endpoint.url, self._endpoint.body(question.messages)]
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="judge", daemon=True).start()
                finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
            return self._loop


def _check_whole(completion: Completion) -> None:
    """Raise UnreadableError for an answer that is refused or cut off: it may not hold the judge's verdict."""
    if completion.refusal or completion.finish_reason == "content_filter":
        raise UnreadableError(f"the judge refused: {completion.refusal[:200] or 'content filter'}")
    if completion.finish_reason == "length":
        raise UnreadableError("it was cut off at max_tokens, be brief")
