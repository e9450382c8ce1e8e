"""Use cases on a volume's past: what its journal keeps, marks, clones, rollback (paper §III-D)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from nuage.errors import (
    Conflict,
    InvalidRequest,
    Locked,
    Lost,
    Moving,
    NotFound,
    StaleEpoch,
    Unavailable,
)
from nuage.iaas.building import require_quota
from nuage.iaas.epochs import FIRST_EPOCH
from nuage.iaas.keys import require_key
from nuage.iaas.operations import Operation, OperationTable, Shown, iaas_scope
from nuage.iaas.showing import show
from nuage.iaas.site import Site
from nuage.iaas.volumes import new_volume, require_promise, volume_home, volume_of
from nuage.ids import NodeId
from nuage.model.contract import AckPolicy
from nuage.model.history import (
    IMAGE_MARK,
    MARK_CHARS_MAX,
    AskHistory,
    AskMark,
    AskMoment,
    AskRollback,
    CloneOrigin,
    FoundMoment,
    Marked,
    Moment,
    VolumeHistory,
)
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import require_slug
from nuage.model.vm import Vm, VmState
from nuage.model.volume import Volume, VolumeState
from nuage.storage.heads import is_settled
from nuage.trust.permissions import Principal

HISTORY_METHOD = "volume.history"
MOMENT_METHOD = "volume.moment"
MARK_METHOD = "volume.mark"
ROLLBACK_METHOD = "volume.rollback"
ASK_TIMEOUT_S = 10.0
STOPPING_WAIT_S = 10.0  # a VM on its way down, or whose stop another site has not told yet
STOPPING_POLL_S = 0.05
GROUPS_MAX = 1000
FOUND_MISSING = ("no mark", "no view")  # how an open head begins to say what it has not

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ReadHistory:
    """Ask what a volume's journal keeps, from after a sequence number on."""

    iaas: str
    volume: str
    after: int = 0
    count: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkVolumes:
    """Name this instant in the journals of a volume, and of others with the same head."""

    iaas: str
    volume: str
    name: str
    together_with: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneVolume:
    """Make a volume that starts from another's past; no moment means: from now."""

    iaas: str
    volume: str
    name: str
    sequence: int | None = None
    time_s: float | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackVolume:
    """Take a volume back; its VM must be stopped, or `force` be set."""

    iaas: str
    volume: str
    sequence: int | None = None
    time_s: float | None = None
    mark: str = ""
    force: bool = False


def head_of(site: Site, volume: Volume) -> NodeId:
    """Return where a volume's past can be asked for.

    Raises:
        Moving: it is being made.
        Conflict: it has no head now, or nobody can read it any more.
    """
    require_key(site, volume.iaas_id)
    if volume.state is VolumeState.CREATING:
        raise _opening(volume)
    if volume.head is None or volume.state is not VolumeState.READY:
        raise Conflict(f"volume {volume.name} is {volume.state.value}; it has no head to ask")
    return volume.head


async def ask_head(site: Site, volume: Volume, method: str, body: object, result: type[R]) -> R:
    """Ask the head of a volume, which does nothing where it is not open.

    Raises:
        Moving: it is being opened.
    """
    try:
        head = head_of(site, volume)
        return await site.nodes.ask(head, method, body, result, timeout_s=ASK_TIMEOUT_S)
    except NotFound as error:
        if error.message.startswith(FOUND_MISSING):
            raise
        raise _opening(volume) from error
    except (Unavailable, StaleEpoch) as error:
        known = site.index.find_value(Volume, volume.volume_id)
        if isinstance(error, Lost | Locked) or known is None or is_settled(known):
            raise
        raise _opening(volume) from error


def _opening(volume: Volume) -> Moving:
    return Moving(
        f"the head of {volume.name} is being opened",
        hint=f"`nuage volume show {volume.name}` tells how it is; ask again",
    )


async def read_history(site: Site, _principal: Principal, body: ReadHistory) -> VolumeHistory:
    """Ask the head what its journal keeps."""
    volume = volume_of(site, body.iaas, body.volume)
    if not 0 < body.count <= GROUPS_MAX:
        raise InvalidRequest(f"1 to {GROUPS_MAX} groups at a time", field="count")
    ask = AskHistory(
        iaas_id=volume.iaas_id,
        volume_id=volume.volume_id,
        after_sequence=body.after,
        count=body.count,
    )
    return await ask_head(site, volume, HISTORY_METHOD, ask, VolumeHistory)


async def mark_volumes(site: Site, _principal: Principal, body: MarkVolumes) -> Marked:
    """Write one mark into the journals of a group of volumes at one instant."""
    if not 0 < len(body.name) <= MARK_CHARS_MAX:
        raise InvalidRequest(f"a mark's name has 1 to {MARK_CHARS_MAX} characters", field="name")
    if body.name == IMAGE_MARK:
        raise InvalidRequest(f"{IMAGE_MARK!r} marks where a volume was its image", field="name")
    names = (body.volume, *body.together_with)
    volumes = [volume_of(site, body.iaas, name) for name in names]
    heads = {head_of(site, volume) for volume in volumes}
    if len(heads) > 1:
        raise Conflict(
            f"the volumes have heads on {', '.join(sorted(heads))}",
            hint="a mark at one instant needs one head; move the volumes together first",
        )
    ask = AskMark(
        iaas_id=volumes[0].iaas_id,
        volume_ids=tuple(volume.volume_id for volume in volumes),
        name=body.name,
    )
    return await ask_head(site, volumes[0], MARK_METHOD, ask, Marked)


async def clone_volume(site: Site, _principal: Principal, body: CloneVolume) -> Shown[Volume]:
    """Make a volume from another's past: at once, sharing what both have in common."""
    source = volume_of(site, body.iaas, body.volume)
    require_slug(body.name, "name")
    found = await find_moment(site, source, body.sequence, body.time_s, body.mark)
    iaas = site.index.value(Iaas, source.iaas_id)
    require_quota(site, iaas, asked=(0, 0, 0, found.size_bytes))
    fresh = new_volume(
        site, iaas, name=body.name, size_bytes=found.size_bytes, sector_bytes=source.sector_bytes
    )
    clone = started_from(fresh, source, Moment(sequence=found.sequence))
    require_promise(site, iaas, clone, more_bytes=clone.size_bytes)
    await site.save(clone, unique_name=True)
    text = f"{clone.name} starts from {source.name} at write {found.sequence}"
    site.announce("volume", clone.volume_id, "cloned", text)
    return show(site, clone)


def started_from(fresh: Volume, source: Volume, moment: Moment) -> Volume:
    """Return `fresh` as a clone: on the nodes that hold all of `source`, each from its own copy.

    Raises:
        Conflict: too few nodes hold all of it now.
    """
    behind = {*source.catching_up, *source.without, *source.leaving}
    places = tuple(place for place in source.replicas if place.node_id not in behind)
    needed = 2 if source.ack_policy in (AckPolicy.METRO, AckPolicy.ANY_2_OF_3) else 1
    if len(places) < needed or source.head is None:
        raise Conflict(
            f"only {len(places)} copies of {source.name} are whole now",
            hint="wait until its copies have caught up",
        )
    missing = tuple(p.node_id for p in source.replicas if p.node_id in source.catching_up)
    return replace(
        fresh,
        origin=CloneOrigin(
            volume_id=source.volume_id,
            moment=moment,
            nodes=tuple(place.node_id for place in source.replicas),
        ),
        replicas=source.replicas,  # the past lies there, and so within the contract
        without=source.without,
        catching_up=missing,
        head=source.head,
        epoch=FIRST_EPOCH,
    )


async def find_moment(
    site: Site, volume: Volume, sequence: int | None, time_s: float | None, mark: str
) -> FoundMoment:
    """Ask the head which write a moment is; no moment means the last one."""
    is_given = sequence is not None or time_s is not None or bool(mark)
    ask = AskMoment(
        iaas_id=volume.iaas_id,
        volume_id=volume.volume_id,
        moment=Moment(sequence=sequence, time_s=time_s, mark=mark) if is_given else None,
    )
    with _told_of(volume, time_s, mark):
        return await ask_head(site, volume, MOMENT_METHOD, ask, FoundMoment)


@contextmanager
def _told_of(volume: Volume, time_s: float | None, mark: str) -> Iterator[None]:
    """Have the head's refusal of a moment say which volume lacks which moment."""
    hint = f"`nuage volume history {volume.name}` shows what can be gone back to"
    try:
        yield
    except NotFound as error:
        if not mark:
            raise
        raise NotFound(f"mark in the history of {volume.name}:", mark, hint=hint) from error
    except InvalidRequest as error:
        told = f"{volume.name}: {error.message}"
        if time_s is not None:
            asked = datetime.fromtimestamp(time_s, UTC)
            told = f"the history of {volume.name} begins after {asked:%Y-%m-%d %H:%M:%S} UTC"
        raise InvalidRequest(told, field="moment", hint=hint) from error


async def require_stopped(site: Site, volume: Volume) -> None:
    """Return once the VM that has a volume has stopped, if it is stopping; raise Conflict else."""
    deadline_s = site.clock.monotonic_s() + STOPPING_WAIT_S
    while True:
        vm = None if volume.vm_id is None else site.index.find_value(Vm, volume.vm_id)
        if vm is None or vm.state is VmState.STOPPED:
            return
        if vm.state is not VmState.STOPPING or site.clock.monotonic_s() >= deadline_s:
            raise Conflict(
                f"{vm.name} is {vm.state.value} and uses {volume.name}",
                hint=f"nuage vm stop {vm.name}, roll back, then start it again",
            )
        await site.clock.sleep(STOPPING_POLL_S)


async def rollback_volume(site: Site, _principal: Principal, body: RollbackVolume) -> Shown[Volume]:
    """Take a volume back to a moment; what came since stays in its journal."""
    volume = volume_of(site, body.iaas, body.volume)
    if not body.force:
        await require_stopped(site, volume)
    ask = AskRollback(
        iaas_id=volume.iaas_id,
        volume_id=volume.volume_id,
        moment=Moment(sequence=body.sequence, time_s=body.time_s, mark=body.mark),
        force=body.force,
    )
    with _told_of(volume, body.time_s, body.mark):
        await ask_head(site, volume, ROLLBACK_METHOD, ask, type(None))
    text = f"{volume.name} is back at {ask.moment}"
    site.announce("volume", volume.volume_id, "rolled-back", text)
    return show(site, volume)


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    path = "/v1/iaas/{iaas}/volumes/{volume}"
    table.add(
        Operation(
            name="volume.history",
            verb="GET",
            path=path + "/history",
            body=ReadHistory,
            result=VolumeHistory,
            action="volume.read",
            summary="Tell what a volume's journal keeps",
            run=read_history,
            scope=iaas_scope,
            home=volume_home,
        )
    )
    table.add(
        Operation(
            name="volume.mark",
            verb="POST",
            path=path + "/marks",
            body=MarkVolumes,
            result=Marked,
            action="volume.write",
            summary="Name this instant in the journals of one or several volumes",
            run=mark_volumes,
            scope=iaas_scope,
            home=volume_home,
            status=201,
        )
    )
    table.add(
        Operation(
            name="volume.clone",
            verb="POST",
            path=path + "/clone",
            body=CloneVolume,
            result=Shown[Volume],
            action="volume.create",
            summary="Make a volume from any moment of another's past",
            run=clone_volume,
            scope=iaas_scope,
            home=volume_home,
            status=202,
        )
    )
    table.add(
        Operation(
            name="volume.rollback",
            verb="POST",
            path=path + "/rollback",
            body=RollbackVolume,
            result=Shown[Volume],
            action="volume.rollback",
            summary="Take a volume back to any moment of its past",
            run=rollback_volume,
            scope=iaas_scope,
            home=volume_home,
        )
    )
