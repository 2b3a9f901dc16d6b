"""URIs of files and folders: which are known, where their bucket ends, that no secret stands in them."""

import os
import re
from dataclasses import dataclass

from rsft_cluster.errors import ConfigError

SCHEMES = ("file", "s3", "gs", "abfs")
_SECRET = re.compile(r"^(?!https?:)[a-z][a-z0-9+.-]*://[^/\s@]*:[^/\s@]*@|^(s3|gs)://[^/\s@]*@", re.IGNORECASE)
_USERINFO = re.compile(r"://[^/\s]+@")


@dataclass(frozen=True)
class ParsedUri:
    """A URI taken apart: a bucket and a path in it, or a path on this machine."""

    bucket: str | None
    """URI of the bucket, None on this machine."""
    path: str

    @property
    def is_local(self) -> bool:
        """Whether it is a path on this machine."""
        return self.bucket is None


def parse_uri(uri: str) -> ParsedUri:
    """Return the parts of a URI or local path.

    Raises ConfigError for a scheme that is not one of SCHEMES, and for what only an environment may hold.
    """
    scheme = uri.split("://", 1)[0] if "://" in uri else "file"
    if scheme not in SCHEMES:
        raise ConfigError(f"{shown(uri)}: unknown storage scheme {scheme!r}; one of {', '.join(SCHEMES)} is supported")
    check_uri(uri)
    if scheme == "file":
        return ParsedUri(None, os.path.abspath(uri.removeprefix("file://")))  # noqa: PTH100 no symlinks
    bucket, _, path = uri.split("://", 1)[1].partition("/")
    if not bucket:
        raise ConfigError(f"{uri}: names no bucket; expected something like {scheme}://bucket/folder")
    return ParsedUri(f"{scheme}://{bucket}", re.sub("/+", "/", path).strip("/"))


def check_uri(uri: str) -> None:
    """Raise ConfigError, without repeating it, for a URI that holds credentials or settings of a client.

    URIs are written into records and logs; secrets belong in the environment.
    """
    if "://" not in uri or uri.startswith("file://"):
        return
    if holds_secret(uri):
        raise ConfigError(
            f"{shown(uri)}: credentials stood in this URI (removed here); expected them in the environment: "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3, GOOGLE_APPLICATION_CREDENTIALS for gs, "
            "AZURE_STORAGE_ACCOUNT_KEY for abfs"
        )
    if "?" in uri or "#" in uri:
        raise ConfigError(
            f"{shown(uri)}: a storage URI has no options; expected scheme://bucket/folder, with the endpoint in the "
            "environment (AWS_ENDPOINT_URL for s3)"
        )


def shown(uri: str) -> str:
    """Return a URI without what may be secret in it."""
    return re.sub(r"[?#].*", "", without_userinfo(uri)) if "://" in uri else uri


def without_userinfo(text: str) -> str:
    """Return a text without what stands before an `@` in its URIs."""
    return _USERINFO.sub("://", text)


def holds_secret(uri: str) -> bool:
    """Say whether a storage URI holds credentials. `abfs://container@account` does not: it names an account."""
    return _SECRET.match(uri) is not None


def join_uri(uri: str, *parts: str) -> str:
    """Return a URI below another."""
    return "/".join([uri.rstrip("/"), *parts])
