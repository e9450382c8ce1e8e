"""Running before others: what keeps neighbours alive must not wait for what computes.

Best effort: without the right to it a process runs on as it is, and neighbours notice stalls.
"""

import os
from contextlib import suppress
from typing import Final

REAL_TIME_PRIORITY: Final = 1  # the lowest: before all that is not real-time, behind the kernel's
NICENESS: Final = -10


def run_urgently() -> str:
    """Put this thread before ordinary ones, not its children; return which way."""
    try:
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(REAL_TIME_PRIORITY))
    except OSError:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
            return f"niceness {NICENESS}"
        return "no"
    return "real-time"
