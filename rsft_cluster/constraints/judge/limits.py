"""Limits of one scoring actor's requests to an endpoint, and the sliding window that enforces them."""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from pydantic import Field

from rsft_cluster.config.parts import Part

PERIOD_S = 60.0
"""The minute of `requests_per_minute` and `tokens_per_minute`."""


class Limits(Part):
    """Limits of one scoring actor.

    Actors know nothing of each other: give the limits of the account, divided by `scoring.workers`.
    """

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests in any 60 seconds, repeated ones among them; as many as there are by default."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens of prompts and answers in any 60 seconds: estimated before a request as characters / 4 + max_tokens, and
    corrected by what the endpoint says it used."""
    max_concurrency: int = Field(default=16, ge=1)
    """Questions under way at once."""
    timeout_s: float = Field(default=120, gt=0)
    """Seconds that one request may take, to the last byte of its answer."""
    max_wait_s: float = Field(default=600, gt=0)
    """Seconds for all requests of one question and the pauses between them; waiting for a turn under the limits above
    is not counted."""
    max_retries: int = Field(default=8, ge=0)
    """Times that a request is repeated which failed in a way that may pass."""
    max_unreadable: int = Field(default=2, ge=0)
    """Times that an answer which cannot be read is asked for again, told what was wrong with it."""


@dataclass(eq=False)
class Charge:
    """One request's use of the limits, from when it was sent."""

    time: float
    tokens: int


class Window:
    """A log of the requests of the last PERIOD_S seconds. Turns are given in the order of the requests for them."""

    def __init__(self, limits: Limits) -> None:
        self._requests = limits.requests_per_minute
        self._tokens = limits.tokens_per_minute
        self._charges = deque[Charge]()
        self._paused_until = 0.0
        self._queue = asyncio.Lock()
        self._changed = asyncio.Event()

    async def turn(self, tokens: int) -> Charge:
        """Wait until a request with this many tokens is within the limits, and charge it.

        Raises ValueError for one that no wait makes fit.
        """
        if self._tokens is not None and tokens > self._tokens:
            raise ValueError(f"a request of about {tokens} tokens is over tokens_per_minute = {self._tokens}")
        async with self._queue:
            while (wait_s := self.wait_s(tokens, monotonic())) > 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
            return self.charge(tokens, monotonic())

    def wait_s(self, tokens: int, now: float) -> float:
        """Return the seconds until a request fits; 0 where it fits now."""
        while self._charges and self._charges[0].time + PERIOD_S <= now:
            self._charges.popleft()
        until = self._paused_until
        if self._requests is not None and len(self._charges) >= self._requests:
            until = max(until, self._charges[-self._requests].time + PERIOD_S)
        if self._tokens is not None:
            excess = sum(charge.tokens for charge in self._charges) + tokens - self._tokens
            for charge in self._charges:
                if excess <= 0:
                    break
                excess -= charge.tokens
                until = max(until, charge.time + PERIOD_S)
        return max(0.0, until - now)

    def charge(self, tokens: int, now: float) -> Charge:
        """Charge a request that is sent now."""
        charge = Charge(now, tokens)
        self._charges.append(charge)
        return charge

    def settle(self, charge: Charge, tokens: int) -> None:
        """Correct a charge by the tokens that were used."""
        charge.tokens = tokens
        self._changed.set()

    def pause(self, seconds: float) -> None:
        """Send nothing for a while, as the endpoint asked."""
        self._paused_until = max(self._paused_until, monotonic() + seconds)
