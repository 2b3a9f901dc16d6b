"""The endpoint of a judge misbehaves: retries, deadlines, limits, and a key that is shown nowhere."""

import logging
import pickle
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from endpoints import Asked, Reply, by_length, chat, judge, outcomes, says, score_of, serving
from factories import candidate
from hypothesis import given
from hypothesis import strategies as st

from rsft_cluster.constraints.building import is_isolated
from rsft_cluster.constraints.judge import client, limits
from rsft_cluster.constraints.judge.client import backoff_s, retry_after_s
from rsft_cluster.constraints.judge.constraint import LanguageModelJudge
from rsft_cluster.constraints.judge.endpoint import Endpoint
from rsft_cluster.constraints.judge.limits import Limits, Window
from rsft_cluster.constraints.outcomes import outcomes_of

KEY = "sk-test-0123456789abcdef"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(client, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


TRANSIENT = {
    "408": Reply("slow", 408), "409": Reply("conflict", 409), "425": Reply("early", 425), "429": Reply("busy", 429),
    "500": Reply("oops", 500), "503": Reply("later", 503, {"Retry-After": "0.05"}), "529": Reply("overloaded", 529),
    "half": Reply(chat("x" * 1000).body, cut=True), "malformed": Reply('{"choices": ['), "empty": Reply(""),
    "schema": Reply('{"error": "no"}'), "list": Reply("[1]"),
    "parts": Reply('{"choices": [{"message": {"content": 3}}]}'),
    "nested": Reply("[" * 100_000), "slow": Reply(chat("x").body, delay_s=4),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRANSIENT)
def test_what_may_pass_is_tried_again(kind) -> None:
    def reply(asked: Asked, number: int) -> Reply:
        return TRANSIENT[kind] if number < 2 else says(asked, 10)

    found, num_requests = outcomes(reply, limits={"timeout_s": 1.5 if kind == "slow" else 60})
    assert found[0].verdict is not None, found[0].reason
    assert (found[0].verdict.score, num_requests) == (1.0, 3)


@pytest.mark.parametrize("kind", TRANSIENT)
def test_what_does_not_pass_is_an_error_and_no_score(kind) -> None:
    found, num_requests = outcomes(
        lambda *_: TRANSIENT[kind], limits={"timeout_s": 0.3 if kind == "slow" else 60, "max_retries": 1}
    )
    assert found[0].verdict is None
    assert found[0].reason.startswith("EndpointError: ")
    assert found[0].reason.endswith("(after 2 requests, as max_retries says)")
    assert num_requests == 2


def test_no_server_is_an_error() -> None:
    with serving(by_length) as endpoint:
        pass
    (found,) = outcomes_of(judge(endpoint.url, limits={"max_retries": 2}), [candidate()])
    assert found.reason.startswith("EndpointError: no answer: ConnectError")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "EndpointError: HTTP 400: said"),
        (401, "EndpointError: HTTP 401: said (no key was sent: endpoint.api_key_env names none)"),
        (403, "EndpointError: HTTP 403: said (no key was sent: endpoint.api_key_env names none)"),
        (404, "EndpointError: HTTP 404: said"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(status, reason) -> None:
    found, num_requests = outcomes(lambda *_: Reply("said", status))
    assert (found[0].verdict, found[0].reason, num_requests) == (None, reason, 1)


def test_a_retry_after_is_waited_for_by_all() -> None:
    """The second question is answered meanwhile; the third one, which has its place then, is not sent before."""

    def reply(asked: Asked, number: int) -> Reply:
        if number == 0:
            return Reply("busy", 429, {"Retry-After": "1"})
        return Reply(by_length(asked, number).body, delay_s=0.2)

    with serving(reply) as endpoint:
        one = judge(endpoint.url, limits={"max_concurrency": 2})
        assert not any(isinstance(v, Exception) for v in one.judge(score_of(["a", "b", "c"])))
    assert len(endpoint.asked) == 4
    assert all(asked.time - endpoint.asked[0].time >= 1 for asked in endpoint.asked[2:])


def test_a_question_gives_up_before_its_time_is_over() -> None:
    start = time.monotonic()
    params = {"max_wait_s": 5.0}
    found, num_requests = outcomes(lambda *_: Reply("busy", 429, {"Retry-After": "3600"}), limits=params)
    assert found[0].reason == "EndpointError: HTTP 429: busy (another try in 3.6e+03 s would be past max_wait_s = 5)"
    found, _ = outcomes(lambda *_: Reply("", delay_s=3), limits={"max_wait_s": 0.3})
    assert found[0].reason.startswith("EndpointError: no answer within 0.3 s")
    assert num_requests == 1
    assert time.monotonic() - start < 4


def test_an_endpoint_that_is_down_costs_its_retries_only_a_few_times() -> None:
    candidates = score_of([str(i) for i in range(40)])
    found, num_requests = outcomes(
        lambda *_: Reply("down", 500), *candidates, limits={"max_retries": 4, "max_concurrency": 4}
    )
    assert all(f.verdict is None for f in found)
    assert num_requests <= 12 * 5 + 28
    assert "not tried again, as the last" in found[-1].reason


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7), ("0.5", 0.5), ("-3", 0), ("nan", 0), ("soon", 0), ("", 0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0),
    ],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_or_as_a_date(header, seconds) -> None:
    assert retry_after_s(header, NOW) == seconds


def test_backoff_doubles_with_repeatable_jitter(monkeypatch) -> None:
    monkeypatch.setattr(client, "FIRST_BACKOFF_S", 1.0)
    pauses = [backoff_s(n, b"request") for n in range(1, 12)]
    assert pauses == [backoff_s(n, b"request") for n in range(1, 12)]
    assert all(2 ** (n - 1) / 2 <= pause <= 2 ** (n - 1) for n, pause in enumerate(pauses[:6], 1))
    assert max(pauses) <= client.LONGEST_BACKOFF_S
    assert len({backoff_s(1, str(i).encode()) for i in range(100)}) == 100


@given(
    requests=st.none() | st.integers(1, 5),
    tokens=st.none() | st.integers(10, 50),
    sizes=st.lists(st.tuples(st.integers(0, 10), st.floats(0, 20), st.integers(0, 15)), max_size=40),
)
def test_no_window_holds_more_than_the_limits(requests, tokens, sizes) -> None:
    """Time is counted here, not waited for; every request then used other than what was estimated."""
    window = Window(Limits(requests_per_minute=requests, tokens_per_minute=tokens))
    now, sent = 0.0, []
    for size, pause, used in sizes:
        now += pause
        while wait_s := window.wait_s(size, now):
            now += wait_s + 1e-6
        charge = window.charge(size, now)
        sent.append((now, size, used))
        before = [s for s in sent if s[0] > now - limits.PERIOD_S]
        assert requests is None or len(before) <= requests
        assert tokens is None or size + sum(u for _, _, u in before[:-1]) <= max(tokens, size)
        window.settle(charge, used)


def test_requests_per_minute_hold_retries_included(monkeypatch) -> None:
    monkeypatch.setattr(limits, "PERIOD_S", 2.0)

    def reply(asked: Asked, number: int) -> Reply:
        return Reply("oops", 500) if number in (1, 2, 7) else by_length(asked, number)

    with serving(reply) as endpoint:
        start = time.monotonic()
        found = judge(endpoint.url, limits={"requests_per_minute": 6}).judge(score_of([str(i) for i in range(10)]))
    assert not any(isinstance(v, Exception) for v in found)
    times = [asked.time for asked in endpoint.asked]
    assert len(times) == 13
    assert times[-1] - start >= 4.0
    assert all(later - early >= 1.0 for early, later in zip(times, times[6:], strict=False))


def test_tokens_per_minute_are_estimated_and_then_corrected(monkeypatch) -> None:
    """Each is estimated as over 2000 tokens, so that one fits at a time; the first one used 10, the others all."""
    monkeypatch.setattr(limits, "PERIOD_S", 3.0)

    def reply(asked: Asked, number: int) -> Reply:
        return says(asked, 10, tokens=10 if number == 0 else 2500)

    with serving(reply) as endpoint:
        one = judge(endpoint.url, endpoint={"max_tokens": 2000}, limits={"tokens_per_minute": 3000})
        found = one.judge(score_of(["a", "b", "c"]))
        (too_long,) = one.judge([candidate("x" * 10_000)])
    assert not any(isinstance(v, Exception) for v in found)
    first, second, third = (asked.time for asked in endpoint.asked)
    assert second - first < 2.5
    assert third - second > 2.0
    assert str(too_long).endswith("tokens is over tokens_per_minute = 3000")


def test_the_key_is_sent_and_shown_nowhere(monkeypatch, caplog, tmp_path: Path) -> None:
    """Not even where the server repeats it."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY + "\n")

    def reply(asked: Asked, number: int) -> Reply:
        said = asked.headers.get("Authorization", "")
        assert said == f"Bearer {KEY}"
        if asked.block("answer") == "echo":
            return says(asked, 5, reason=f"your key is {said}")
        return Reply(f"bad key: {said}", {"401": 401, "500": 500, "200": 200}[asked.block("answer")])

    with serving(reply) as endpoint:
        one = judge(
            endpoint.url,
            endpoint={"api_key_env": "JUDGE_KEY"}, limits={"max_retries": 1}, cache=str(tmp_path),
        )  # fmt: skip
        found = outcomes_of(one, score_of(["401", "500", "200", "echo"]))
        told = [str(f) for f in found] + [caplog.text, repr(vars(one)), str(pickle.dumps(one))]
        told += [file.read_text() for file in tmp_path.rglob("*.json")]
    assert "your key is Bearer [key]" in found[3].reason
    assert "JUDGE_KEY" in found[0].reason
    assert not [text for text in told if KEY in text or KEY[3:] in text]
    assert isinstance(pickle.loads(pickle.dumps(one)), LanguageModelJudge)


@pytest.mark.parametrize("value", [None, "", f"{KEY}\nX-Other: 1", f"{KEY}\u00e9"])
def test_a_key_that_is_absent_or_cannot_be_sent_is_an_error_that_does_not_show_it(monkeypatch, value) -> None:
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    found, num_requests = outcomes(by_length, endpoint={"api_key_env": "JUDGE_KEY"})
    assert found[0].reason.startswith("ConfigError: judge: ")
    assert "JUDGE_KEY" in found[0].reason
    assert KEY not in str(found[0])
    assert num_requests == 0


def test_the_usual_key_goes_to_its_own_host_only(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda asked, _: says(asked, 5)) as endpoint:
        judge(endpoint.url).judge([candidate()])
        judge(endpoint.url, endpoint={"api_key_env": "OPENAI_API_KEY"}).judge([candidate()])
    assert [asked.headers.get("Authorization") for asked in endpoint.asked] == [None, f"Bearer {KEY}"]
    usual = Endpoint(base_url="https://api.openai.com/v1", model="m")
    assert usual.authorization() == {"Authorization": f"Bearer {KEY}"}
    monkeypatch.delenv("OPENAI_API_KEY")
    assert usual.authorization() == {}


def test_redirects_are_not_followed(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(by_length) as other:
        location = {"Location": f"{other.url}/chat/completions?token=secret".replace("127.0.0.1", "localhost")}
        found, num_requests = outcomes(lambda *_: Reply("", 307, location))
    assert found[0].reason == "EndpointError: HTTP 307: redirected to localhost, which base_url should name"
    assert (num_requests, other.asked) == (1, [])


def test_a_request_is_what_the_endpoint_expects() -> None:
    params = {"temperature": None, "max_tokens": 50, "max_tokens_field": "max_completion_tokens", "extra": {"seed": 7}}
    with serving(lambda asked, _: says(asked, 5)) as endpoint:
        one = judge(endpoint.url + "/", endpoint=params)
        one.judge([candidate("lone \ud800 surrogate")])
    (asked,) = endpoint.asked
    assert (asked.path, asked.block("answer")) == ("/v1/chat/completions", "lone ? surrogate")
    assert asked.block("prompt") == "[user]\nWhat is 2 + 3?"
    assert {k: v for k, v in asked.body.items() if k != "messages"} == {
        "model": "m", "max_completion_tokens": 50, "seed": 7,
    }  # fmt: skip
    assert not is_isolated(one)


@pytest.mark.parametrize(
    "url", ["https://a.example/v1", "http://localhost:8000/v1", "http://10.1.2.3/v1", "http://[::1]:80/v1", "http://vllm/v1",
            "http://vllm.models.svc.cluster.local:8000"],
)  # fmt: skip
def test_https_is_asked_for_but_at_home(url) -> None:
    judge(url)


def test_http_to_a_public_host_can_be_allowed() -> None:
    judge("http://a.example/v1", endpoint={"allow_http": True})
