"""Clients of object stores: where they send requests, with whose credentials, for how long they wait.

All of it comes from the environment, as the vendors name it. What an environment does not say of S3 is looked up in
the profile files that the vendor's own tools write; the client reads none itself.
"""

import configparser
import os
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from rsft_cluster.errors import ConfigError
from rsft_cluster.store.retrying import CONNECT_S, REQUEST_S

if TYPE_CHECKING:
    from obstore.store import S3Credential

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
OTHER_SOURCES = (
    "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE",
)  # fmt: skip
"""Where the client finds credentials itself."""
VARIABLES = ("AWS_", "AZURE_", "GOOGLE_", "SERVICE_ACCOUNT", "HOME", "HTTP", "http", "NO_PROXY", "no_proxy")
"""What clients read of an environment, by its beginning."""
REREAD_S = 300.0
"""Seconds between two readings of the profile files: keys that last for hours are replaced there."""


def client(bucket: str, num_retries: int) -> ObjectStore:
    """Return a client of a bucket that retries a request `num_retries` times by itself.

    One client is made per environment: making it takes tens of milliseconds, and it keeps its connections. A process
    forked from one that used a client cannot use it: the threads behind it were not forked.
    """
    settings = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(VARIABLES)))
    try:
        return _client(bucket, num_retries, REQUEST_S, settings)
    except BaseError as error:
        problem = str(error).partition("\n")[0]
        raise ConfigError(f"{bucket}: the environment does not say how to reach it: {problem}") from error


@lru_cache(maxsize=16)
def _client(bucket: str, num_retries: int, request_s: int, _settings: tuple[tuple[str, str], ...]) -> ObjectStore:
    options: Any = {
        "client_options": {
            "allow_http": endpoint().startswith("http://"),
            "timeout": f"{request_s}s",
            "connect_timeout": f"{CONNECT_S}s",
        },
        "retry_config": {"max_retries": num_retries, "retry_timeout": timedelta(seconds=request_s)},
    }
    if bucket.startswith("s3://") and not any(os.environ.get(name) for name in OTHER_SOURCES):
        options |= _profile_options()
    return from_url(bucket, **options)


def endpoint() -> str:
    """Return where S3 requests go, empty for the vendor's own servers."""
    return next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")


def _profile_options() -> dict[str, Any]:
    """Return what profile files say of credentials and region; nothing where they hold no keys."""
    if _profile_keys() is None:
        return {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or _section("config").get("region")
    return {"credential_provider": _profile_keys, "config": {"region": region} if region else None}


def _profile_keys() -> "S3Credential | None":
    keys = _section("credentials")
    if "aws_access_key_id" not in keys or "aws_secret_access_key" not in keys:
        return None
    return {
        "access_key_id": keys["aws_access_key_id"],
        "secret_access_key": keys["aws_secret_access_key"],
        "token": keys.get("aws_session_token"),
        "expires_at": datetime.now(UTC) + timedelta(seconds=REREAD_S),
    }


def _section(name: str) -> dict[str, str]:
    variable = "AWS_SHARED_CREDENTIALS_FILE" if name == "credentials" else "AWS_CONFIG_FILE"
    path = os.environ.get(variable) or str(Path.home() / ".aws" / name)
    profile = os.environ.get("AWS_PROFILE", "default")
    parser = configparser.RawConfigParser()
    try:
        parser.read(Path(path).expanduser(), encoding="utf-8")
    except configparser.Error:
        return {}  # a file of the vendor's tools, which say themselves what is wrong with it
    for section in (profile, f"profile {profile}"):
        if parser.has_section(section):
            return dict(parser.items(section))
    return {}
