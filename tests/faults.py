"""A proxy on loopback that does to an HTTP server's clients what networks and loaded servers do."""

import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["503", "500", "429", "slow", "cut", "lost", "failed after", "half"]
FAULTS: tuple[Fault, ...] = ("503", "500", "429", "slow", "cut", "lost", "failed after", "half")
"""In order: not done, and said so (three of them); done late; the connection cut before the server hears of it; done,
and the reply lost; done, and called a failure; a reply whose body breaks off."""
CODES = {"503": "SlowDown", "500": "InternalError", "429": "TooManyRequests"}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Refusal:
    """An answer of the proxy's own instead of the server's."""

    status: int
    code: str = ""


@dataclass(frozen=True)
class Changed:
    """Pass the request on without a header."""

    without: str


Verdict = Fault | Refusal | Changed | None
Rule = Callable[[Request], Verdict]


@dataclass
class Proxy:
    """The proxy: where it is, what came by, and the rule, which may be put in its place at any time."""

    endpoint: str = ""
    slow_s: float = 0.3
    seen: list[tuple[Request, Verdict]] = field(default_factory=list)
    rule: Rule = lambda _: None
    errors: list[BaseException] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def decide(self, request: Request) -> Verdict:
        with self.lock:
            verdict = self.rule(request)
            self.seen.append((request, verdict))
        return verdict

    def faults(self) -> list[Verdict]:
        return [verdict for _, verdict in self.seen if verdict is not None]


def each_once(*faults: Fault, when: Callable[[Request], bool] = lambda _: True) -> Rule:
    """Every request that is not a repetition meets the faults one after the other, and then none."""
    met: dict[tuple[str, str], int] = {}

    def rule(request: Request) -> Verdict:
        if not when(request):
            return None
        # Listings and ranges of one object are told apart by their query and their range.
        key = (request.method, request.path + request.headers.get("range", ""))
        met[key] = met.get(key, -1) + 1
        return faults[met[key]] if met[key] < len(faults) else None

    return rule


def at_rate(rate: float, seed: int, faults: tuple[Fault, ...] = FAULTS) -> Rule:
    """A share of all requests meets a fault; which, and which one, is the seed's to say."""
    generator = random.Random(seed)
    return lambda _: generator.choice(faults) if generator.random() < rate else None


@contextmanager
def faulty(upstream: str, rule: Rule = lambda _: None) -> Iterator[Proxy]:
    """Run a proxy in front of an HTTP server for the length of the block."""
    proxy = Proxy(rule=rule)
    address = urlsplit(upstream)
    assert address.hostname == "127.0.0.1"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            verdict = proxy.decide(Request(self.command, self.path, headers))
            match verdict:
                case "cut":
                    self.cut()
                case "503" | "500" | "429":
                    self.refuse(int(verdict), CODES[verdict])
                case Refusal(status, code):
                    self.refuse(status, code)
                case "slow":
                    time.sleep(proxy.slow_s)
                    self.reply(*forward(self, headers, body))
                case "lost":
                    forward(self, headers, body)
                    self.cut()
                case "failed after":
                    forward(self, headers, body)
                    self.refuse(500, "InternalError")
                case "half":
                    self.reply(*forward(self, headers, body), half=True)
                case Changed(without):
                    headers.pop(without, None)
                    self.reply(*forward(self, headers, body))
                case _:
                    self.reply(*forward(self, headers, body))

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def reply(self, status: int, headers: list[tuple[str, str]], body: bytes, *, half: bool = False) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if half else body)
            if half:
                self.cut()

        def refuse(self, status: int, code: str) -> None:
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            self.reply(status, [("content-type", "application/xml"), ("content-length", str(len(body)))], body)

        def cut(self) -> None:
            self.close_connection = True
            with suppress(OSError):
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

    def forward(handler: Handler, headers: dict[str, str], body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        try:
            # The host stays the one that the client signed for.
            passed = {k: v for k, v in headers.items() if k not in ("connection", "expect")}
            connection.request(handler.command, handler.path, body=body or None, headers=passed)
            answer = connection.getresponse()
            payload = answer.read()
        finally:
            connection.close()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")]
        if handler.command != "HEAD" and "content-length" not in {k.lower() for k, _ in kept}:
            kept.append(("Content-Length", str(len(payload))))
        return answer.status, kept, payload

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            import sys

            error = sys.exc_info()[1]
            # Clients give up, too.
            if error is not None and not isinstance(error, ConnectionError | TimeoutError):
                proxy.errors.append(error)

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield proxy
        assert not proxy.errors
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
