"""Notices of how a night ended. A notice that fails is reported, and costs the night nothing."""

import json
import os
import subprocess
import urllib.request
from collections.abc import Mapping

from rsft_cluster.config import NightlyConfig
from rsft_cluster.progress import Listener

WEBHOOK = "RSFT_WEBHOOK_URL"
"""The environment variable with the address: it often holds a secret, so it is not in a config, and never printed."""
COMMAND_TIMEOUT_S = 60
WEBHOOK_TIMEOUT_S = 15


def notify(config: NightlyConfig, record: Mapping[str, object], listener: Listener) -> None:
    """Give a night's record to the command and the web hook that are configured, if any."""
    payload = json.dumps(record, ensure_ascii=False).encode()
    if config.notify:
        try:
            subprocess.run(  # noqa: S603 the user's own command, without a shell
                config.notify, input=payload, timeout=COMMAND_TIMEOUT_S, check=True, capture_output=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            listener.note(f"warning: nightly.notify: {config.notify[0]}: {_why(error)}")
    if url := os.environ.get(WEBHOOK):
        try:
            _post(url, payload)
        except (OSError, ValueError) as error:
            listener.note(f"warning: {WEBHOOK}: the web hook was not reached ({_why(error)})")


def _post(url: str, payload: bytes) -> None:
    if not url.startswith(("http://", "https://")):
        raise ValueError("it is no http or https address")
    request = urllib.request.Request(url, payload, {"Content-Type": "application/json"}, method="POST")  # noqa: S310
    with urllib.request.urlopen(request, timeout=WEBHOOK_TIMEOUT_S):  # noqa: S310 http or https
        pass


def _why(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        return f"exit code {error.returncode}" + (f": {lines[-1]}" if lines else "")
    if isinstance(error, subprocess.TimeoutExpired):
        return f"took over {error.timeout:g} s"
    code = getattr(error, "code", None)
    reason = getattr(error, "reason", error)
    return f"HTTP status {code}" if code else str(getattr(reason, "strerror", None) or type(error).__name__)
