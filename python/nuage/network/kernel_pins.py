"""Where programs and maps are pinned, and what an earlier release's plane left there.

A release with another layout of its maps pins beside the old one (`bpf/intf.h`), whose programs
forward until each port is bound anew; what it pinned goes then. Acts, in the network namespace of
the calling thread.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from nuage._core import bpf_forget_others
from nuage.errors import Unavailable


def forget_other_layouts(directory: Path | str, ports: Iterable[int]) -> tuple[str, ...]:
    """Unpin what stands below a plane's directory in another layout; return what is gone.

    A layout that has a program at any of the interfaces `ports` stays whole: ask again later. What
    it has elsewhere goes with the last: on a line, or on a cable's card that is no port any more.

    Raises:
        Unavailable: the kernel does not say what is in use, or the pins cannot be taken away.
    """
    try:
        return tuple(bpf_forget_others(str(directory), list(ports)))
    except OSError as error:
        raise Unavailable(f"what an earlier plane left pinned stays: {error}") from error


def mount_pins(root: Path) -> None:
    """Mount a BPF file system at `root`, unless one is there: in containers nobody else does.

    Raises:
        Unavailable: it cannot be mounted.
    """
    mounts = (line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines())
    if any(words[1:3] == [str(root), "bpf"] for words in mounts):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(root), b"bpf", 0, None):
        reason = os.strerror(ctypes.get_errno())
        raise Unavailable(
            f"no BPF file system at {root}: {reason}", hint=f"mount -t bpf bpf {root}"
        )
