"""How the copies of a volume stand with its head: what each lacks, and what waits for it.

A head tells it in each report; it is known at the volume's home and nowhere kept. What changes in
it that somebody must hear of is put on the event stream.
"""

import time
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Final

from nuage.iaas.operations import Operation, OperationTable, iaas_scope
from nuage.iaas.site import Site
from nuage.iaas.volumes import NameVolume, volume_home, volume_of
from nuage.ids import NodeId, SiteId
from nuage.model.contract import AckPolicy
from nuage.model.desired import Answering, CopyReport, HeadReport, Rebuild, ShareReport
from nuage.model.iaas import Iaas
from nuage.model.volume import Volume, VolumeState
from nuage.storage.heads import PAIR, head_set
from nuage.trust.permissions import Principal
from nuage.units import GIB, format_size

VIEWS_HOLD_BYTES: Final = GIB  # history that open views may hold back before it is announced
WAIT_TOLD_AFTER_S: Final = 5.0  # of silence; a daemon that is started anew is back within two
DAY_S: Final = 86_400


class CopyState(Enum):
    """How a copy stands with a head that works."""

    LIVE = "live"
    CATCHING_UP = "catching up"
    MADE_ANEW = "made anew"
    CUT_OFF = "cut off"
    FAILED = "failed or full"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStanding:
    """One copy. `lag_s` is the age of the oldest write that it lacks; `state` how it stands.

    `lag_is_at_least`: it lacks so much and maybe more. `silent_since_s`: it is cut off since then.
    `rebuild`: how far it is that is made anew.
    """

    node: NodeId
    site: SiteId
    state: str
    lag_writes: int = 0
    lag_bytes: int = 0
    lag_s: float = 0.0
    lag_is_at_least: bool = False
    silent_since_s: float | None = None
    rebuild: Rebuild | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeStanding:
    """All copies of a volume, how writes are answered, and the RPO that its contract promises.

    `share` is what the IaaS has of the disk under the head. `waits_for`: no write is acknowledged
    before these copies are back, or somebody decides to go on without them.
    """

    answering: str
    rpo_s: int
    copies: tuple[CopyStanding, ...]
    share: ShareReport | None = None
    waits_for: tuple[NodeId, ...] = ()


async def show_standing(site: Site, _principal: Principal, body: NameVolume) -> VolumeStanding:
    """Say how the copies of a volume stand now."""
    volume = volume_of(site, body.iaas, body.volume)
    iaas = site.index.value(Iaas, volume.iaas_id)
    head = site.heads_seen.get(volume.volume_id)
    is_old = head is not None and head.epoch != volume.epoch
    if is_old or volume.state is VolumeState.FAILED:
        head = None  # of another head, before this one, or of one that is no more
    return VolumeStanding(
        answering="unknown" if head is None else head.answering.value,
        rpo_s=iaas.contract.rpo.seconds,
        copies=tuple(
            _standing(volume, place.node_id, place.site_id, head) for place in volume.replicas
        ),
        share=_share(site, volume),
        waits_for=() if head is None else _waited_for(volume, head),
    )


def _share(site: Site, volume: Volume) -> ShareReport | None:
    report = None if volume.head is None else site.ionodes_seen.get(volume.head)
    if report is None:
        return None
    disks = {replica.volume_id: replica.disk for replica in report.replicas}
    wanted = (volume.iaas_id, disks.get(volume.volume_id))
    return next((s for s in report.shares if (s.iaas_id, s.disk) == wanted), None)


def _standing(
    volume: Volume, node_id: NodeId, site_id: SiteId, head: HeadReport | None
) -> CopyStanding:
    if node_id == volume.head:
        state = "unknown" if head is None else "head"
        return CopyStanding(node=node_id, site=site_id, state=state)
    if node_id in volume.without:
        return CopyStanding(node=node_id, site=site_id, state="left out")
    seen = None if head is None else next((c for c in head.copies if c.node_id == node_id), None)
    if seen is None:
        return CopyStanding(node=node_id, site=site_id, state="unknown")
    return CopyStanding(
        node=node_id,
        site=site_id,
        state=_state(seen).value,
        lag_writes=seen.lag_writes,
        lag_bytes=seen.lag_bytes,
        lag_s=seen.lag_s,
        lag_is_at_least=seen.lag_is_at_least,
        silent_since_s=seen.silent_since_s,
        rebuild=seen.rebuild,
    )


def _state(seen: CopyReport) -> CopyState:
    if not seen.is_connected:
        return CopyState.CUT_OFF
    if seen.is_failed:
        return CopyState.FAILED
    if seen.silent_since_s is not None:
        return CopyState.CUT_OFF
    if seen.rebuild is not None:
        return CopyState.MADE_ANEW
    return CopyState.LIVE if seen.is_live else CopyState.CATCHING_UP


def _takes_no_write(volume: Volume, seen: CopyReport, since_s: float) -> bool:
    """Tell whether a copy has taken no write since that time or before.

    One that is filled for the first time is not told so: its volume is shown as behind.
    """
    match _state(seen):
        case CopyState.CUT_OFF:
            return seen.silent_since_s is None or seen.silent_since_s <= since_s
        case CopyState.FAILED:
            return True
        case CopyState.MADE_ANEW:
            return seen.node_id not in volume.catching_up
        case _:
            return False


def _waited_for(volume: Volume, head: HeadReport, *, since_s: float = inf) -> tuple[NodeId, ...]:
    """Return the copies that each write needs and that take none, since that time or before."""
    asked = head_set(volume)
    away = {copy.node_id for copy in head.copies if _takes_no_write(volume, copy, since_s)}
    lacking = tuple(node for node in asked.acknowledging if node in away)
    spare = len(asked.acknowledging) - PAIR if asked.policy is AckPolicy.ANY_2_OF_3 else 0
    return lacking if len(lacking) > spare else ()


def note_head(site: Site, head: HeadReport) -> None:
    """Keep what an IO-node says of a head, and announce what its owner should hear of."""
    volume = site.index.find_value(Volume, head.volume_id)
    if volume is None or volume.epoch != head.epoch:
        return
    before = site.heads_seen.get(head.volume_id)
    site.heads_seen[head.volume_id] = head
    if site.index.home("volume", volume.volume_id) != site.site_id:
        return
    iaas = site.index.find_value(Iaas, volume.iaas_id)
    bound_s = 0 if iaas is None else iaas.contract.rpo.seconds
    for what, text in (
        *_news(volume, bound_s, before, head),
        *_news_of_past(site, volume, before, head),
        *_news_of_waits(site, volume, head),
        *_news_of_copies(site, volume, head),
    ):
        site.announce("volume", volume.volume_id, what, f"{volume.name}: {text}")


def _news_of_past(
    site: Site, volume: Volume, before: HeadReport | None, head: HeadReport
) -> list[tuple[str, str]]:
    """Return what leaves the history early, once a day, what views keep, and whether it is full."""
    news = []
    past = head.past
    was_full = before is not None and before.past.is_full
    if past.is_full and not was_full:
        text = (
            "its history is full and strict: writes are refused until some of it is of age, or the "
            "contract says otherwise: `nuage iaas set NAME` with fewer `--journal-hours`, more "
            "`--journal-size`, or `--no-journal-strict`"
        )
        news.append(("history-full", text))
    elif was_full and not past.is_full:
        news.append(("history-has-room", "its history has room again: writes go on"))
    day = int(past.dropped_early_s) // DAY_S
    if day > site.drops_told.get(volume.volume_id, 0):
        site.drops_told[volume.volume_id] = day
        begin = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(past.kept_from_s))
        text = f"history leaves before its time, for its bytes: it is kept from {begin} UTC on"
        news.append(("history-dropped", text))
    held_before = 0 if before is None else before.past.held_by_views_bytes
    if held_before <= VIEWS_HOLD_BYTES < past.held_by_views_bytes:
        size = format_size(past.held_by_views_bytes)
        hint = f"nuage volume at {volume.name} --close VIEW ends one"
        news.append(("history-held", f"open views hold back {size} of history; {hint}"))
    elif past.held_by_views_bytes <= VIEWS_HOLD_BYTES < held_before:
        news.append(("history-freed", "open views hold back little or no history any more"))
    return news


def _news_of_waits(site: Site, volume: Volume, head: HeadReport) -> list[tuple[str, str]]:
    """Return that no write is acknowledged, for want of which copies, and that they go on again."""
    told = site.waits_told.get(volume.volume_id, ())
    waits = _waited_for(volume, head, since_s=site.clock.now_s() - WAIT_TOLD_AFTER_S)
    if waits == told:
        return []
    if not waits:
        del site.waits_told[volume.volume_id]
        return [("writes-go-on", "writes go on")]
    site.waits_told[volume.volume_id] = waits
    nodes = ", ".join(waits)
    hint = (
        f"they go on when it has everything, or without it by `nuage volume degrade {volume.name}`"
    )
    return [("writes-wait", f"writes wait for the copy on {nodes}; {hint}")]


def _news_of_copies(site: Site, volume: Volume, head: HeadReport) -> list[tuple[str, str]]:
    """Return which copies are made anew, and which of them have everything again.

    A copy that is filled for the first time was announced when it was begun, and its end is too.
    """
    told = site.anew_told.get(volume.volume_id, frozenset())
    states = {copy.node_id: _state(copy) for copy in head.copies}
    known = {node for node in states if node not in volume.catching_up}
    begun = {node for node in known if states[node] is CopyState.MADE_ANEW} - told
    ended = {node for node in known & told if states[node] is CopyState.LIVE}
    if begun or ended:
        site.anew_told[volume.volume_id] = (told | begun) - ended
    why = "its log cannot be joined to that of the head, or its disk is new"
    done = "was made anew and has everything"
    return [
        *(("copy-anew", f"the copy on {node} is made anew: {why}") for node in sorted(begun)),
        *(("copy-whole", f"the copy on {node} {done}") for node in sorted(ended)),
    ]


def _news(
    volume: Volume, bound_s: int, before: HeadReport | None, head: HeadReport
) -> list[tuple[str, str]]:
    """Return what changed about the RPO since the last report, for people.

    A copy that is being filled has nothing promised of it yet.
    """
    if not bound_s:
        return []
    same = before if before is not None and before.epoch == head.epoch else None
    news = []
    was = Answering.AT_ONCE if same is None else same.answering
    if head.answering is not was:
        news.append(("rpo", _answering_line(bound_s, head)))
    broken = _beyond(bound_s, head) - set(volume.catching_up)
    broken_before = _beyond(bound_s, same) - set(volume.catching_up)
    for copy in sorted(broken - broken_before):
        text = f"the copy on {copy} is cut off, and more than {bound_s} s behind: the RPO is broken"
        news.append(("rpo-broken", text))
    near = sorted(broken_before - broken)
    news += [("rpo-kept", f"the copy on {copy} is near again: the RPO is kept") for copy in near]
    return news


def _beyond(bound_s: int, head: HeadReport | None) -> set[NodeId]:
    """Return the copies that lack more than the RPO allows while nobody waits for them."""
    copies = () if head is None else head.copies
    return {copy.node_id for copy in copies if copy.is_let_go and copy.lag_s > bound_s}


def _answering_line(bound_s: int, head: HeadReport) -> str:
    if head.answering is Answering.AT_ONCE:
        let_go = [copy.node_id for copy in head.copies if copy.is_let_go]
        why = f"nobody waits for {', '.join(let_go)}" if let_go else "its copies are near"
        return f"writes are answered at once again: {why}"
    bound = [copy for copy in head.copies if not copy.is_let_go]
    worst = max(bound, key=lambda copy: copy.lag_s, default=None)
    behind = "" if worst is None else f": the copy on {worst.node_id} is {worst.lag_s:.1f} s behind"
    word = "slowed" if head.answering is Answering.SLOWED else "held back"
    return f"writes are {word}{behind}, and the contract allows {bound_s} s"


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="volume.copies",
            verb="GET",
            path="/v1/iaas/{iaas}/volumes/{volume}/copies",
            body=NameVolume,
            result=VolumeStanding,
            action="volume.read",
            summary="Say how far each copy of a volume is behind its head",
            run=show_standing,
            scope=iaas_scope,
            home=volume_home,
        )
    )
