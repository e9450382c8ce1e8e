"""What a lab's system test needs of the machine: told, and the module skipped, where it lacks."""

from pathlib import Path

import pytest

from nuage.errors import NuageError
from nuage.lab import kernel
from nuage.lab.cgroup import mount_point

GUEST = Path(__file__).parents[3] / ".build/guest/guest.raw"


def require_lab(*, guest: bool = False) -> None:
    """Skip the module that calls this unless a lab, and with `guest` its guests, can run here."""
    reason = _missing(guest=guest)
    if reason:
        pytest.skip(f"no lab here: {reason}", allow_module_level=True)


def _missing(*, guest: bool) -> str:
    try:
        kernel.require_able()
        mount_point()
    except NuageError as error:
        return error.message
    if guest and not GUEST.exists():
        return f"no guest image {GUEST}: tools/guest/build.py makes it"
    return ""
