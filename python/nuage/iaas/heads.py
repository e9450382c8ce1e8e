"""The heads and copies of this site's volumes: kept, moved, replaced. The home acts.

::

    the node of a head is lost     head_lost: another copy of this site under the next local epoch,
                                   else at another site under the quorum's next
    the VM runs at another site    the head follows: released here, taken there; where a fault drove
                                   it from its VM, once the IO-node there has served for a while
    a site is gone                 its volumes' heads are taken over where their VMs still run
    a copy comes back, joins, goes one step at a time (`storage.heads.next_step`)

What may open where is `storage.heads`' word, who may do it the quorum's, and that the former head
writes nothing more is ensured by the copies themselves: they promise each epoch once. So a head
that was thought dead and was not costs an interruption, never a write.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from nuage.errors import Conflict, NoCandidate, NuageError
from nuage.iaas.disks import note_report
from nuage.iaas.epochs import EPOCH_STEP, next_local, quorum_part
from nuage.iaas.erasure import end_done, erasure_of, is_gone
from nuage.iaas.infrastructure import answers
from nuage.iaas.keys import UNREADABLE
from nuage.iaas.promises import Promises
from nuage.iaas.site import Site
from nuage.iaas.standing import note_head
from nuage.iaas.volumes import ionode_spaces, promised_on
from nuage.ids import IaasId, NodeId, SiteId, VolumeId
from nuage.model.desired import CopyReport, IonodeReport
from nuage.model.iaas import Iaas, IaasKey
from nuage.model.infrastructure import Datacenter, Node
from nuage.model.status import NODE_LOST_AFTER_S, NodeStatus
from nuage.model.vm import Vm, VmState
from nuage.model.volume import Erasure, ReplicaPlace, Volume, VolumeState
from nuage.storage.heads import (
    AddCopy,
    Complete,
    Drop,
    Include,
    KeyAnew,
    MoveHead,
    Replace,
    Repolicy,
    Retire,
    Step,
    VolumeFacts,
    held_up,
    is_settled,
    next_head,
    next_step,
    whole_copies,
)
from nuage.storage.places import choose_another

TAKE_HEAD_METHOD = "volume.take-head"
RELEASE_METHOD = "volume.release-head"
ASK_TIMEOUT_S = 10.0
NEAR_REST_S = 60.0  # of service without a break, before a head goes back to where it fled from
FAILED_HEAD_REST_S = 10.0  # between two automatic moves of a head that fails by itself
STEP_REST_S = 5.0  # between two steps of one volume that could not be taken
NO_PLACE_REST_S = 60.0  # before a place is looked for again where none was
REPLACE_LOST_AFTER_S = 900.0  # a node that restarts or is repaired on the spot is back by then
HELD_UP_AFTER_S = 30.0  # without a step for one reason: a daemon that is started is up by then
REPLACED_AT_ONCE = 1  # of a node's copies, by each home: they are moved away one by one
log = structlog.get_logger("heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeHead:
    """Gives a volume to the site that it is sent to; `volume` as it shall be there."""

    volume: Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseHead:
    """A controller has an IO-node close a head for the next to open at once."""

    iaas_id: IaasId
    volume_id: VolumeId
    epoch: int
    reopen: bool = False


class HeadKeeper:
    """Heads and copies of the volumes whose home this site is."""

    def __init__(
        self,
        site: Site,
        *,
        replace_lost_after_s: float = REPLACE_LOST_AFTER_S,
        is_away: Callable[[NodeId], bool] = lambda _node: False,
    ) -> None:
        self._site = site
        self._is_away = is_away  # an IO-node of this site whose agent can be asked nothing now
        self._replace_lost_after_s = replace_lost_after_s
        self._copies: dict[tuple[VolumeId, int], dict[NodeId, CopyReport]] = {}
        self._lost: set[NodeId] = set()
        self._heard_s: dict[NodeId, float] = {}
        self._left_out_s: dict[tuple[VolumeId, NodeId], float] = {}
        self._moved_s: dict[VolumeId, float] = {}
        self._fled: dict[VolumeId, tuple[SiteId, float]] = {}  # taken away from its VM there, when
        self._rest_until_s: dict[VolumeId, float] = {}
        self._held_since: dict[VolumeId, tuple[str, float]] = {}
        self._claimed: set[VolumeId] = set()
        self._busy: set[VolumeId] = set()

    # Facts ----------------------------------------------------------------------------------------

    def take_report(self, report: IonodeReport) -> None:
        """Keep what heads say of their copies."""
        self._lost.discard(report.node_id)
        self._heard_s[report.node_id] = self._site.clock.monotonic_s()
        note_report(self._site, report)
        for head in report.heads:
            key = (head.volume_id, head.epoch)
            self._copies[key] = {copy.node_id: copy for copy in head.copies}
            note_head(self._site, head)

    def is_usable(self, node_id: NodeId) -> bool:
        """Tell whether a node answers, as far as this site knows."""
        return node_id not in self._lost and answers(self._site, node_id)

    def own(self) -> list[Volume]:
        """Return the volumes whose home this site is."""
        site = self._site
        return [
            record.value
            for record in site.index.records("volume")
            if record.home == site.site_id and isinstance(record.value, Volume)
        ]

    def vm_site(self, volume: Volume) -> SiteId | None:
        """Return the site at which a running VM uses a volume: its head goes there."""
        vm = None if volume.vm_id is None else self._site.index.find_value(Vm, volume.vm_id)
        return None if vm is None or vm.state is not VmState.RUNNING else vm.site_id

    def heads_on(self, node_id: NodeId) -> list[Volume]:
        """Return this site's volumes whose head is on a node."""
        index = self._site.index
        return [
            volume
            for volume in index.on_node(Volume, node_id)
            if volume.head == node_id
            and volume.state is VolumeState.READY
            and index.home("volume", volume.volume_id) == self._site.site_id
        ]

    # A head is lost -------------------------------------------------------------------------------

    async def node_lost(self, node_id: NodeId) -> None:
        """Open the heads of a silent IO-node at other copies."""
        self._lost.add(node_id)
        for volume in self.heads_on(node_id):
            await self._guarded(volume, f"its IO-node {node_id} is lost")

    async def head_failed(self, volume: Volume, reason: str) -> None:
        """Open elsewhere a head that says it can go no further."""
        now_s = self._site.clock.monotonic_s()
        if now_s - self._moved_s.get(volume.volume_id, -FAILED_HEAD_REST_S) >= FAILED_HEAD_REST_S:
            await self._guarded(volume, reason)

    async def open_elsewhere(self, volume: Volume, reason: str) -> bool:
        """Open at another copy a head that waits for an agent; False: none may open there now."""
        place = self._next_head(volume)
        if place is None or self._is_away(place.node_id):
            return False
        await self._guarded(volume, reason)
        return True

    def _next_head(self, volume: Volume) -> ReplicaPlace | None:
        return next_head(
            volume, is_usable=self.is_usable, near=self.vm_site(volume), is_away=self._is_away
        )

    async def _guarded(self, volume: Volume, reason: str) -> None:
        """Fail one head over; the next volume does not wait for what hinders this one."""
        if volume.volume_id in self._busy:
            return
        self._busy.add(volume.volume_id)
        try:
            await self._fail_over(volume, reason)
        except NuageError as error:
            log.warning("head not moved", volume=volume.volume_id, error=error.message)
        finally:
            self._busy.discard(volume.volume_id)

    async def _fail_over(self, volume: Volume, reason: str) -> None:
        place = self._next_head(volume)
        if place is None:
            told = f"{reason}; no other copy may take over now"
            if volume.failure != told:
                await self._site.save(replace(volume, failure=told))
                self._site.announce("volume", volume.volume_id, "stopped", f"{volume.name}: {told}")
            return
        self._moved_s[volume.volume_id] = self._site.clock.monotonic_s()
        await self.open_at(replace(volume, failure=""), place, reason)

    async def open_at(self, volume: Volume, place: ReplicaPlace, reason: str) -> Volume:
        """Enter that the head of `volume` opens at `place`, under the next epoch; return it so.

        Raises:
            Conflict: the quorum says that the volume is not this site's.
            Unavailable: no majority answers; nothing was done.
        """
        site = self._site
        if place.site_id == site.site_id:
            moved = replace(volume, head=place.node_id, epoch=next_local(volume.epoch))
            await site.save(moved)
        else:
            moved = await self._give(volume, place)
            self._claimed.discard(volume.volume_id)
        text = f"{volume.name}: head opens on {place.node_id} ({reason})"
        site.announce("volume", volume.volume_id, "head-moved", text)
        return moved

    async def _give(self, volume: Volume, place: ReplicaPlace) -> Volume:
        """Have the site of `place` be the home of a volume; nobody changes its record meanwhile."""
        site = self._site
        site.hand_over(volume.volume_id)
        try:
            epoch = await self._hand_over(volume, place.site_id)
            moved = replace(volume, head=place.node_id, epoch=epoch)
            asked = TakeHead(volume=moved)
            await site.others.ask(
                place.site_id, TAKE_HEAD_METHOD, asked, type(None), timeout_s=ASK_TIMEOUT_S
            )
        except BaseException:
            site.handed_over.pop(volume.volume_id, None)
            raise
        site.hand_over(volume.volume_id, moved.epoch)
        return moved

    async def _hand_over(self, volume: Volume, target: SiteId) -> int:
        """Have the quorum give a volume to `target`; return the epoch it has there."""
        site, quorum, volume_id = self._site, self._site.quorum, volume.volume_id
        held = await quorum.owner("volume", volume_id)
        if held is None:
            held = await quorum.claim("volume", volume_id, site.site_id, expected_epoch=0)
        if held.owner == target:  # an earlier try got through and its answer was lost
            return held.epoch * EPOCH_STEP
        if held.owner != site.site_id:
            raise Conflict(f"{volume_id} belongs to {held.owner} by the quorum")
        given = await quorum.transfer(
            "volume",
            volume_id,
            from_site=site.site_id,
            to_site=target,
            expected_epoch=held.epoch,
        )
        return given.epoch * EPOCH_STEP

    async def take(self, asked: TakeHead) -> None:
        """Become the home of a volume that the quorum gave to this site (asked by its home).

        Raises:
            Conflict: the quorum has not given it, or an earlier wish of its home came first.
        """
        site, volume = self._site, asked.volume
        held = await site.quorum.owner("volume", volume.volume_id)
        if held is None or held.owner != site.site_id or held.epoch != quorum_part(volume.epoch):
            raise Conflict(f"the quorum has not given {volume.volume_id} to {site.site_id}")
        known = site.index.find("volume", volume.volume_id)
        if known is None or known.home != site.site_id or known.epoch < volume.epoch:
            await site.save_moving(volume, epoch=volume.epoch)
        elif known.epoch == volume.epoch and _less_is_left_out(known.value, volume):
            raise Conflict(
                f"{volume.name} has just gone to {site.site_id}, with other copies",
                hint="ask again",
            )
        self._claimed.add(volume.volume_id)
        near = self.vm_site(volume)
        if near is not None and near != site.site_id:
            self._fled[volume.volume_id] = (near, site.clock.monotonic_s())

    # Step by step ---------------------------------------------------------------------------------

    async def look(self) -> None:
        """Take what steps are due; called every second or two."""
        for volume in self.own():
            if not self._is_due(volume):
                continue
            self._busy.add(volume.volume_id)
            try:
                await self._look_at(volume)
            except NuageError as error:
                rest_s = NO_PLACE_REST_S if isinstance(error, NoCandidate) else STEP_REST_S
                rest_s += self._site.clock.monotonic_s()
                self._rest_until_s[volume.volume_id] = rest_s
                log.warning("step not taken", volume=volume.volume_id, error=error.message)
            finally:
                self._busy.discard(volume.volume_id)
        await self._tidy()

    def _is_due(self, volume: Volume) -> bool:
        if volume.volume_id in self._busy or is_gone(self._site.index, volume):
            return False
        if self._rest_until_s.get(volume.volume_id, 0.0) > self._site.clock.monotonic_s():
            return False
        if volume.volume_id not in self._claimed or is_settled(volume) or volume.catching_up:
            return True
        return self._site.index.is_shredded(volume.iaas_id)

    async def _look_at(self, volume: Volume) -> None:
        if self._site.index.is_shredded(volume.iaas_id):
            gone = replace(volume, state=VolumeState.FAILED, failure=UNREADABLE, portal="")
            if gone != volume:
                await self._site.save(gone)
            return
        if volume.volume_id not in self._claimed:
            await self._claim(volume)
        iaas = self._site.index.find_value(Iaas, volume.iaas_id)
        if iaas is None or volume.is_template:
            return
        facts = self._facts(volume, iaas)
        if not is_settled(volume):
            await self._note_held_up(volume, held_up(volume, facts))
            return
        if volume.journal != iaas.contract.journal:
            await self._site.save(replace(volume, journal=iaas.contract.journal))
            return
        step = next_step(volume, facts)
        if isinstance(step, Replace) and not self._may_replace(step.node_id):
            return
        if isinstance(step, MoveHead) and self._is_away(step.place.node_id):
            return  # it would stand still there until the agent is back
        if step is None:
            await self._note_held_up(volume, held_up(volume, facts))
            return
        log.info("step", volume=volume.volume_id, step=repr(step))
        try:
            await self._take_step(volume, step, iaas)
        except NuageError as error:
            if volume.leaving:
                hint = f" ({error.hint})" if error.hint else ""
                await self._note_held_up(volume, f"{error.message}{hint}")
            raise
        self._held_since.pop(volume.volume_id, None)

    def _facts(self, volume: Volume, iaas: Iaas) -> VolumeFacts:
        return VolumeFacts(
            usable={
                place.node_id
                for place in volume.replicas
                if self._is_reachable(volume, place.node_id)
                and self._is_back(volume, place.node_id)
            },
            wanted_copies=iaas.contract.copies,
            wanted_policy=iaas.contract.ack_policy,
            copies=self._copies.get((volume.volume_id, volume.epoch), {}),
            vm_site=self.vm_site(volume),
            draining={p.node_id for p in volume.replicas if self._is_draining(p.node_id)},
            gone={p.node_id for p in volume.replicas if self._is_gone(p.node_id)},
            resting={p.node_id for p in volume.replicas if self._is_resting(volume, p)},
            may_key_anew=self._may_key_anew(volume),
        )

    async def _note_held_up(self, volume: Volume, reason: str) -> None:
        """Enter what has kept a volume's copies from going on for a while, and say so once."""
        now_s = self._site.clock.monotonic_s()
        before, since_s = self._held_since.get(volume.volume_id, ("", now_s))
        if reason != before:
            since_s = now_s
        self._held_since[volume.volume_id] = (reason, since_s)
        is_news = reason != volume.held_up and now_s - since_s >= HELD_UP_AFTER_S * bool(reason)
        if not is_news:
            return
        await self._site.save(replace(volume, held_up=reason))
        what = "held-up" if reason else "goes-on"
        text = f"its copies do not move: {reason}" if reason else "its copies move on"
        self._site.announce("volume", volume.volume_id, what, f"{volume.name}: {text}")

    def _may_key_anew(self, volume: Volume) -> bool:
        """Tell whether the head writes with a data key before the one that its daemon has now."""
        key = self._site.index.find_value(IaasKey, volume.iaas_id)
        head = self._site.heads_seen.get(volume.volume_id)
        if key is None or head is None or head.epoch != volume.epoch or not head.key_id:
            return False
        return head.key_id != key.key_id == head.next_key_id

    def _is_draining(self, node_id: NodeId) -> bool:
        node = self._site.index.find_value(Node, node_id)
        return node is not None and node.draining

    def _is_gone(self, node_id: NodeId) -> bool:
        """Tell whether a node was lost for so long that its copies are made anew elsewhere.

        Not one that its operator works on: what is in maintenance comes back, or is drained. One
        that was revoked is gone at once.
        """
        node = self._site.index.find_value(Node, node_id)
        status = self._site.index.find_value(NodeStatus, node_id)
        if node is None or status is None or self.is_usable(node_id):
            return False
        if node.maintenance:
            return node.is_revoked
        silent_s = self._site.age_of(status.site_id)
        if not status.connected:
            silent_s = max(silent_s, self._site.clock.now_s() - status.since_s)
        return silent_s >= self._replace_lost_after_s

    def _is_resting(self, volume: Volume, place: ReplicaPlace) -> bool:
        """Tell whether a head that fled from its VM's site is not to go back to a node there yet.

        Each move is a pause, and what has just begun again may well fail again. A head that follows
        a VM has not fled: it goes at once.
        """
        fled = self._fled.get(volume.volume_id)
        status = self._site.index.find_value(NodeStatus, place.node_id)
        if fled is None or status is None or place.site_id != fled[0]:
            return False
        clock = self._site.clock
        served_s = min(clock.monotonic_s() - fled[1], clock.now_s() - status.since_s)
        return served_s < NEAR_REST_S

    def _may_replace(self, node_id: NodeId) -> bool:
        begun = sum(
            node_id in volume.leaving
            and volume.state is VolumeState.READY
            and not volume.held_up
            and not volume.failure
            for volume in self.own()
        )
        return begun < REPLACED_AT_ONCE

    def _is_reachable(self, volume: Volume, node_id: NodeId) -> bool:
        status = self._site.index.find_value(NodeStatus, node_id)
        has_daemon = status is not None and volume.iaas_id in status.replica_addresses
        return has_daemon and self.is_usable(node_id)

    def _is_back(self, volume: Volume, node_id: NodeId) -> bool:
        """Tell whether the node of a copy that is left out was alive after that was decided.

        Until its loss is noticed it passes for one that answers: the head would wait for it again,
        and writes with the head, which its owner has just ended.
        """
        key = (volume.volume_id, node_id)
        if node_id not in volume.without or node_id in volume.catching_up:  # or it is a new copy
            self._left_out_s.pop(key, None)
            return True
        now_s = self._site.clock.monotonic_s()
        since_s = self._left_out_s.setdefault(key, now_s)
        status = self._site.index.value(NodeStatus, node_id)
        if status.site_id == self._site.site_id:
            return self._heard_s.get(node_id, since_s) > since_s
        # What its site says: it has heard the node within the time after which it is lost.
        heard_s = now_s - self._site.age_of(status.site_id) - NODE_LOST_AFTER_S
        return heard_s > since_s and not status.restarting

    async def _take_step(self, volume: Volume, step: Step, iaas: Iaas) -> None:
        match step:
            case Include(node_id=node_id):
                catching = tuple(dict.fromkeys((*volume.catching_up, node_id)))
                left = _less(volume.without, node_id)
                changed = replace(volume, without=left, catching_up=catching)
                await self._reopen(changed, f"{node_id} is brought up to date")
            case Complete(node_id=node_id, reopens=reopens):
                changed = replace(volume, catching_up=_less(volume.catching_up, node_id))
                if reopens:
                    await self._reopen(changed, f"{node_id} has everything")
                else:
                    whole = tuple(dict.fromkeys((*volume.whole, node_id)))
                    await self._site.save(replace(changed, whole=whole))
                    text = f"{volume.name}: the copy on {node_id} has everything"
                    self._site.announce("volume", volume.volume_id, "whole", text)
            case Drop(node_id=node_id):
                await self._drop(volume, node_id)
            case MoveHead(place=place):
                await self.move_head(volume, place)
            case AddCopy():
                await self.add_copy(volume, iaas)
            case Retire(node_id=node_id) | Replace(node_id=node_id):
                await self._site.save(replace(volume, leaving=(*volume.leaving, node_id)))
            case KeyAnew():
                await self._reopen(volume, "its head writes with the new data key")
            case Repolicy(policy=policy):
                changed = replace(volume, ack_policy=policy)
                await self._reopen(changed, f"acknowledges as {policy.value}")

    async def _reopen(self, changed: Volume, reason: str) -> None:
        """Have the head work with another set of copies: closed and opened under the next epoch."""
        await self._site.save(replace(changed, epoch=next_local(changed.epoch)))
        self._site.announce("volume", changed.volume_id, "copies", f"{changed.name}: {reason}")

    async def _drop(
        self, volume: Volume, node_id: NodeId, *, instead: ReplicaPlace | None = None
    ) -> None:
        gone = tuple(place for place in volume.replicas if place.node_id == node_id)
        changed = replace(
            volume,
            replicas=tuple(place for place in volume.replicas if place.node_id != node_id),
            leaving=_less(volume.leaving, node_id),
            without=_less(volume.without, node_id),
            catching_up=_less(volume.catching_up, node_id),
            whole=_less(volume.whole, node_id),
            epoch=next_local(volume.epoch),
            held_up="",
        )
        if instead is not None:
            changed = _with_another(changed, instead)
        site = self._site
        put = erasure_of(site, volume, gone, is_deleted=False)
        await site.commit([site.put(changed), put])
        text = f"{volume.name}: the copy on {node_id} is not needed any more, and is erased"
        if node_id in volume.catching_up:
            text = f"{volume.name}: the copy on {node_id}, which was not filled, is given up"
        site.announce("volume", volume.volume_id, "copies", text)

    async def move_head(self, volume: Volume, place: ReplicaPlace) -> Volume:
        """Move a head that works: released here, so that the next need not wait for a lease.

        Its record is not here any more when another site has taken it; it is returned.
        """
        site = self._site
        assert volume.head is not None
        ask = ReleaseHead(iaas_id=volume.iaas_id, volume_id=volume.volume_id, epoch=volume.epoch)
        begun_s = site.clock.monotonic_s()
        try:
            await site.nodes.ask(
                volume.head, RELEASE_METHOD, ask, type(None), timeout_s=ASK_TIMEOUT_S
            )
            leaves = volume.head in volume.leaving or self._is_draining(volume.head)
            reason = "its copy leaves" if leaves else "near its VM"
            moved = await self.open_at(self._unmoved(volume), place, reason)
        except NuageError:
            back = replace(ask, reopen=True)
            await site.nodes.ask(
                volume.head, RELEASE_METHOD, back, type(None), timeout_s=ASK_TIMEOUT_S
            )
            raise
        took_ms = (site.clock.monotonic_s() - begun_s) * 1000
        log.info("head handed over", volume=volume.volume_id, took_ms=round(took_ms))
        return moved

    def _unmoved(self, volume: Volume) -> Volume:
        """Return a volume as it is now, which somebody may have deleted or changed meanwhile.

        Raises:
            Conflict: it is gone, or its head is opened anew already.
        """
        known = self._site.index.find("volume", volume.volume_id)
        is_own = known is not None and known.home == self._site.site_id
        if known is None or not is_own or not isinstance(known.value, Volume):
            raise Conflict(f"volume {volume.name} is not here any more")
        if known.value.epoch != volume.epoch or is_gone(self._site.index, known.value):
            raise Conflict(f"volume {volume.name} has changed meanwhile", hint="ask again")
        return known.value

    async def add_copy(self, volume: Volume, iaas: Iaas, *, node_id: NodeId | None = None) -> None:
        """Begin another copy, where the contract allows; the head includes it once it is there.

        Raises:
            NoCandidate: no IO-node may take it; each refusal is kept.
        """
        place = self._place_for(volume, iaas, node_id)
        # The head is not touched: it includes the copy once it is there.
        await self._site.save(_with_another(volume, place))
        text = f"{volume.name}: a copy is begun on {place.node_id}"
        self._site.announce("volume", volume.volume_id, "copies", text)

    def _place_for(self, volume: Volume, iaas: Iaas, wanted: NodeId | None) -> ReplicaPlace:
        place = choose_place(self._site, iaas, volume, wanted=wanted)
        erasure = self._site.index.find_value(Erasure, volume.volume_id)
        if erasure is not None and place.node_id in {p.node_id for p in erasure.places}:
            raise Conflict(f"{place.node_id} is still erasing a former copy of {volume.name}")
        return place

    async def fill_elsewhere(
        self, volume: Volume, iaas: Iaas, node_id: NodeId, *, wanted: NodeId | None
    ) -> None:
        """Give up a copy that is being filled on a node, and begin it on another.

        Raises:
            NoCandidate: no other IO-node may take it; each refusal is kept.
        """
        leaving = replace(volume, leaving=(*volume.leaving, node_id))
        place = self._place_for(leaving, iaas, wanted)
        await self._drop(volume, node_id, instead=place)
        text = f"{volume.name}: a copy is begun on {place.node_id}"
        self._site.announce("volume", volume.volume_id, "copies", text)

    # The quorum -----------------------------------------------------------------------------------

    async def _claim(self, volume: Volume) -> None:
        """Own in the quorum what others could take over; creating it asked no majority."""
        elsewhere = any(p.site_id != self._site.site_id for p in volume.replicas)
        if volume.volume_id in self._claimed or not elsewhere:
            return
        held = await self._site.quorum.owner("volume", volume.volume_id)
        if held is None:
            own = self._site.site_id
            await self._site.quorum.claim("volume", volume.volume_id, own, expected_epoch=0)
        self._claimed.add(volume.volume_id)

    async def take_over(self, alive: frozenset[SiteId]) -> None:
        """Take the heads of sites whose lease has run out, of volumes whose VM still runs."""
        site = self._site
        for record in list(site.index.records("volume")):
            volume = record.value
            if record.home in alive or not isinstance(volume, Volume):
                continue
            if self._successor(volume, record.home, alive) != site.site_id:
                continue
            try:
                await self._take_over(volume, record.home)
            except NuageError as error:
                log.info("head not taken over", volume=volume.volume_id, reason=error.message)

    def _successor(self, volume: Volume, gone: SiteId, alive: frozenset[SiteId]) -> SiteId | None:
        """Return who goes on with a volume: where its VM is, else the first with a copy."""
        near = None
        if volume.host is None:
            vm = None if volume.vm_id is None else self._site.index.find_value(Vm, volume.vm_id)
            if vm is None or vm.site_id is None or vm.site_id == gone or vm.site_id not in alive:
                return None  # nobody uses it now; a VM that fails over brings its volumes
            near = vm.site_id
        place = next_head(
            volume,
            is_usable=lambda node: _site_of(volume, node) in alive and self.is_usable(node),
            near=near,
        )
        return None if place is None else place.site_id

    async def _take_over(self, volume: Volume, gone: SiteId) -> None:
        site, quorum = self._site, self._site.quorum
        held = await quorum.owner("volume", volume.volume_id)
        if held is None:
            raise Conflict(f"{volume.volume_id} was never claimed; it stays with {gone}")
        if held.owner != site.site_id:
            held = await quorum.takeover(
                "volume",
                volume.volume_id,
                from_site=gone,
                by_site=site.site_id,
                expected_epoch=held.epoch,
            )
        head = next(p for p in whole_copies(volume) if p.site_id == site.site_id)
        epoch = held.epoch * EPOCH_STEP
        taken = replace(volume, head=head.node_id, epoch=epoch, failure="")
        await site.save_moving(taken, epoch=epoch)
        text = f"{volume.name}: head taken over from {gone}, whose lease has run out"
        site.announce("volume", volume.volume_id, "taken-over", text)

    async def _tidy(self) -> None:
        """Delete this site's old records of volumes that have gone to another home, or are gone."""
        site = self._site
        for record in [r for r in site.index.shadowed() if r.kind == "volume"]:
            shown = site.index.find("volume", record.id)
            if shown is None or quorum_part(shown.epoch) <= quorum_part(record.epoch):
                continue
            held = await site.quorum.owner("volume", record.id)
            if held is not None and held.owner == shown.home:
                await site.delete(record.value)
        own = self.own()
        self._forget_all_but({volume.volume_id: volume.epoch for volume in own})
        for volume in own:
            if is_gone(site.index, volume):
                await site.delete(volume)
        await end_done(site)

    def _forget_all_but(self, epochs: dict[VolumeId, int]) -> None:
        """Keep what is remembered of these volumes, of their copies since these epochs."""
        self._left_out_s = {k: since_s for k, since_s in self._left_out_s.items() if k[0] in epochs}
        for key in [k for k in self._copies if k[0] not in epochs or k[1] < epochs[k[0]]]:
            del self._copies[key]
        self._held_since = {k: since for k, since in self._held_since.items() if k in epochs}
        self._fled = {k: fled for k, fled in self._fled.items() if k in epochs}
        for times_s in (self._moved_s, self._rest_until_s):
            for volume_id in [gone for gone in times_s if gone not in epochs]:
                del times_s[volume_id]
        self._claimed &= epochs.keys()


def _less_is_left_out(known: object, asked: Volume) -> bool:
    """Tell whether a volume goes on with copies that `asked` leaves out."""
    return isinstance(known, Volume) and not set(asked.without) <= set(known.without)


def _with_another(volume: Volume, place: ReplicaPlace) -> Volume:
    """Return `volume` with a copy that its head does not know yet."""
    return replace(
        volume,
        replicas=(*volume.replicas, place),
        without=(*volume.without, place.node_id),
        catching_up=(*volume.catching_up, place.node_id),
    )


def choose_place(
    site: Site,
    iaas: Iaas,
    volume: Volume,
    *,
    wanted: NodeId | None = None,
    coming: Promises | None = None,
) -> ReplicaPlace:
    """Return where another copy of `volume` rests, by all that this site knows.

    `coming` are copies that will be begun before it.

    Raises:
        NoCandidate: no IO-node may take it; each refusal is kept.
    """
    return choose_another(
        iaas.contract,
        volume,
        near=site.site_id,
        sites=site.index.values(Datacenter),
        nodes=ionode_spaces(site, iaas),
        promised_on=promised_on(site, coming),
        wanted=wanted,
    )


def _less(nodes: tuple[NodeId, ...], node_id: NodeId) -> tuple[NodeId, ...]:
    return tuple(other for other in nodes if other != node_id)


def _site_of(volume: Volume, node_id: NodeId) -> SiteId | None:
    return next((p.site_id for p in volume.replicas if p.node_id == node_id), None)
