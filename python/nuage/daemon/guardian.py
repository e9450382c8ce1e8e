"""What becomes of VMs whose node or site is gone: once started again, never twice.

A silent node is first put beyond doubt: its BMC, or else its outlets (`daemon.fencing`), switch it
off and say so, or a person has seen that it is off. Only then are its VMs started elsewhere in the
site, under their next epoch, which the heads of their disks demand from then on; a node that was
switched off here is switched on again and comes back with nothing to run. Whoever else switches it
on changes nothing: an agent that begins starts no guest without a word of its controller, and it
is told nothing while what it ran is being placed. Without that proof nothing is started: the VMs
are shown as unknown, an event says what is missing, and it is tried again for as long as the node
is silent. While the silence may be the controller's own deafness (`Ears.why_not_fence`), nobody is
switched off.

A site whose lease in the quorum has run out has stopped its fail-over VMs by then
(`quorum.model.LeaseTiming`). The sites that hold copies of their disks take them over, each VM by
whoever the quorum lets. A site that comes back asks the quorum what it still owns before any of
its nodes may start such a VM again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from nuage.clock import Clock
from nuage.errors import Conflict, NuageError
from nuage.iaas.epochs import EPOCH_STEP, next_local
from nuage.iaas.site import RestartDraft, Site
from nuage.iaas.takeover import fails_over, successors
from nuage.iaas.vm_places import request_for
from nuage.iaas.wishes import is_decided
from nuage.ids import NodeId, SiteId, VmId
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.status import Migration
from nuage.model.vm import PowerWish, Vm, VmState
from nuage.model.volume import Volume
from nuage.quorum.lease import LeaseView
from nuage.quorum.model import NOBODY, Ownership, Quorum
from nuage.storage.heads import whole_copies
from nuage.trust.files import write_atomically

WATCH_EVERY_S: Final = 2.0
FENCE_RETRY_S: Final = 3.0
FENCE_TRIES_MAX: Final = 20
FENCE_AGAIN_S: Final = 30.0  # from one row of tries to the next, for as long as the node is silent
UNKNOWN_AFTER_S: Final = 60.0
BACK_ON_AFTER_S: Final = 20.0  # its VMs' disks listen to their new epochs by then
RETURN_WITHIN_S: Final = 300.0  # a node's boot
OVER_S: Final = 2.0  # of the wall clock: long ago, and not "never allowed"
log = structlog.get_logger("guardian")

# Switches a node off and returns whether it is confirmed off.
Fence = Callable[[Node], Awaitable[bool]]
# Switches a node on again that was fenced; False: it was off before, and stays as it was found.
SwitchOn = Callable[[Node], Awaitable[bool]]


class Ears(Protocol):
    """What is heard of this site's nodes (`daemon.nodes.NodeSessions`)."""

    def is_connected(self, node_id: NodeId) -> bool:
        """Tell whether a node was heard just now."""
        ...

    def why_not_fence(self, node_id: NodeId) -> str:
        """Return why a node's silence proves nothing, or ""."""
        ...

    def was_heard_since(self, node_id: NodeId, moment_s: float) -> bool:
        """Tell whether a node spoke after a moment of the monotonic clock."""
        ...

    def withhold(self, node_id: NodeId) -> None:
        """Give a node no wish until it is released."""
        ...

    def release(self, node_id: NodeId) -> None:
        """Give a node its wish again, once it is worked out anew."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """What a site was told in a term of its lease; kept on disk for the next controller.

    `begun` is what it asked the quorum to take over and has not entered yet.
    """

    term: int = 0
    owned: tuple[VmId, ...] = ()
    begun: tuple[VmId, ...] = ()


class Guardian:
    """Restarts and takes over; one per controller."""

    def __init__(
        self,
        site: Site,
        view: LeaseView,
        fence: Fence,
        clock: Clock,
        *,
        ears: Ears,
        on_owned: Callable[[], None],
        take_over_heads: Callable[[frozenset[SiteId]], Awaitable[None]] | None = None,
        switch_on: SwitchOn | None = None,
        succeed: Callable[[VmId], Awaitable[None]] | None = None,
        before: Held | None = None,
        keep: Callable[[Held], None] = lambda _held: None,
    ) -> None:
        self._take_over_heads = take_over_heads
        self._site = site
        self._view = view
        self._fence = fence
        self._clock = clock
        self._switch_on = switch_on
        self._ears = ears
        self._is_connected = ears.is_connected
        self._on_owned = on_owned
        self._owned: set[VmId] = set()
        self._before = before or Held()  # what counts until the quorum has answered once
        self._begun = set(self._before.begun)
        self._keep = keep
        self._kept = self._before
        self._relearn = False
        self._barred: set[VmId] = set()
        self._fenced: dict[NodeId, float] = {}  # and from when on a word of it says that it is on
        self._placing = asyncio.Lock()  # a node is not switched on while its VMs are being placed
        site.holds_lease = lambda: self.lease_s() > 0
        site.lease_term = lambda: self.lease_term
        site.gained = self._gained
        site.confirm_off = self.confirm_off
        self._succeed = succeed
        self._was_held = False
        self._is_cut_off = False  # and was told so
        self._has_heard = False  # the quorum, since this controller began
        self.lease_term = self._before.term  # rises with each gap, also across restarts

    # Leases of fail-over VMs ------------------------------------------------------------------

    def lease_s(self) -> float:
        """Return how long this site may still act as owner; 0.0 when it may not."""
        return self._view.remaining_s(self._clock.monotonic_s()) if self._was_held else 0.0

    def may_run(self, vm_id: VmId) -> bool:
        """Tell whether a fail-over VM is this site's, or on its way here.

        The quorum gives a VM to a site that holds its lease, and to no other while it does: what
        is expected here may run under the lease as soon as it has come. What was expected before
        a gap in the lease may have been taken over from us meanwhile, and is barred.
        """
        if not self._has_heard:
            # A restarted controller says what the one before it said. Nobody runs longer for it:
            # each node counts on with the lease that it heard of in that term.
            return vm_id in self._before.owned
        return vm_id in self._owned or (vm_id not in self._barred and vm_id in self._expected())

    def _expected(self) -> set[VmId]:
        site = self._site
        records = site.index.records("migration")
        return {VmId(record.id) for record in records if record.home == site.site_id}

    def acquired(self, owned: Sequence[Ownership]) -> None:
        """Hear what this site still owns, before its lease counts again (`LeaseHolder`)."""
        self._owned = {VmId(o.id) for o in owned if o.kind == "vm"}
        self._barred = self._expected() - self._owned
        self._was_held = self._has_heard = True
        self.lease_term = max(self.lease_term + 1, int(self._clock.now_s() * 1000))
        self._keep_held()
        if self._is_cut_off:
            self._is_cut_off = False
            self._announce_site("lease-back", "no longer cut off: the site holds its lease again")
        self._report_difference()
        self._on_owned()

    def _keep_held(self) -> None:
        owned, begun = tuple(sorted(self._owned)), tuple(sorted(self._begun))
        held = Held(term=self.lease_term, owned=owned, begun=begun)
        if held != self._kept:
            self._kept = held
            self._keep(held)

    def _gained(self, vm_id: VmId, term: int) -> bool:
        """Count the quorum's word on a VM, unless the lease had a gap since it was asked.

        In a gap others may have taken the VM over: an answer from before is worth nothing.
        """
        if self.lease_term != term or not self._is_held():
            self._relearn = True
            return False
        self._owned.add(vm_id)
        return True

    def released(self, vm_id: VmId) -> None:
        """Hear that a VM was deleted."""
        self._owned.discard(vm_id)
        self._begun.discard(vm_id)

    async def _learn_anew(self) -> None:
        """Ask what is owned, after an answer had to be dropped."""
        term = self.lease_term
        owned = await self._site.quorum.owners_of(self._site.site_id)
        if self.lease_term == term and self._is_held():
            self._relearn = False
            self._owned |= {VmId(o.id) for o in owned if o.kind == "vm"}
            self._on_owned()

    async def watch(self) -> None:
        """Keep what is owned claimed, and take over from sites that are gone; runs for ever."""
        while True:
            self._barred &= self._expected()
            await self._try_again()
            if self._is_held():
                if self._relearn:
                    await self._learn_anew()
                await self._claim_new()
                await self._take_over()
                self._keep_held()
            elif self._was_held:
                self._was_held = False
                self._owned.clear()
                self._is_cut_off = True
                self._announce_site("lease-lost", "cut off: the site's lease ended")
                self._on_owned()
            await self._clock.sleep(WATCH_EVERY_S)

    def _is_held(self) -> bool:
        return self._was_held and self._view.is_held(self._clock.monotonic_s())

    def _announce_site(self, event: str, text: str) -> None:
        self._site.announce("site", self._site.site_id, event, text)

    def _report_difference(self) -> None:
        for record in self._site.index.shadowed():
            if record.kind == "decision":
                continue  # the last one counts, wherever it was taken
            shown = self._site.index.find(record.kind, record.id)
            where = "elsewhere" if shown is None else shown.home
            text = f"{record.kind} {record.id} is {where}'s now; the record here is kept aside"
            self._site.announce(record.kind, record.id, "difference", text)

    async def _claim_new(self) -> None:
        index = self._site.index
        for record in list(index.records("vm")):
            vm = record.value
            if record.home != self._site.site_id or not isinstance(vm, Vm):
                continue
            if vm.vm_id in self._owned or not fails_over(index, vm):
                continue
            if vm.wish is PowerWish.DELETED or not is_decided(index, vm):
                continue  # it may have been elected elsewhere: then that site owns it
            for volume_id in vm.volumes:
                await self._claim("volume", volume_id)
            term = self.lease_term
            if await self._claim("vm", vm.vm_id) and self._gained(vm.vm_id, term):
                self._on_owned()

    async def _claim(self, kind: str, object_id: str) -> bool:
        own = self._site.site_id
        held = await self._site.quorum.owner(kind, object_id)
        if held is None:
            held = await self._site.quorum.claim(kind, object_id, own, expected_epoch=0)
        return held.owner == own

    # A node is gone -------------------------------------------------------------------------------

    async def node_lost(self, node_id: NodeId) -> None:
        """Fence a silent V-node and start its VMs elsewhere in the site."""
        node = self._site.index.find_value(Node, node_id)
        if node is None or NodeRole.VNODE not in node.roles:
            return
        is_told = False
        while reason := await self._put_off(node):
            if self._is_connected(node_id) or self._is_off(node_id):
                return
            await self._mark_unknown(node_id)
            if not is_told:
                is_told = True
                self._tell_unproven(node, reason)
            await self._clock.sleep(FENCE_AGAIN_S)
            if not self._is_to_be_fenced(node_id):
                return
        self._site.announce("node", node_id, "fenced", f"node {node.name} is confirmed off")
        ran = {vm.vm_id for vm in self._site.index.on_node(Vm, node_id)}
        await self._empty(node_id)
        if self._switch_on is None or not await self._bring_back(node, ran, self._switch_on):
            return
        await self._clock.sleep(RETURN_WITHIN_S)
        if not self._is_connected(node_id):
            await self._put_off(node)  # it does not come: its VMs are looked after from here

    async def confirm_off(self, node: Node, who: str) -> None:
        """Take `who`'s word for it that a silent node is off, and start its VMs elsewhere.

        Raises:
            Conflict: the node was heard just now.
        """
        if self._is_connected(node.node_id):
            raise Conflict(f"{node.name} was heard just now: it is not off")
        self._fenced[node.node_id] = self._clock.monotonic_s()
        self._site.announce(
            "node", node.node_id, "fenced", f"{who} has seen that node {node.name} is off"
        )
        await self._empty(node.node_id)

    def _is_to_be_fenced(self, node_id: NodeId) -> bool:
        """Tell whether a silent node is still to be confirmed off; not one that people work on."""
        node = self._site.index.find_value(Node, node_id)
        if node is None or self._is_connected(node_id) or self._is_off(node_id):
            return False
        return node.is_revoked or not node.maintenance

    def _tell_unproven(self, node: Node, reason: str) -> None:
        self._site.announce(
            "node",
            node.node_id,
            "unproven",
            f"node {node.name} is silent and not confirmed off ({reason}): its VMs start nowhere"
            f" else; once you have seen that it is off, `nuage node confirm-off {node.name}`",
        )

    async def _bring_back(self, node: Node, ran: Collection[VmId], switch_on: SwitchOn) -> bool:
        """Switch a fenced node on again, once what it ran has begun elsewhere.

        From then on it is not proven off: what found no place waits for its return.
        """
        node_id = node.node_id
        await self._clock.sleep(BACK_ON_AFTER_S)
        while self._is_off(node_id):
            shown = self._site.index.find_value(Node, node_id)
            if shown is None or shown.maintenance:
                return False
            if not any(self._is_beginning(vm_id, node_id) for vm_id in ran):
                async with self._placing:
                    is_on = await self._switched_on(node, switch_on)
                if is_on is not None:
                    return is_on
            await self._clock.sleep(FENCE_RETRY_S)
        return False

    async def _switched_on(self, node: Node, switch_on: SwitchOn) -> bool | None:
        """Return whether a node is on again; None when its BMC does not obey."""
        since_s = self._fenced.pop(node.node_id, None)
        if since_s is None:
            return True  # it has spoken meanwhile
        try:
            is_on = await switch_on(node)
        except NuageError as error:
            log.warning("not switched on again", node=node.node_id, error=error.message)
            self._fenced[node.node_id] = since_s
            return None
        if not is_on:
            self._fenced[node.node_id] = since_s
        return is_on

    def _is_beginning(self, vm_id: VmId, lost: NodeId) -> bool:
        """Tell whether a VM was given another node of ours and does not run there yet."""
        vm = self._site.index.find_value(Vm, vm_id)
        if vm is None or self._site.index.home("vm", vm_id) != self._site.site_id:
            return False
        waits = vm.state is not VmState.RUNNING and vm.wish is PowerWish.RUNNING
        return waits and vm.node_id != lost

    def _is_off(self, node_id: NodeId) -> bool:
        """Tell whether a node runs nothing: it was fenced and has not said a word since."""
        since_s = self._fenced.get(node_id)
        if since_s is not None and self._ears.was_heard_since(node_id, since_s):
            del self._fenced[node_id]  # it is back, and has its wish
        return node_id in self._fenced

    async def _empty(self, node_id: NodeId) -> None:
        """Start elsewhere what a node that is off ran; if it comes on, it is told nothing yet."""
        if not self._is_off(node_id) or not self._site.index.on_node(Vm, node_id):
            return
        self._ears.withhold(node_id)
        try:
            async with self._placing:
                if node_id in self._fenced:  # else it is being switched on
                    await self._restart_all(node_id)
        finally:
            self._ears.release(node_id)
            self._on_owned()

    async def _restart_all(self, node_id: NodeId) -> None:
        for vm in self._site.index.on_node(Vm, node_id):
            if self._site.index.home("vm", vm.vm_id) != self._site.site_id:
                continue
            try:
                if await self._is_still_ours(vm):
                    await self._restart(vm.vm_id, next_local(vm.epoch))
            except NuageError as error:  # the next VM does not wait for this one
                log.warning("not started again", vm=vm.vm_id, error=error.message)

    async def _try_again(self) -> None:
        """Start again what found no place when its node was fenced."""
        for node_id in sorted(self._fenced):
            await self._empty(node_id)

    async def _is_still_ours(self, vm: Vm) -> bool:
        """Ask the quorum about a VM that may have been given away just before its node died.

        Raises:
            Unavailable: no majority answers; nobody knows, so nothing is started.
        """
        if not is_decided(self._site.index, vm):
            return False  # entered here, and perhaps elected elsewhere since
        if vm.migrating_to is None and vm.state is not VmState.MIGRATING:
            return True
        migration = self._site.index.find_value(Migration, vm.vm_id)
        is_open = migration is not None and not migration.failure
        if is_open and self._site.index.home("migration", vm.vm_id) == self._site.site_id:
            return False  # it may run at its target, which will tell
        held = await self._site.quorum.owner("vm", vm.vm_id)
        is_ours = held is None or held.owner == self._site.site_id
        if held is not None and vm.migrating_to is not None:
            is_ours = is_ours and held.heir == NOBODY  # else it may have gone there
        if not is_ours and vm.migrating_to is not None and vm.state is not VmState.STOPPED:
            told = "its node died during its hand-over; it starts at its target"
            await self._site.save(replace(vm, state=VmState.STOPPED, failure=told))
        return is_ours

    async def _speaks_again(self, node_id: NodeId) -> bool:
        """Wait until a node's silence tells something; return whether it spoke meanwhile."""
        begun_s, told, is_shown = self._clock.monotonic_s(), "", False
        while not self._is_connected(node_id):
            why = self._ears.why_not_fence(node_id)
            if not why:
                return False
            if why != told:
                told = why
                log.warning("not fenced yet", silent=node_id, reason=why)
            if not is_shown and self._clock.monotonic_s() - begun_s > UNKNOWN_AFTER_S:
                is_shown = True
                await self._mark_unknown(node_id)
            await self._clock.sleep(WATCH_EVERY_S)
        return True

    async def _put_off(self, node: Node) -> str:
        """Have a silent node off beyond doubt; return why it is not, or ""."""
        reason, heard = "nobody confirms it", "it is heard again"
        if await self._speaks_again(node.node_id):
            return heard
        for _ in range(FENCE_TRIES_MAX):
            if self._is_connected(node.node_id):
                return heard
            since_s = self._clock.monotonic_s()
            try:
                if await self._fence(node):
                    self._fenced[node.node_id] = since_s
                    return "" if self._is_off(node.node_id) else heard
            except NuageError as error:
                reason = error.message
                log.warning("fencing failed", fenced=node.node_id, error=error.message)
            await self._clock.sleep(FENCE_RETRY_S)
        return reason

    async def _mark_unknown(self, node_id: NodeId) -> None:
        if self._is_connected(node_id):
            return
        for vm in self._site.index.on_node(Vm, node_id):
            if self._site.index.home("vm", vm.vm_id) == self._site.site_id:
                told = "its node is silent and could not be confirmed off"
                await self._site.save(replace(vm, state=VmState.UNKNOWN, failure=told))

    async def _restart(self, vm_id: VmId, epoch: int) -> None:
        site = self._site
        vm = site.index.find_value(Vm, vm_id)  # its owner may have changed it meanwhile
        if vm is None or vm.wish is not PowerWish.RUNNING:
            return
        iaas = site.index.value(Iaas, vm.iaas_id)
        request = replace(request_for(site, iaas, vm), site_wanted=site.site_id)
        try:
            decision = await site.placer.place(request, RestartDraft(vm=vm, epoch=epoch))
        except NuageError as error:
            told = f"could not be started again: {error.message}"
            vm = site.index.value(Vm, vm_id)
            if vm.state is VmState.FAILED and vm.failure == told:
                return  # it is tried again and again, and told once
            await site.save(replace(vm, state=VmState.FAILED, failure=told))
            site.announce("vm", vm.vm_id, "failed", f"{vm.name} {told}")
            return
        await site.save_decision(decision, epoch=epoch)
        text = f"{vm.name} starts again on {decision.elected} under epoch {epoch}"
        site.announce("vm", vm.vm_id, "restarted", text)

    # A site is gone -------------------------------------------------------------------------------

    async def _take_over(self) -> None:
        held = await self._site.quorum.holders()
        index, own, expected = self._site.index, self._site.site_id, self._expected()
        for record in list(index.records("vm")):
            vm = record.value
            if record.home == own:
                self._begun.discard(VmId(record.id))
            if record.home == own or not isinstance(vm, Vm) or not fails_over(index, vm):
                continue
            if vm.wish is not PowerWish.RUNNING:
                continue  # it does not run; its home keeps it
            # What the quorum gave us and found no place then is finished, even if its home is back;
            # not what was here and was deleted, of which another site still has a record.
            begun = vm.vm_id in self._begun & self._owned - expected
            order = [] if record.home in held else successors(index, vm, alive=held)
            try:
                if self._was_coming(vm):
                    if record.home not in held:
                        await self._take_over_arrival(vm, record.home)
                elif begun or (order and order[0] == own):
                    await self._take_over_vm(vm, record.home)
            except Conflict as error:
                log.info("not taken over", vm=vm.vm_id, reason=error.message)
        if self._take_over_heads is not None:
            await self._take_over_heads(held)

    def _was_coming(self, vm: Vm) -> bool:
        """Tell whether a VM of a site is on its way to ours, as far as we know."""
        arrival = self._site.index.find_value(Migration, vm.vm_id)
        home = None if arrival is None else self._site.index.home("migration", vm.vm_id)
        is_this = arrival is not None and arrival.source_epoch == vm.epoch
        return is_this and home == self._site.site_id and self._succeed is not None

    async def _take_over_arrival(self, vm: Vm, from_site: SiteId) -> None:
        """Take over what may have come here already: it goes on on the node that expects it."""
        for volume_id in vm.volumes:
            volume = self._site.index.value(Volume, volume_id)
            if any(place.site_id == self._site.site_id for place in whole_copies(volume)):
                await self._take_over_volume(volume, from_site)
        await self._own_from(vm, from_site)
        assert self._succeed is not None, "it was coming"
        await self._succeed(vm.vm_id)

    async def _take_over_vm(self, vm: Vm, from_site: SiteId) -> None:
        self._begun.add(vm.vm_id)
        self._keep_held()
        for volume_id in vm.volumes:
            volume = self._site.index.value(Volume, volume_id)
            await self._take_over_volume(volume, from_site)
        owned = await self._own_from(vm, from_site)
        await self._restart(vm.vm_id, owned.epoch * EPOCH_STEP)

    async def _own_from(self, vm: Vm, from_site: SiteId) -> Ownership:
        site, term = self._site, self.lease_term
        owned = await _taken(site.quorum, "vm", vm.vm_id, from_site, site.site_id)
        if not self._gained(vm.vm_id, term):
            raise Conflict(f"the lease had a gap while {vm.name} was taken over; asked again")
        text = f"{vm.name} is taken over from {from_site}, whose lease has run out"
        site.announce("vm", vm.vm_id, "taken-over", text)
        return owned

    async def _take_over_volume(self, volume: Volume, from_site: SiteId) -> None:
        site = self._site
        if site.index.home("volume", volume.volume_id) == site.site_id:
            return
        owned = await _taken(site.quorum, "volume", volume.volume_id, from_site, site.site_id)
        head = next(p.node_id for p in whole_copies(volume) if p.site_id == site.site_id)
        epoch = owned.epoch * EPOCH_STEP
        taken = replace(volume, head=head, epoch=epoch, portal="", failure="")
        await site.save_moving(taken, epoch=epoch)


async def _taken(
    quorum: Quorum, kind: str, object_id: str, from_site: SiteId, by_site: SiteId
) -> Ownership:
    held = await quorum.owner(kind, object_id)
    if held is None:
        raise Conflict(f"{kind} {object_id} was never claimed; it stays with {from_site}")
    if held.owner == by_site:
        return held
    return await quorum.takeover(
        kind, object_id, from_site=from_site, by_site=by_site, expected_epoch=held.epoch
    )


def lease_until_s(guardian: Guardian, clock: Clock) -> Callable[[VmId], float]:
    """Return what `WishContext` asks: until when, by the wall clock, a fail-over VM may run.

    1.0 says that it may not (`daemon.vnode.NOT_ALLOWED_S`). A site that holds no lease names a time
    that is over: a node that has heard of one in that term goes by what it heard.
    """

    def until(vm_id: VmId) -> float:
        if not guardian.may_run(vm_id):
            return 1.0
        lease_s = guardian.lease_s()
        return clock.now_s() + lease_s if lease_s > 0 else OVER_S

    return until


def read_held(path: Path) -> Held:
    """Return what the controller before this one kept."""
    return msgspec.json.decode(path.read_bytes(), type=Held) if path.exists() else Held()


def write_held(path: Path, held: Held) -> None:
    """Keep what this site may act on; durable on return."""
    write_atomically(path, msgspec.json.encode(held))
