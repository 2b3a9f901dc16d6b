"""How long requests to a remote store are retried, and what its refusals mean.

What may get better is retried, with jitter, until a total deadline: 5xx, 429, time-outs, connections that break.
What cannot get better fails at once. Types of errors decide where the client has one; it has one type for all else,
whose text holds the HTTP status. Texts that say nothing known are taken for a store that is away for a moment.
"""

import logging
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)

from rsft_cluster.config.uris import without_userinfo
from rsft_cluster.errors import ConfigError, StoreError

T = TypeVar("T")
LOG = logging.getLogger(__name__)

TIMEOUT_VARIABLE = "RSFT_STORE_TIMEOUT_S"
"""The environment decides how stores are reached: endpoint, region, credentials, and how long requests are retried."""
TIMEOUT_S = 900.0
REQUEST_S = 60
"""The most seconds that a request of at most CHUNK_BYTES may take."""
CONNECT_S = 10
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 20.0
TELLING_WAIT_S = 5.0
"""A wait that may take this long is worth a line in the log."""

Kind = Literal["absent", "denied", "no credentials", "unsupported", "full", "refused", "away"]

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_METADATA = re.compile(r"/latest/(api/token|meta-data)|//169\.254\.1|//metadata\.google\.internal|/metadata/identity/")
_PASSING = frozenset({"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "OperationAborted"})
"""Codes that come with a status of 4xx and pass all the same."""
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "EntityQuotaExceeded"})
_SAYS: dict[Kind, str] = {
    "denied": "access is refused ({answer}); expected credentials that may list, read, write and delete there",
    "no credentials": (
        "no credentials were found, and no metadata service of a cloud offers any; expected them in the environment "
        "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3), in a profile, or as a role"
    ),
    "full": "the store is full ({answer}); make room, or raise the quota",
    "unsupported": "the store cannot do this ({answer})",
}
_SIGNS = {
    "ConnectionRefused": "connection refused",
    "dns error": "there is no such host",
    "TimedOut": "timed out",
    "IncompleteMessage": "the connection broke",
    "ConnectionReset": "the connection broke",
}
"""Words for messages, by what the client's details hold."""
_KINDS: dict[int, Kind] = {401: "denied", 403: "denied", 404: "absent", 501: "unsupported", 507: "full"}


@dataclass(frozen=True)
class Trouble:
    """What went wrong with one request."""

    kind: Kind
    says: str
    status: int | None = None

    @property
    def may_pass(self) -> bool:
        """Whether asking again may help. Somebody may make room in a full store while a run waits."""
        return self.kind in ("away", "full")


def timeout_s() -> float:
    """Return for how long an operation is tried again; raises ConfigError for a setting that is no such number."""
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else TIMEOUT_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{TIMEOUT_VARIABLE}: {text!r} is no number of seconds; expected one like 900")
    return seconds


def patiently(attempt: Callable[[], T], uri: str, timeout_s: float) -> T:
    """Return what an attempt returns, tried until it does not fail any more, or cannot get better, or time is up.

    Every attempt must be safe to repeat. Raises StoreError naming the URI.
    """
    began, longest = time.monotonic(), FIRST_WAIT_S
    while True:
        try:
            return attempt()
        except StoreError:
            raise
        except (BaseError, OSError) as error:
            trouble = diagnose(error)
            wait = random.uniform(0, longest)
            over = time.monotonic() + wait - began > timeout_s
            if over or not trouble.may_pass:
                tried = f"; tried again for {time.monotonic() - began:.0f} s ({TIMEOUT_VARIABLE})"
                raise StoreError(f"{uri}: {trouble.says}{tried if trouble.may_pass else ''}") from error
            if longest >= TELLING_WAIT_S:
                left = timeout_s - (time.monotonic() - began)
                LOG.warning("%s: %s; trying again for up to %.0f s", uri, trouble.says, left)
        time.sleep(wait)
        longest = min(2 * longest, LONGEST_WAIT_S)


def diagnose(error: Exception) -> Trouble:
    """Return what an error of a remote store means."""
    whole = str(error)
    first = without_userinfo(whole.split("\n\nDebug source", 1)[0])
    status_match = _STATUS.search(first)
    status = int(status_match[1]) if status_match else None
    code_match = _CODE.search(whole)
    code = code_match[1] if code_match else None
    kind = _kind(error, first, status, code)
    return Trouble(kind, _says(kind, status, code, first, whole), status)


def _kind(error: Exception, text: str, status: int | None, code: str | None) -> Kind:  # noqa: PLR0911 a table
    if _METADATA.search(text):
        return "no credentials"
    if code in _FULL:
        return "full"
    if code in _PASSING or isinstance(error, AlreadyExistsError) or status in (408, 409, 425, 429):
        return "away"
    if isinstance(error, FileNotFoundError):
        return "absent"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return "denied"
    if isinstance(error, NotSupportedError):
        return "unsupported"
    if isinstance(error, InvalidPathError | UnknownConfigurationKeyError):
        return "refused"
    if status is not None:
        return _KINDS.get(status, "refused" if status < 500 else "away")
    return "refused" if "redirect without LOCATION" in text else "away"


def _says(kind: Kind, status: int | None, code: str | None, text: str, whole: str) -> str:
    answer = " ".join(str(part) for part in (status, code) if part)
    if "redirect without LOCATION" in text:
        return "its bucket is in another region; set AWS_REGION to that one"
    if kind == "absent":
        return "there is no such bucket" if code == "NoSuchBucket" else "there is no such file"
    if kind in _SAYS:
        return _SAYS[kind].format(answer=answer or text.partition("\n")[0])
    if answer:
        return f"the store {'answered' if kind == 'away' else 'refused the request'} ({answer})"
    return _broken(text, whole)


def _broken(text: str, whole: str) -> str:
    """Return why a request had no answer, in words where the client's details have some."""
    for sign, words in _SIGNS.items():
        if sign in whole:
            return f"no answer from the store ({words})"
    lines = text.splitlines() or ["no answer"]
    return f"no answer from the store ({lines[0].rpartition(' - ')[2] or lines[0]})"
