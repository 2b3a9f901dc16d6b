"""What a process has taken of the processor, and how it gives way to all others."""

import os
import sys
import time
from contextlib import suppress


def cpu_s(pid: int) -> float:
    """Return what a process has taken of the processor, 0 where that is not told."""
    if sys.platform != "linux":
        return 0.0
    try:
        return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
    except OSError:
        return 0.0


def give_way(leader: int) -> None:
    """Leave a process and its group only the time that no other wants, as far as the system can."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PGRP, leader, 19)
        if sys.platform == "linux":
            os.sched_setscheduler(leader, os.SCHED_IDLE, os.sched_param(0))
