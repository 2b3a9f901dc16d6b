"""The CPU time of a process, and its lowest priority."""

import os
import sys
import time
from contextlib import suppress


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process, 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0.0
    try:
        return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
    except OSError:
        return 0.0


def yield_cpu(leader: int) -> None:
    """Give a process and its group only the CPU time that no other process uses, as far as the system can."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PGRP, leader, 19)
        if sys.platform == "linux":
            os.sched_setscheduler(leader, os.SCHED_IDLE, os.sched_param(0))
