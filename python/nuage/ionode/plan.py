"""Wish and what is seen → the next acts on one daemon. Pure.

In the order: copies before heads and paths, a lower epoch closed before a higher one is opened,
the image before the initiators. A volume grows through its head, which tells its replicas. What
fails in the daemon is a fact to report, never a reason to delete.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from nuage.ids import VolumeId
from nuage.ionode.port import DaemonSeen, HeadSeen
from nuage.model.contract import JournalRule
from nuage.model.desired import DaemonWish, HeadWish, PathWish, ReplicaWish


@dataclass(frozen=True, slots=True)
class Create:
    """Make an empty copy."""

    wish: ReplicaWish


@dataclass(frozen=True, slots=True)
class Resize:
    """Make a copy larger."""

    volume_id: VolumeId
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Keep:
    """Have a copy keep so much of its past."""

    volume_id: VolumeId
    journal: JournalRule


@dataclass(frozen=True, slots=True)
class OpenHead:
    """Open a head under the wish's epoch."""

    wish: HeadWish


@dataclass(frozen=True, slots=True)
class Tell:
    """Let exactly the wish's initiators in; hold the head to its limits, its copies to the RPO."""

    wish: HeadWish


@dataclass(frozen=True, slots=True)
class Fill:
    """Copy the first image in."""

    volume_id: VolumeId
    sha256: str


@dataclass(frozen=True, slots=True)
class CloseHead:
    """Stop serving."""

    volume_id: VolumeId


@dataclass(frozen=True, slots=True)
class Erase:
    """Delete a copy."""

    volume_id: VolumeId


@dataclass(frozen=True, slots=True)
class StandBy:
    """Show a volume to a host while its head is elsewhere."""

    wish: PathWish


@dataclass(frozen=True, slots=True)
class EndStandby:
    """Show it no more."""

    volume_id: VolumeId


Act: TypeAlias = (
    Create | Resize | Keep | OpenHead | Tell | Fill | CloseHead | StandBy | EndStandby | Erase
)


def plan(
    wish: DaemonWish,
    seen: DaemonSeen,
    *,
    filled: Collection[VolumeId],
    told: Mapping[VolumeId, HeadWish],
    shown: Mapping[VolumeId, PathWish],
    released: Collection[tuple[VolumeId, int]] = (),
) -> list[Act]:
    """Return the acts that bring a daemon nearer to its wish.

    `filled` are the volumes whose first image this node has copied in or is copying now,
    `told` the wish by which each head was opened or changed last, `shown` that of each path without
    head, `released` the epochs under which a head was given up for another node to open the next:
    it is not opened again.
    """
    sizes = {volume.volume_id: volume.size_bytes for volume in seen.volumes}
    journals = {volume.volume_id: volume.journal for volume in seen.volumes}
    heads = {head.volume_id: head for head in seen.heads}
    wanted = {head.volume_id: head for head in wish.heads}
    acts: list[Act] = []
    for volume_id, head in heads.items():
        if volume_id not in wanted or head.epoch < wanted[volume_id].epoch:
            acts.append(CloseHead(volume_id))
    for replica in wish.replicas:
        size_bytes = sizes.get(replica.volume_id)
        if size_bytes is None:
            acts.append(Create(replica))
        elif size_bytes < replica.size_bytes and _is_served(replica.volume_id, heads, wanted):
            acts.append(Resize(replica.volume_id, replica.size_bytes))
        if journals.get(replica.volume_id) not in (None, replica.journal):
            acts.append(Keep(replica.volume_id, replica.journal))
    for volume_id, head_wish in wanted.items():
        if volume_id in sizes and (volume_id, head_wish.epoch) not in released:
            acts += _head_acts(head_wish, heads.get(volume_id), filled, told)
    acts += _path_acts(wish, seen, shown)
    kept = {replica.volume_id for replica in wish.replicas}
    for volume_id in wish.erased:
        if volume_id in sizes and volume_id not in wanted and volume_id not in kept:
            acts.append(Erase(volume_id))
    return acts


def _path_acts(
    wish: DaemonWish,
    seen: DaemonSeen,
    shown: Mapping[VolumeId, PathWish],
) -> list[Act]:
    """Return what is to be shown to hosts. A head that opens takes its path over: none ends for it.

    A daemon that was started anew shows nothing, whatever it was told before.
    """
    standing = {volume.volume_id: volume.stands_by for volume in seen.volumes}
    wanted = {path.volume_id: path for path in wish.paths}
    led = {head.volume_id for head in wish.heads}
    acts: list[Act] = [
        EndStandby(volume_id)
        for volume_id, stands_by in standing.items()
        if stands_by and volume_id not in wanted and volume_id not in led
    ]
    for volume_id, path in wanted.items():
        is_shown = standing.get(volume_id) and shown.get(volume_id) == path
        if volume_id in standing and not is_shown:
            acts.append(StandBy(path))
    return acts


def _is_served(
    volume_id: VolumeId, heads: Mapping[VolumeId, HeadSeen], wanted: Mapping[VolumeId, HeadWish]
) -> bool:
    head, wish = heads.get(volume_id), wanted.get(volume_id)
    return head is not None and wish is not None and head.is_ready and head.epoch == wish.epoch


def _head_acts(
    wish: HeadWish,
    head: HeadSeen | None,
    filled: Collection[VolumeId],
    told: Mapping[VolumeId, HeadWish],
) -> list[Act]:
    if head is None:
        return [OpenHead(wish)]
    if head.epoch != wish.epoch or not head.is_ready:
        return []
    if wish.image_sha256 and wish.volume_id not in filled:  # also what was begun and broke off
        return [Fill(wish.volume_id, wish.image_sha256)]
    last = told.get(wish.volume_id)
    if last is None or _terms(last) != _terms(wish):
        return [Tell(wish)]
    return []


def _terms(wish: HeadWish) -> tuple[object, ...]:
    login = wish.chap, wish.chap_own, wish.initiators, wish.groups
    return *login, wish.limits, wish.rpo, wish.bound
