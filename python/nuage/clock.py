"""Time as a parameter: whatever waits or stamps takes a Clock.

Only this file reads the clock of the machine.
"""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Source of time; the simulation has its own."""

    def now_s(self) -> float:
        """Return seconds since the Unix epoch, for naming moments; may jump."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds that never go back, for measuring and deadlines."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Wait `delay_s` seconds of this clock."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_s(self) -> float:
        """Return the wall clock."""
        return time.time()

    def monotonic_s(self) -> float:
        """Return the monotonic clock."""
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        """Wait on the event loop."""
        await asyncio.sleep(delay_s)
