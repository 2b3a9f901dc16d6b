"""Requests to an endpoint: within its limits, repeated where that may help, each and all of them with a deadline."""

import asyncio
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from urllib.parse import urlsplit

import httpx2

from rsft_cluster.constraints.judge.endpoint import Endpoint
from rsft_cluster.constraints.judge.limits import Limits, Window

PASSING_STATUSES = (408, 409, 425, 429)
"""Beside 5xx: failures that may pass."""
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 60.0
MAX_ANSWER_BYTES = 4 * 2**20
MAX_GIVEN_UP = 8
"""Questions given up in a row after which the next ones do not wait for the endpoint, until it answers one."""
_EXCERPT = 300


class EndpointError(RuntimeError):
    """The endpoint gave no answer."""


class PassingError(EndpointError):
    """The endpoint gave no answer this time; `retry_after_s` is the pause that it asked for."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Completion:
    """The model's reply."""

    text: str
    finish_reason: str
    refusal: str
    num_tokens: int | None
    """Tokens of prompt and answer; None where the endpoint does not report them."""


@dataclass
class Patience:
    """The seconds that one question may still take, over all its requests."""

    left_s: float


class Client:
    """Asks one endpoint; connects at the first question. Lives in one event loop."""

    def __init__(self, endpoint: Endpoint, limits: Limits) -> None:
        self._endpoint, self._limits = endpoint, limits
        self._window = Window(limits)
        self._http: httpx2.AsyncClient | None = None
        self._num_given_up = 0

    async def complete(self, messages: Sequence[Mapping[str, str]], patience: Patience) -> Completion:
        """Return the model's answer; raises EndpointError, with the reason, when there is none."""
        payload = json.dumps(self._endpoint.body(messages)).encode()
        tokens = sum(len(m["content"]) for m in messages) // 4 + self._endpoint.max_tokens
        num_failures = 0
        while True:
            charge = await self._window.turn(tokens)
            start = monotonic()
            try:
                completion = await self._post(payload, min(self._limits.timeout_s, patience.left_s))
            except PassingError as error:
                patience.left_s -= monotonic() - start
                num_failures += 1
                delay_s = max(backoff_s(num_failures, payload), error.retry_after_s)
                if problem := self._reason_to_give_up(num_failures, delay_s, patience):
                    self._num_given_up += 1
                    raise EndpointError(f"{error} ({problem})") from error
                if error.retry_after_s:
                    self._window.pause(error.retry_after_s)
                patience.left_s -= delay_s
                await asyncio.sleep(delay_s)
            else:
                patience.left_s -= monotonic() - start
                self._num_given_up = 0
                self._window.settle(charge, tokens if completion.num_tokens is None else completion.num_tokens)
                return completion

    def _reason_to_give_up(self, num_failures: int, delay_s: float, patience: Patience) -> str:
        """Return why a failed request is not repeated; empty where it is."""
        if num_failures > self._limits.max_retries:
            return f"after {num_failures} requests, as max_retries says"
        if delay_s >= patience.left_s:
            return f"another try in {delay_s:.3g} s would be past max_wait_s = {self._limits.max_wait_s:g}"
        if self._num_given_up >= MAX_GIVEN_UP:
            return f"not tried again, as the last {self._num_given_up} questions were given up"
        return ""

    async def _post(self, payload: bytes, timeout_s: float) -> Completion:
        if self._http is None:
            pool = httpx2.Limits(max_connections=self._limits.max_concurrency)
            self._http = httpx2.AsyncClient(timeout=None, limits=pool, follow_redirects=False)
        headers = {"Content-Type": "application/json", **self._endpoint.authorization()}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream("POST", self._endpoint.url, content=payload, headers=headers) as response,
            ):
                text = self._endpoint.redacted(await _text(response))
        except TimeoutError:
            raise PassingError(f"no answer within {timeout_s:.3g} s") from None
        except httpx2.RequestError as error:
            raise PassingError(f"no answer: {type(error).__name__}: {error}") from error
        if response.status_code != httpx2.codes.OK:
            raise self._failure(response, text)
        return _completion(text)

    def _failure(self, response: httpx2.Response, text: str) -> EndpointError:
        status, message = response.status_code, f"HTTP {response.status_code}: {text[:_EXCERPT]}"
        if status in PASSING_STATUSES or status >= 500:
            return PassingError(message, retry_after_s(response.headers.get("Retry-After", ""), datetime.now(UTC)))
        if 300 <= status < 400:
            host = urlsplit(response.headers.get("Location", "")).hostname
            return EndpointError(f"HTTP {status}: redirected to {host or 'another path'}, which base_url should name")
        if status in (401, 403):
            variable = self._endpoint.key_env
            source = f"the key is what the environment variable {variable} holds"
            message += f" ({source if variable else 'no key was sent: endpoint.api_key_env names none'})"
        return EndpointError(message)


def backoff_s(num_failures: int, payload: bytes) -> float:
    """Return the seconds to wait after a number of failures: twice as long each time, the upper half of it at random.

    The randomness comes from the request's content: repeatable, and different for requests that failed together.
    """
    ceiling = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(num_failures - 1, 30))
    digest = hashlib.sha256(num_failures.to_bytes(4) + payload).digest()
    return ceiling * (0.5 + int.from_bytes(digest[:8]) / 2**65)


def retry_after_s(header: str, now: datetime) -> float:
    """Return the seconds of a Retry-After header, given as seconds or as a date; 0 where it is neither."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
    return max(0.0, seconds) if not math.isnan(seconds) else 0.0


async def _text(response: httpx2.Response) -> str:
    held = bytearray()
    async for chunk in response.aiter_bytes():
        held += chunk
        if len(held) > MAX_ANSWER_BYTES:
            raise EndpointError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    return held.decode("utf-8", "replace")


def _completion(text: str) -> Completion:
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        message, usage = choice["message"], body.get("usage") or {}
        content, used = message["content"], usage.get("total_tokens")
        finish_reason, refusal = choice.get("finish_reason") or "", message.get("refusal") or ""
        if content is not None and not isinstance(content, str):
            raise TypeError("content is no text")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise PassingError(f"no chat completion ({type(error).__name__}: {error}): {text[:_EXCERPT]}") from error
    num_tokens = used if isinstance(used, int) and used >= 0 else None
    return Completion(content or "", str(finish_reason), str(refusal), num_tokens)
