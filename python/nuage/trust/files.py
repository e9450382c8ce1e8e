"""Small files that must be whole or absent, and secret ones that only their owner reads."""

import os
from pathlib import Path
from typing import Final

from nuage.errors import Forbidden

SECRET_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o700


def write_atomically(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Replace `path` by `data`, durably; a crash leaves the old file or the new one.

    The mode holds from the first byte on: no moment when a secret can be read by others.
    """
    path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = os.open(fresh, flags, SECRET_MODE if secret else PUBLIC_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    fresh.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_private(path: Path) -> None:
    """Raise Forbidden when others may read the secret in `path`."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise Forbidden(
            f"the secret {path} may be read by others (mode {mode:o})",
            hint=f"chmod 600 {path}, and renew it if somebody may have read it",
        )
