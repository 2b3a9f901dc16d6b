"""A night as a systemd timer and its service, for the user's own systemd."""

from rsft_cluster.errors import AlreadyRunningError, ConfigError, DivergedError, NothingAcceptedError
from rsft_cluster.scheduling.order import File, Order, on_calendar

TIMER = """\
# rsft {run}: nights, UTC. Install with: systemctl --user enable --now {name}.timer
[Unit]
Description=rsft nights of {run}

[Timer]
OnCalendar={calendar}
# A night that the machine slept through is done when it is up again.
Persistent=true
AccuracySec=1s

[Install]
WantedBy=timers.target
"""

SERVICE = """\
[Unit]
Description=rsft night of {run}
# What failed is gone on with, a few times: the run resumes where it stopped.
StartLimitIntervalSec=12h
StartLimitBurst=4

[Service]
Type=oneshot
WorkingDirectory={folder}
ExecStart={command}
TimeoutStartSec=infinity
# The run is asked first, then everything that it left running is ended.
KillMode=mixed
TimeoutStopSec=300
Restart=on-failure
RestartSec=5min
RestartPreventExitStatus={final}
SuccessExitStatus={running}
"""


def units(order: Order) -> list[File]:
    """Return the timer and the service."""
    name = f"rsft-{order.run}"
    final = (ConfigError, NothingAcceptedError, DivergedError)
    service = SERVICE.format(
        run=order.run,
        folder=str(order.folder).replace("%", "%%"),
        command=" ".join(map(_quoted, [*order.arguments(), "--quiet"])),
        final=" ".join(str(error.exit_code) for error in final),
        running=AlreadyRunningError.exit_code,
    )
    timer = TIMER.format(run=order.run, name=name, calendar=on_calendar(order.config.nightly))
    return [File(f"{name}.timer", timer), File(f"{name}.service", service)]


def _quoted(word: str) -> str:
    """Return a word as systemd's own command lines take it: % and $ are its own there."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if not word or any(c in word for c in " \t;'\"\\") else word
