"""What clients saw of blocks, and whether one disk could have shown it: linearizability.

Each block is a register of its own, and no two writes have the same value, so that a history is
judged exactly (Gibbons and Korach, Testing shared memories, SIAM J. Comput. 26, 1997): a value's
*cluster* is its write and the reads that returned it. Between the first end and the last begin of
its acts it was there for sure (forward zone), or else all of them overlap (backward zone). One disk
shows it if no read ends before its write begins, no two forward zones overlap, and no backward
zone lies inside a forward one.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

NEVER_S = math.inf  # when a write ended that nobody answered: it may land at any time


@dataclass(slots=True)
class Cluster:
    """One value of one block: times of its write and of what read it, in seconds."""

    write_begin_s: float
    write_end_s: float
    first_end_s: float
    last_begin_s: float
    first_read_end_s: float = NEVER_S

    def read(self, begin_s: float, end_s: float) -> None:
        """Take a read in that returned the value."""
        self.first_end_s = min(self.first_end_s, end_s)
        self.last_begin_s = max(self.last_begin_s, begin_s)
        self.first_read_end_s = min(self.first_read_end_s, end_s)


@dataclass
class BlockHistories:
    """The acts on all blocks since they were last known; values are numbers, each written once."""

    clusters: dict[int, dict[int, Cluster]] = field(default_factory=lambda: defaultdict(dict))
    reads: list[tuple[int, int, float, float]] = field(default_factory=list)

    def known(self, block: int, value: int) -> None:
        """Begin a block's history: it holds `value` before all else."""
        self.clusters[block] = {value: Cluster(-math.inf, -math.inf, -math.inf, -math.inf)}

    def wrote(self, block: int, value: int, begin_s: float, end_s: float = NEVER_S) -> None:
        """Note a write; without an end nobody knows whether it was done."""
        self.clusters[block][value] = Cluster(begin_s, end_s, end_s, begin_s)

    def read(self, block: int, value: int, begin_s: float, end_s: float) -> None:
        """Note a read and what it returned."""
        self.reads.append((block, value, begin_s, end_s))

    def faults(self) -> list[str]:
        """Return in words what no single disk could have shown; empty: all is well."""
        found = []
        for block, value, begin_s, end_s in self.reads:
            cluster = self.clusters[block].get(value)
            if cluster is None:
                found.append(f"block {block}: {value:#x} was read and is of another time")
            else:
                cluster.read(begin_s, end_s)
        self.reads.clear()
        for block, clusters in self.clusters.items():
            found += [f"block {block}: {fault}" for fault in _faults(clusters)]
        return found

    def faults_after_loss(self, block: int, value: int, flushed_s: float) -> list[str]:
        """Judge what a block holds after memory was lost: nothing older than the last flush.

        `flushed_s`: when the last flush that was answered began.
        """
        clusters = self.clusters[block]
        cluster = clusters.get(value)
        if cluster is None:
            return [f"block {block}: holds {value:#x}, which is of another time"]
        newer = [
            later
            for later, other in clusters.items()
            if other.write_end_s < flushed_s and other.write_begin_s > cluster.first_end_s
        ]
        return [f"block {block}: holds {value:#x}, {later:#x} was flushed after" for later in newer]


def _faults(clusters: dict[int, Cluster]) -> Iterable[str]:
    forward: list[tuple[float, float, int]] = []
    backward: list[tuple[float, float, int]] = []
    for value, cluster in clusters.items():
        if cluster.first_read_end_s < cluster.write_begin_s:
            yield f"{value:#x} was read before it was written"
        if cluster.first_end_s < cluster.last_begin_s:
            forward.append((cluster.first_end_s, cluster.last_begin_s, value))
        elif cluster.first_end_s < NEVER_S:
            backward.append((cluster.last_begin_s, cluster.first_end_s, value))
    forward.sort()
    reach_s, holder = -math.inf, 0
    for begin_s, end_s, value in forward:
        if begin_s < reach_s:
            yield f"{value:#x} and {holder:#x} were both there: a stale read or a lost write"
        if end_s > reach_s:
            reach_s, holder = end_s, value
    for begin_s, end_s, value in backward:
        for forward_begin_s, forward_end_s, holder in forward:
            if forward_begin_s < begin_s and end_s < forward_end_s:
                yield f"{value:#x} came and went while {holder:#x} was there"
