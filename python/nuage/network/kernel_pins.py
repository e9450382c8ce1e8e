"""What an earlier release's plane left pinned: unpinned once none of its programs forwards.

A release with another layout of its maps pins beside the old one (`bpf/intf.h`), whose programs
forward until each port is bound anew. Acts, in the network namespace of the calling thread.
"""

from pathlib import Path

from nuage._core import bpf_forget_others
from nuage.errors import Unavailable


def forget_other_layouts(directory: Path | str) -> tuple[str, ...]:
    """Unpin what stands below a plane's directory in another layout; return what is gone.

    A layout that has a program at any port here stays whole: ask again later. What it has elsewhere
    serves its ports, and goes with the last.

    Raises:
        Unavailable: the kernel does not say what is in use, or the pins cannot be taken away.
    """
    try:
        return tuple(bpf_forget_others(str(directory)))
    except OSError as error:
        raise Unavailable(f"what an earlier plane left pinned stays: {error}") from error
