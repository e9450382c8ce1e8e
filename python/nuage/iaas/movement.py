"""A VM's way to another node or site, step by step; who owns it is the quorum's word.

::

    source home                         quorum               target home
    VM MIGRATING, asks for a place ──────────────────────►  Migration entered, QEMU waits
    memory flows; the source pauses, reports ready-to-switch
    grant: transfer(vm → target) ──────►  epoch + 1
    source may switch ───────────────────────────────────►  guest runs there, reported
                                                            take: VM entered under the new epoch
    departed: the old record is deleted

Fault model. Before `grant` succeeds any failure gives the migration up: the source goes on, the
target drops what waits. After it the VM belongs to the target whatever happens: if the last bytes
never arrive the source stops what it has, says so in its record, and then the target starts the
VM from its disks. So it never runs twice.

Either site may restart in the middle, or hear the other too late: `watch` gives up what does not
get ready, and drops arrivals that will not happen any more.
"""

from dataclasses import dataclass, replace

from nuage.errors import Conflict, NuageError
from nuage.iaas.epochs import FIRST_EPOCH, quorum_part
from nuage.iaas.erasure import delete_with_copies
from nuage.iaas.removal import remove_vm
from nuage.iaas.site import Site
from nuage.ids import SiteId, VmId
from nuage.model.network import Port
from nuage.model.placement import Decision
from nuage.model.record import Noun
from nuage.model.status import Migration
from nuage.model.vm import Vm, VmState
from nuage.quorum.model import Ownership

WATCH_EVERY_S = 3.0
READY_WITHIN_S = 30.0  # QEMU listens within one; beyond, the target's node is gone or full
UNDECIDED_AFTER_S = 30.0  # for a decision to come by the feed; a request ends within ten
STALE_AFTER_S = 10.0  # of silence by the source's feed that the VM still comes
GIVE_UP_METHOD = "migration.give-up"
DECIDED_METHOD = "placement.decided"
ASK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationGivenUp:
    """Tells the target's site that a migration will not happen."""

    vm_id: VmId
    source_epoch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskDecided:
    """Asks the site that took a request whether it decided, or still does."""

    vm_id: VmId


class Movement:
    """The steps of migrations at one site, as source and as target."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._granted: dict[VmId, int] = {}  # to the target epoch that the quorum has given
        self._told: set[tuple[VmId, float]] = set()

    def may_switch(self, vm_id: VmId) -> bool:
        """Tell whether the source may hand the VM over now."""
        migration = self._site.index.find_value(Migration, vm_id)
        return migration is not None and self._is_granted(migration)

    def _is_granted(self, migration: Migration) -> bool:
        return self._granted.get(migration.vm_id) == migration.target_epoch

    async def grant(self, vm_id: VmId) -> None:
        """Have the quorum give a VM to its target; the source's wish may say so from then on.

        The guest stands still meanwhile: nothing is read or written here that could be before.
        """
        site = self._site
        migration = site.index.value(Migration, vm_id)
        if self._is_granted(migration):
            return
        target = site.index.home("migration", vm_id)
        if target != site.site_id:
            await self._hand_over(vm_id, target, quorum_part(migration.target_epoch))
        self._granted[vm_id] = migration.target_epoch

    async def _hand_over(self, vm_id: VmId, target: SiteId, epoch: int) -> None:
        """Transfer a VM; an earlier try whose answer was lost counts."""
        quorum = self._site.quorum
        own = self._site.site_id
        try:
            await quorum.transfer(
                "vm", vm_id, from_site=own, to_site=target, expected_epoch=epoch - 1
            )
        except Conflict:
            if not await claimed(self._site, vm_id):
                raise
            await quorum.transfer(
                "vm", vm_id, from_site=own, to_site=target, expected_epoch=epoch - 1
            )

    async def take(self, vm_id: VmId) -> None:
        """Enter a VM that now runs here, with its ports, under its new epoch."""
        site = self._site
        migration = site.index.value(Migration, vm_id)
        vm = site.index.value(Vm, vm_id)
        if migration.source_site != site.site_id:
            held = await site.quorum.owner("vm", vm_id)
            if not _is_ours(held, site.site_id, quorum_part(migration.target_epoch)):
                raise Conflict(f"the quorum has not given {vm_id} to {site.site_id}")
        await self._enter_here(migration, vm, VmState.RUNNING)

    async def _enter_here(self, migration: Migration, vm: Vm, state: VmState) -> None:
        site = self._site
        arrived = replace(
            vm,
            node_id=migration.target_node,
            site_id=site.site_id,
            state=state,
            epoch=migration.target_epoch,
            login_generation=migration.login_generation,
            migrating_to=None,
            failure="",
        )
        ports = [p for p in (site.index.find_value(Port, i) for i in vm.ports) if p is not None]
        await site.save_moving(arrived, *ports, epoch=migration.target_epoch)
        await site.delete(migration)
        text = f"{vm.name} is {state.value} on {migration.target_node}"
        site.announce("vm", vm.vm_id, "arrived", text)

    async def give_up(self, vm_id: VmId, reason: str, *, ended: bool = False) -> None:
        """End a migration that the quorum has not decided: the VM stays at its source.

        `ended`: the source has stopped it, before it switched.
        """
        site = self._site
        vm = site.index.value(Vm, vm_id)
        if vm.migrating_to is None or vm.is_let_go:
            return
        migration = site.index.find_value(Migration, vm_id)
        if migration is not None and self._is_granted(migration):
            if migration.failure or ended:  # else it may run at its target, which will tell
                await self._let_go(vm, migration)
            return
        if migration is not None:
            held = await site.quorum.owner("vm", vm_id)
            if held is not None and held.owner != site.site_id:
                await self._let_go(vm, migration)
                return
        told = f"migration to {vm.migrating_to} failed: {reason}"
        await site.save(replace(vm, state=VmState.RUNNING, migrating_to=None, failure=told))
        site.announce("vm", vm_id, "stayed", f"{vm.name}: {told}")
        if migration is not None:
            given_up = MigrationGivenUp(vm_id=vm_id, source_epoch=vm.epoch, reason=reason)
            await self._tell_target(site.index.home("migration", vm_id), given_up)

    async def _let_go(self, vm: Vm, migration: Migration) -> None:
        """Stop a VM that the quorum gave to its target and that did not get there.

        Its target starts it from its disks once this record says that it is stopped.
        """
        self._granted[vm.vm_id] = migration.target_epoch
        told = "its hand-over broke after the quorum had decided; it starts at its target"
        await self._site.save(replace(vm, state=VmState.STOPPING, failure=told))
        self._site.announce("vm", vm.vm_id, "let-go", f"{vm.name}: {told}")

    async def _tell_target(self, target: SiteId, given_up: MigrationGivenUp) -> None:
        if target == self._site.site_id:
            await self.drop(given_up)
            return
        try:
            await self._site.others.ask(
                target, GIVE_UP_METHOD, given_up, type(None), timeout_s=ASK_TIMEOUT_S
            )
        except NuageError as error:
            # The target sees by the feed that the VM no longer migrates, and drops it itself.
            self._site.announce("vm", given_up.vm_id, "target-untold", error.message)

    async def drop(self, given_up: MigrationGivenUp) -> None:
        """Forget an arrival that will not happen (asked by the source's site)."""
        migration = self._site.index.find_value(Migration, given_up.vm_id)
        mine = migration is not None and (
            self._site.index.home("migration", given_up.vm_id) == self._site.site_id
        )
        if migration is not None and mine and migration.source_epoch == given_up.source_epoch:
            await self._site.delete(migration)

    async def watch(self) -> None:
        """End migrations that neither succeed nor fail; runs for ever."""
        while True:
            await self._site.clock.sleep(WATCH_EVERY_S)
            await self.tidy_up()

    async def tidy_up(self) -> None:
        """Give up what waits too long here, and drop what does not come here any more."""
        site = self._site
        now_s = site.clock.now_s()
        for record in [r for r in site.index.records("vm") if r.home == site.site_id]:
            vm = record.value
            if isinstance(vm, Vm) and now_s - record.changed_s > READY_WITHIN_S:
                await self._end_waiting(vm)
        for record in [r for r in site.index.records("migration") if r.home == site.site_id]:
            arrival = record.value
            is_old = now_s - record.changed_s > STALE_AFTER_S
            if isinstance(arrival, Migration) and is_old:
                await self._end_arrival(arrival)
        for record in site.index.own_copies("vm"):
            if isinstance(record.value, Vm) and record.epoch == FIRST_EPOCH:
                await self._drop_unelected(record.value)
                if now_s - record.changed_s > UNDECIDED_AFTER_S:
                    await self._drop_undecided(record.value)

    async def _end_arrival(self, arrival: Migration) -> None:
        site = self._site
        vm = site.index.find_value(Vm, arrival.vm_id)
        if vm is not None and vm.state is VmState.STOPPED and vm.is_let_go:
            here = arrival.source_site == site.site_id
            held = None if here else await site.quorum.owner("vm", arrival.vm_id)
            if here or _is_ours(held, site.site_id, quorum_part(arrival.target_epoch)):
                await self._enter_here(arrival, vm, VmState.STARTING)
                return
        if await self._is_stale(arrival):
            await site.delete(arrival)
            text = f"{arrival.vm_id} does not come to {arrival.target_node} any more"
            site.announce("vm", arrival.vm_id, "arrival-dropped", text)

    async def _drop_unelected(self, vm: Vm) -> None:
        """Drop a new VM that was entered here and then elected elsewhere; it never ran here."""
        site = self._site
        record = site.index.find("decision", vm.vm_id)
        decision = None if record is None else record.value
        if not isinstance(decision, Decision) or record is None or record.epoch:
            return  # undecided, or decided again since
        if decision.elected_site in (None, site.site_id):
            return
        gone: list[Noun] = [vm]
        for kind, ids in (("port", vm.ports), ("volume", vm.volumes)):
            own = {r.id: r.value for r in site.index.own_copies(kind)}
            gone += [own[object_id] for object_id in ids if object_id in own]
        await delete_with_copies(site, *gone)
        site.announce("vm", vm.vm_id, "unelected", f"{vm.name} went to {decision.elected_site}")

    def was_decided(self, vm_id: VmId) -> bool:
        """Tell whether a VM asked for here was decided, or is being decided now.

        Once it says no, it never says yes: whoever asked for the VM was told nothing, or no.
        """
        return vm_id in self._site.deciding or (
            self._site.index.find("decision", vm_id) is not None
        )

    async def _drop_undecided(self, vm: Vm) -> None:
        """Drop a new VM whose controller died before it wrote its decision down; it never ran."""
        site = self._site
        if vm.asked_at is None or site.index.find("decision", vm.vm_id) is not None:
            return
        if vm.asked_at == site.site_id:
            decided = self.was_decided(vm.vm_id)
        else:
            ask = AskDecided(vm_id=vm.vm_id)
            try:
                decided = await site.others.ask(
                    vm.asked_at, DECIDED_METHOD, ask, bool, timeout_s=ASK_TIMEOUT_S
                )
            except NuageError:
                return  # it alone knows: wait for it
        if not decided and site.index.find("decision", vm.vm_id) is None:
            site.announce(
                "vm", vm.vm_id, "undecided", f"{vm.name} was never decided; it is dropped"
            )
            await remove_vm(site, vm.vm_id)

    async def _end_waiting(self, vm: Vm) -> None:
        """A VM on its way whose record has not changed for long."""
        if vm.migrating_to is None:
            if vm.state is VmState.MIGRATING:  # its placement was interrupted
                told = "its migration was interrupted"
                await self._site.save(replace(vm, state=VmState.RUNNING, failure=told))
            return
        migration = self._site.index.find_value(Migration, vm.vm_id)
        if migration is None or not migration.address:
            await self.give_up(vm.vm_id, "the target did not get ready")

    async def _is_stale(self, arrival: Migration) -> bool:
        site = self._site
        vm = site.index.find_value(Vm, arrival.vm_id)
        if vm is None:
            return True
        if vm.epoch == arrival.source_epoch and vm.state is VmState.MIGRATING:
            return False
        if arrival.source_site == site.site_id:
            return True
        held = await site.quorum.owner("vm", arrival.vm_id)
        return not _is_ours(held, site.site_id, quorum_part(arrival.target_epoch))

    async def departed(self, vm_id: VmId, downtime_ms: float) -> None:
        """Tell once how long the guest paused, by QEMU's own figure."""
        site = self._site
        vm = site.index.find_value(Vm, vm_id)
        if vm is None or (vm_id, downtime_ms) in self._told:
            return
        self._told.add((vm_id, downtime_ms))
        site.announce(
            "vm", vm_id, "migrated", f"{vm.name} was handed over, paused {downtime_ms:g} ms"
        )
        if site.index.home("vm", vm_id) == site.site_id:
            await site.save(replace(vm, downtime_ms=downtime_ms))

    def has_let_go(self, vm: Vm) -> bool:
        """Tell whether a VM that this site let go is at another site now: `tidy` is due."""
        return vm.vm_id in self._granted and vm.site_id != self._site.site_id

    async def tidy(self, vm_id: VmId) -> None:
        """Delete this site's record of a VM that arrived elsewhere after a granted migration."""
        if vm_id not in self._granted:
            return
        site = self._site
        record = site.index.find("vm", vm_id)
        if record is None or record.home == site.site_id:
            return
        del self._granted[vm_id]
        old = [r for r in site.index.shadowed() if r.id == vm_id or _port_of(r.value, vm_id)]
        await site.delete(*(record.value for record in old))


async def claimed(site: Site, vm_id: VmId) -> bool:
    """Own in the quorum a VM of this site that nobody was said to own; tell whether it was so."""
    if await site.quorum.owner("vm", vm_id) is not None:
        return False
    await site.quorum.claim("vm", vm_id, site.site_id, expected_epoch=0)
    return True


def _port_of(value: object, vm_id: VmId) -> bool:
    return isinstance(value, Port) and value.vm_id == vm_id


def _is_ours(held: Ownership | None, site_id: SiteId, epoch: int) -> bool:
    return held is not None and held.owner == site_id and held.epoch == epoch
