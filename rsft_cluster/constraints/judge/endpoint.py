"""The endpoint of a judge: where it is, which model, with which settings; and the key, which only the environment has.

The key is read anew for every request and is kept nowhere. The text of a server is shown only after `redacted`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue

from rsft_cluster.config.parts import Part
from rsft_cluster.errors import ConfigError

DEFAULT_KEY_ENV, DEFAULT_KEY_HOST = "OPENAI_API_KEY", "api.openai.com"
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".svc", ".cluster.local")
_OWN_FIELDS = ("model", "messages", "stream", "n", "temperature", "max_tokens")
_SHORTEST_SECRET = 8
"""Characters; a shorter key is a placeholder such as EMPTY, and a word of texts."""


class Endpoint(Part):
    """A model behind `{base_url}/chat/completions`."""

    base_url: str
    """Such as https://api.openai.com/v1; http only where the host is local or private."""
    model: str = Field(min_length=1)
    api_key_env: str | None = None
    """Environment variable, of the scoring actors, that holds the key; it has to be set. By default OPENAI_API_KEY for
    that company's own host, where it is set, and no key for any other."""
    allow_http: bool = False
    """Talk in plain text to a public host, the key included."""
    temperature: float | None = Field(default=0.0, ge=0)
    """None leaves it out, for models that refuse it."""
    max_tokens: int = Field(default=1024, ge=1)
    """Length of an answer, thinking included."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The endpoint's name for this limit."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """More fields of the request, such as reasoning_effort or seed."""

    @property
    def url(self) -> str:
        """Return the URL that requests go to."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    @property
    def key_env(self) -> str:
        """Return the name of the variable with the key; empty where none is sent."""
        return self.api_key_env or (DEFAULT_KEY_ENV if urlsplit(self.base_url).hostname == DEFAULT_KEY_HOST else "")

    def check(self) -> None:
        """Raise ConfigError where it cannot be used; the message shows nothing that may be a secret."""
        try:
            parts, host = urlsplit(self.base_url), urlsplit(self.base_url).hostname or ""
            has_port = parts.port is None or parts.port > 0
        except ValueError:
            raise ConfigError("judge: endpoint.base_url is not a URL") from None
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigError(
                "judge: endpoint.base_url holds a user, a password, a query or a fragment; "
                "the key belongs in the environment variable that api_key_env names"
            )
        if parts.scheme not in ("http", "https") or not host or not has_port or re.search(r"\s", self.base_url):
            raise ConfigError("judge: endpoint.base_url is not a URL such as https://api.openai.com/v1")
        if parts.scheme == "http" and not self.allow_http and not _is_local(host):
            raise ConfigError(
                f"judge: endpoint.base_url is http, and {host} is a public host: prompts and the key would travel "
                "in plain text. Use https, or say allow_http: true"
            )
        if self.key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            raise ConfigError("judge: endpoint.api_key_env is the name of an environment variable, not the key itself")
        if own := [name for name in self.extra if name in (*_OWN_FIELDS, self.max_tokens_field)]:
            raise ConfigError(f"judge: endpoint.extra may not hold {', '.join(own)}")

    def body(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Return the request that asks for an answer to messages."""
        body: dict[str, Any] = {"model": self.model, "messages": list(messages), self.max_tokens_field: self.max_tokens}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        return body | self.extra

    def authorization(self) -> dict[str, str]:
        """Return the header with the key, no header without one; raises ConfigError for a key that cannot be sent."""
        key = self._key()
        if not key and self.api_key_env:
            raise ConfigError(f"judge: endpoint.api_key_env is {self.api_key_env}, which is not set where this runs")
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"judge: {self.key_env} holds characters that no header may hold")
        return {"Authorization": f"Bearer {key}"} if key else {}

    def redacted(self, text: str) -> str:
        """Return the text of a server without the key."""
        key = self._key()
        return text.replace(key, "[key]") if len(key) >= _SHORTEST_SECRET else text

    def _key(self) -> str:
        return os.environ.get(self.key_env, "").strip() if self.key_env else ""


def _is_local(host: str) -> bool:
    """Return whether a host is this machine or in a private network, judged only by its name."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(_LOCAL_SUFFIXES)
