"""A guest's serial console log, kept within a bound while QEMU appends to it.

QEMU opens the log for appending and never reopens it, so the file is copied and cut, not moved.
A few lines may be lost between the two when the guest writes at that moment. Offsets count all
bytes the guest ever wrote: `base_bytes` of them lie before the two files that are kept.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONSOLE_BYTES_MAX: Final = 1024 * 1024  # each of the two files; a boot writes some 20 KiB


@dataclass(slots=True)
class ConsoleLog:
    """The log file at `path` and its predecessor ``<path>.1``."""

    path: Path
    base_bytes: int = 0

    def _sizes(self) -> tuple[int, int]:
        older = self.path.with_name(self.path.name + ".1")
        return (
            older.stat().st_size if older.exists() else 0,
            self.path.stat().st_size if self.path.exists() else 0,
        )

    def total_bytes(self) -> int:
        """Return how much the guest has written since it was created."""
        return self.base_bytes + sum(self._sizes())

    def rotate(self, bytes_max: int = CONSOLE_BYTES_MAX) -> bool:
        """Cut the log when it has outgrown its bound; tell whether it was cut."""
        older_bytes, newer_bytes = self._sizes()
        if newer_bytes <= bytes_max:
            return False
        shutil.copyfile(self.path, self.path.with_name(self.path.name + ".1"))
        os.truncate(self.path, 0)
        self.base_bytes += older_bytes
        return True

    def read(self, offset_bytes: int, size_bytes_max: int) -> bytes:
        """Return what was written from `offset_bytes` on, from the oldest kept when it is gone."""
        older_bytes, _ = self._sizes()
        start = max(offset_bytes - self.base_bytes, 0)
        data = b""
        if start < older_bytes:
            with self.path.with_name(self.path.name + ".1").open("rb") as file:
                file.seek(start)
                data = file.read(size_bytes_max)
            start = older_bytes
        if len(data) < size_bytes_max and self.path.exists():
            with self.path.open("rb") as file:
                file.seek(start - older_bytes)
                data += file.read(size_bytes_max - len(data))
        return data
