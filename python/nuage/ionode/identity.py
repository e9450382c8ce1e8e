"""Which disk is which: a random identity lies on each, so that another one in its place shows.

The agent writes it once, into the folder that is its own on the disk, together with what receipts
call the disk. So a disk keeps that name wherever it is mounted and whatever its configuration says
later, and a new one never bears the name of the one that it replaces. Beside, in the agent's state,
stands which disk was where since when: what a storage daemon noted before a disk was replaced is
told of the disk that was there then.

A disk is in service once it is there, unless it is a copy of another or was declared lost. One
whose file system is not mounted is away, and nothing is written to the empty directory in its
place. What was never seen before, or comes without an identity to where its predecessor was
mounted, is a new disk; where no file system of its own tells that, only at the agent's start.
"""

import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from nuage.errors import UNREADABLE, Conflict, CorruptData
from nuage.ionode.disks import DiskPlace
from nuage.ionode.owner import open_to_daemons
from nuage.model.desired import AbsentDisk
from nuage.trust.files import sync_directory, write_atomically

MARK: Final = "disk.json"
# Of an IaaS's volumes: a daemon whose disk is gone may make folders in its place, but not these.
VOLUME_FILES: Final = "volumes/*/volume.json"
IDENTITY_BYTES: Final = 16
SUFFIX_DIGITS: Final = 8  # of the identity, in what receipts call the disk


class Mark(msgspec.Struct, frozen=True):
    """What lies on a disk: its identity, and what receipts call it."""

    identity: str
    serial: str


class Kept(msgspec.Struct):
    """A disk that was in service: at which place, mounted where, since when.

    `erased_ms`: it was declared lost, came back, and was erased then (0: it was not). `path`: the
    place's directory ("": noted by an older agent). `is_older`: it came with an identity that
    nothing here knew, so this state may lack other disks of before as well.
    """

    place: str
    mark: Mark
    mounted_at: str
    since_ms: int
    erased_ms: int = 0
    path: str = ""
    is_older: bool = False


class Fate(Enum):
    """What has become of a disk that was declared lost."""

    SERVES = "serves"  # it was there all the time
    GONE = "gone"
    BACK = "back"  # it lies at a place again, and is not used
    ERASED = "erased"  # it was back, and nothing of what it held is there any more


@dataclass(frozen=True, slots=True)
class Found:
    """What is at a place: a disk, or why there is none that can be used."""

    mark: Mark | None
    fault: str = ""


def mount_point_of(path: Path) -> Path:
    """Return the mount point of the file system that `path` is on, or would be."""
    for each in (path, *path.parents):
        if os.path.ismount(each):
            return each
    return Path("/")


class DiskBook:
    """The disks of a node, by what lies on them. `take_in` comes first, once."""

    def __init__(
        self,
        path: Path,
        places: Sequence[DiskPlace],
        *,
        now_ms: Callable[[], int],
        entropy: Callable[[int], bytes] = os.urandom,
        mount_point: Callable[[Path], Path] = mount_point_of,
    ) -> None:
        self._path = path
        self._places = tuple(places)
        self._now_ms = now_ms
        self._entropy = entropy
        self._mount_point = mount_point
        self._kept = _load(path)
        self._serving: dict[str, Mark] = {}  # by place

    @property
    def serving(self) -> tuple[DiskPlace, ...]:
        """Return the places whose disks are in service, with what receipts call these."""
        return tuple(
            replace(place, serial=self._serving[place.name].serial)
            for place in self._places
            if place.name in self._serving
        )

    def take_in(self, lost: Collection[str]) -> None:
        """Find the disks; those in `lost` are not used."""
        for place in self._places:
            found = self._found(place)
            if not found.fault:
                self._take(place, found.mark, lost)

    def look_again(self, lost: Collection[str]) -> tuple[str, ...]:
        """Take in what has come since; return the places where another disk is in service now."""
        before = dict(self._serving)
        for place in self._places:
            found = self._found(place)
            if not found.fault and (found.mark is not None or self._is_mounted(place)):
                self._take(place, found.mark, lost)
        return tuple(name for name, mark in self._serving.items() if before.get(name) != mark)

    def _take(self, place: DiskPlace, mark: Mark | None, lost: Collection[str]) -> None:
        if mark is not None and (mark.serial in lost or mark in self._serving.values()):
            return
        open_to_daemons(place.path)
        is_older = mark is not None and all(kept.mark != mark for kept in self._kept)
        if mark is None:
            mark = self._mark_for(place)
            _write(place, mark)
        self._keep(place, mark, is_older=is_older)
        self._serving[place.name] = mark

    def _is_mounted(self, place: DiskPlace) -> bool:
        """Tell whether a file system is where the disk of this place was mounted before."""
        before = self._last_at(place.name)
        if before is None:
            return place.path.parent.is_dir()
        mounted_at = Path(before.mounted_at)
        return mounted_at != Path("/") and self._mount_point(place.path) == mounted_at

    def _found(self, place: DiskPlace) -> Found:
        """Return what is at a place now; nothing is written."""
        try:
            return Found(_read(place))
        except FileNotFoundError:
            before = self._last_at(place.name)
            if before is not None and self._is_unmounted(place, Path(before.mounted_at)):
                return Found(None, f"nothing is mounted at {before.mounted_at}")
            return Found(None)
        except OSError as error:
            return Found(None, f"{place.path} cannot be read: {error.strerror}")

    def _is_unmounted(self, place: DiskPlace, mounted_at: Path) -> bool:
        """Tell whether the file system that a place was on is not there any more."""
        is_same_place = mounted_at in place.path.parents
        return is_same_place and self._mount_point(place.path) in mounted_at.parents

    def _mark_for(self, place: DiskPlace) -> Mark:
        """Return the identity of a disk that has none."""
        holds = any(place.path.glob(f"*/{VOLUME_FILES}"))
        before = self._last_at(place.name)
        if holds and before is not None and not before.erased_ms:
            return before.mark  # its file alone was lost
        identity = self._entropy(IDENTITY_BYTES).hex()
        # One of before there were identities keeps the name that its receipts bear.
        suffix = "" if holds else f"+{identity[:SUFFIX_DIGITS]}"
        return Mark(identity, place.serial + suffix)

    def _keep(self, place: DiskPlace, mark: Mark, *, is_older: bool) -> None:
        before, mounted_at = self._last_at(place.name), str(self._mount_point(place.path))
        path = str(place.path)
        if before is not None and before.mark == mark:
            if (before.mounted_at, before.path) == (mounted_at, path):
                return
            before.mounted_at, before.path = mounted_at, path
        else:
            since_ms = 0 if before is None else self._now_ms()
            kept = Kept(place.name, mark, mounted_at, since_ms, path=path, is_older=is_older)
            self._kept.append(kept)
        self._save()

    def _last_at(self, place: str) -> Kept | None:
        return next((kept for kept in reversed(self._kept) if kept.place == place), None)

    def _save(self) -> None:
        write_atomically(self._path, msgspec.json.encode(self._kept))

    # Asked while the agent runs -------------------------------------------------------------------

    def away(self) -> frozenset[str]:
        """Return the places in service whose disk does not answer now."""
        return frozenset(
            place.name
            for place in self._places
            if place.name in self._serving and self._found(place).mark != self._serving[place.name]
        )

    def is_complete(self, lost: Collection[str]) -> bool:
        """Tell whether each disk that ever was in service answers, or does not come back.

        Nobody knows once a disk came that is older than this state.
        """
        if any(kept.is_older for kept in self._kept):
            return False
        away, serving = self.away(), self._serving
        here = [mark for name, mark in serving.items() if name not in away]
        kept = all(k.mark in here or k.mark.serial in lost or k.erased_ms for k in self._kept)
        last = {place.name: self._last_at(place.name) for place in self._places}
        return kept and all(
            name in serving or (before is not None and before.mark.serial in lost)
            for name, before in last.items()
        )

    def absent(self, lost: Collection[str]) -> tuple[AbsentDisk, ...]:
        """Return the disks that were once in service and are not; of those lost what is back."""
        here = {place.name: self._found(place) for place in self._places}
        at = {found.mark: name for name, found in here.items() if found.mark is not None}
        absent: dict[str, AbsentDisk] = {}
        for kept in self._kept:
            mark, place = kept.mark, at.get(kept.mark, "")
            if kept.erased_ms or (place and self._serving.get(place) == mark):
                absent.pop(mark.serial, None)
                continue
            if not place and mark.serial in lost:
                continue
            absent[mark.serial] = AbsentDisk(
                serial=mark.serial,
                name=place or kept.place,
                is_back=bool(place),
                reason=self._why_absent(kept, here.get(kept.place), is_lost=mark.serial in lost),
            )
        return tuple(absent[serial] for serial in sorted(absent))

    def _why_absent(self, kept: Kept, found: Found | None, *, is_lost: bool) -> str:
        if is_lost:
            return "it was declared lost, and is back: nothing is written to it"
        if found is None:
            return "its place is configured no more"
        if found.fault:
            return found.fault
        if found.mark == kept.mark:
            return "it is back, and in service within seconds"
        return "another disk is in its place" if found.mark else "its place is empty"

    def lost_paths(self, lost: Collection[str]) -> tuple[Path, ...]:
        """Return where those in `lost` were that are not in service: what lay there is gone."""
        serving = self._serving.values()
        return tuple(
            {
                Path(kept.path): None
                for kept in self._kept
                if kept.path and kept.mark.serial in lost and kept.mark not in serving
            }
        )

    def serial_at(self, place: str, time_ms: int) -> str:
        """Return what receipts call the disk that was at a place then; "" is the first place."""
        name = place or self._places[0].name
        found = [kept for kept in self._kept if kept.place == name]
        then = [kept for kept in found if kept.since_ms <= time_ms] or found[:1]
        return then[-1].mark.serial if then else self._serial_of(name)

    def _serial_of(self, name: str) -> str:
        return next(each.serial for each in (*self._places, self._places[0]) if each.name == name)

    def fate_of(self, serial: str) -> tuple[Fate, int]:
        """Return what has become of a disk that was declared lost, and when it was erased (ms)."""
        for kept in self._kept:
            if kept.mark.serial == serial and kept.erased_ms:
                return Fate.ERASED, kept.erased_ms
        if any(mark.serial == serial for mark in self._serving.values()):
            return Fate.SERVES, 0
        return (Fate.BACK if self._place_of(serial) else Fate.GONE), 0

    def _place_of(self, serial: str) -> DiskPlace | None:
        for place in self._places:
            mark = self._found(place).mark
            if mark is not None and mark.serial == serial:
                return place
        return None

    def place_of(self, serial: str) -> str:
        """Return the name of the place where a disk is now, "" where it is not."""
        place = self._place_of(serial)
        return "" if place is None else place.name

    def erase(self, serial: str) -> None:
        """Remove all that lies on a disk that is back; it is a new one from then on.

        Raises:
            Conflict: it is in service, or not there.
        """
        place = self._place_of(serial)
        if place is None or self.fate_of(serial)[0] is not Fate.BACK:
            raise Conflict(f"disk {serial} is not back: nothing is erased")
        for entry in place.path.iterdir():
            if entry.name == MARK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        sync_directory(place.path)
        mark = _read(place)
        assert mark is not None
        erased = [kept for kept in self._kept if kept.mark == mark]
        if not erased:  # the node's state is younger than the disk
            mounted_at = str(self._mount_point(place.path))
            erased = [Kept(place.name, mark, mounted_at, self._now_ms(), is_older=True)]
            self._kept += erased
        for kept in erased:
            kept.erased_ms = self._now_ms()
        self._save()  # before it passes for a new one: a crash goes on from here
        _write(place, self._mark_for(place))


def _read(place: DiskPlace) -> Mark | None:
    """Return the mark at a place, None where it is unreadable as such.

    Raises:
        FileNotFoundError: there is none.
        OSError: the disk does not answer.
    """
    data = (place.path / MARK).read_bytes()
    try:
        return msgspec.json.decode(data, type=Mark)
    except UNREADABLE:
        return None


def _write(place: DiskPlace, mark: Mark) -> None:
    write_atomically(place.path / MARK, msgspec.json.encode(mark))


def _load(path: Path) -> list[Kept]:
    if not path.exists():
        return []
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Kept])
    except UNREADABLE as error:
        raise CorruptData(
            f"which disk was where cannot be read: {error}", where=str(path)
        ) from None
