"""A local server that speaks OpenAI's chat completions, and misbehaves on cue."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from factories import candidate

from rsft_cluster.config import Constraint
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.building import build
from rsft_cluster.constraints.judge.constraint import LanguageModelJudge
from rsft_cluster.constraints.outcomes import Outcome, outcomes_of

USE = "rsft_cluster.constraints.judge.constraint:LanguageModelJudge"
RUBRIC = {"instructions": "How polite is the answer?", "scale": [1, 10], "at_least": 7}


@dataclass(frozen=True)
class Reply:
    body: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: bool = False
    """Close the connection in the middle of the body."""


@dataclass(frozen=True)
class Asked:
    time: float
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def shown(self) -> str:
        return self.body["messages"][1]["content"]

    @property
    def nonce(self) -> str:
        return re.findall(r"<prompt (\w+)>", self.shown)[0]

    def block(self, name: str) -> str:
        return re.findall(rf"<{name} {self.nonce}>\n(.*?)\n</{name} {self.nonce}>", self.shown, re.DOTALL)[0]


def chat(content: Any, *, finish_reason: str = "stop", tokens: int | None = None, refusal: str | None = None) -> Reply:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    body: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}
    return Reply(json.dumps(body if tokens is None else body | {"usage": {"total_tokens": tokens}}))


def says(asked: Asked, value: object, *, key: str = "score", reason: str = "as it is", **more: Any) -> Reply:
    return chat(json.dumps({"id": asked.nonce, "reason": reason, key: value}), **more)


@dataclass
class Endpoint:
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    busiest: int = 0
    """Most requests that were under way at once."""


@contextmanager
def serving(reply: Callable[[Asked, int], Reply]) -> Iterator[Endpoint]:
    """Serve what `reply(request, its number from 0)` says."""
    endpoint, lock, under_way = Endpoint(), threading.Lock(), set[int]()

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = Asked(time.monotonic(), self.path, dict(self.headers), body)
            with lock:
                number = len(endpoint.asked)
                endpoint.asked.append(asked)
                under_way.add(number)
                endpoint.busiest = max(endpoint.busiest, len(under_way))
            said = reply(asked, number)
            time.sleep(said.delay_s)
            with lock:
                under_way.discard(number)
            self._send(said)

        def _send(self, said: Reply) -> None:
            payload = said.body.encode()
            self.close_connection = said.cut
            try:
                self.send_response(said.status)
                for name, value in (said.headers | {"Content-Length": str(len(payload))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(payload[: len(payload) // 2] if said.cut else payload)
            except OSError:  # the client went away
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


def judge(url: str, **params: Any) -> LanguageModelJudge:
    endpoint = {"base_url": url, "model": "m", **params.pop("endpoint", {})}
    mode = {} if "pairwise" in params or "rubric" in params else {"rubric": RUBRIC}
    built = build(Constraint(use=USE, params={"endpoint": endpoint, **mode, **params}), name="judge")
    assert isinstance(built, LanguageModelJudge)
    return built


def outcomes(reply: Callable[[Asked, int], Reply], *candidates: Candidate, **params: Any) -> tuple[list[Outcome], int]:
    """Return what is said of candidates, and the number of requests that it took."""
    with serving(reply) as endpoint:
        found = outcomes_of(judge(endpoint.url, **params), candidates or [candidate()])
        return found, len(endpoint.asked)


def score_of(completions: list[str]) -> list[Candidate]:
    return [candidate(c) for c in completions]


def by_length(asked: Asked, number: int) -> Reply:
    """Score as many as the completion has characters, at most 10."""
    return says(asked, min(10, len(asked.block("answer"))), reason=f"{len(asked.block('answer'))} long")
