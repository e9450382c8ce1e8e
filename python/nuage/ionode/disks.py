"""The disks of an IO-node: which it has, on which a new copy goes, how much is left.

A disk has a class (`model.contract.DiskClass`). Journals go to the fastest class with room, or to
the class that the contract asks for. Where there are several classes, the largest disk of the
slowest also takes what compaction writes of all journals: old data, read now and then.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nuage.errors import InvalidRequest, NoCandidate
from nuage.model.contract import NO_LIMITS, DiskClass, Limits
from nuage.model.desired import DiskReport
from nuage.model.status import ALARM_SHARES, FREE_SHARE_MIN, SpaceAlarm

FASTEST_FIRST: Final = tuple(DiskClass)
PREFERRED_FREE_SHARE: Final = ALARM_SHARES[SpaceAlarm.LOW][
    0
]  # below it a copy goes elsewhere first


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlace:
    """A disk: where it is mounted, and what is known of it.

    `size_bytes` 0: the whole of what is mounted there. `capacity` is what it does a second; 0 is
    measured. `serial` goes into receipts.
    """

    name: str
    disk_class: DiskClass
    path: Path
    size_bytes: int = 0
    capacity: Limits = NO_LIMITS
    serial: str = ""


@dataclass(frozen=True, slots=True)
class BasePlace:
    """Where base segments lie: on which disk, below which directory."""

    disk: str
    path: Path


Usage = Callable[[Path], tuple[int, int]]


def usage_of(path: Path) -> tuple[int, int]:
    """Return the bytes free and in all where `path` is mounted."""
    usage = shutil.disk_usage(path)
    return usage.free, usage.total


def base_disk(places: Sequence[DiskPlace]) -> DiskPlace | None:
    """Return the disk that takes what compaction writes, None: it stays with each journal."""
    ranks = [FASTEST_FIRST.index(place.disk_class) for place in places]
    if len(set(ranks)) < 2:
        return None
    slowest = [place for place, rank in zip(places, ranks, strict=True) if rank == max(ranks)]
    return max(slowest, key=lambda place: (place.size_bytes, place.name))


def disk_reports(
    places: Sequence[DiskPlace],
    used_bytes: Mapping[str, int],
    *,
    capacities: Mapping[str, Limits],
    usage: Usage = usage_of,
) -> tuple[DiskReport, ...]:
    """Return how each disk stands; `used_bytes` is what journals hold, by disk."""
    base = base_disk(places)
    reports = []
    for place in places:
        free_bytes, mounted_bytes = usage(place.path)
        total_bytes = place.size_bytes or mounted_bytes
        left_bytes = total_bytes - used_bytes.get(place.name, 0)
        reports.append(
            DiskReport(
                name=place.name,
                disk_class=place.disk_class,
                free_bytes=max(0, min(free_bytes, left_bytes)),
                total_bytes=total_bytes,
                capacity=capacities.get(place.name, place.capacity),
                for_bases=place is base,
                serial=place.serial,
            )
        )
    return tuple(reports)


def choose_disk(disks: Iterable[DiskReport], wanted: DiskClass | None) -> str:
    """Return the disk that a new copy goes to.

    Raises:
        NoCandidate: none of that class, or none with room.
    """
    disks = list(disks)
    able = [disk for disk in disks if wanted in (None, disk.disk_class) and has_room(disk)]
    if not able:
        raise NoCandidate(
            "no disk can take the copy"
            if wanted is None
            else f"no {wanted.value} disk can take it",
            refusals=[
                (d.name, "space", f"{d.disk_class.value}, {d.free_bytes} free") for d in disks
            ],
        )

    def order(disk: DiskReport) -> tuple[bool, int, int, str]:
        is_low = disk.free_bytes < disk.total_bytes * PREFERRED_FREE_SHARE
        return is_low, FASTEST_FIRST.index(disk.disk_class), -disk.free_bytes, disk.name

    return min(able, key=order).name


def has_room(disk: DiskReport) -> bool:
    """Tell whether a disk may take another copy."""
    return disk.free_bytes >= disk.total_bytes * FREE_SHARE_MIN


def require_disks(places: Sequence[DiskPlace]) -> None:
    """Raise InvalidRequest unless each disk has a name and a directory of its own."""
    for field in ("name", "path"):
        seen = [str(getattr(place, field)) for place in places]
        twice = sorted({text for text in seen if seen.count(text) > 1})
        if twice:
            raise InvalidRequest(f"two disks share {twice[0]}", field=f"disks.{field}")
