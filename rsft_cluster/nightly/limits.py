"""How long a night may take."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rsft_cluster.errors import OutOfTimeError


@contextmanager
def at_most(hours: float | None) -> Iterator[None]:
    """Raise OutOfTimeError in the block once it has taken `hours`; has no effect outside the main thread."""
    if hours is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError(
            f"the night took over {hours:g} hours (nightly.max_hours) and stopped where it was; nothing is lost, and "
            "the next start goes on from there"
        )

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, hours * 3600)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
