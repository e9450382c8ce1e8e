"""A VM's way to another node or site, step by step; who owns it is the quorum's word.

::

    source home                         quorum               target home
    VM MIGRATING, asks for a place ──────────────────────►  Migration entered, QEMU waits
    memory flows
    grant: promise(vm → target) ───────►  heir: the target
    source may switch, as soon as all
    but the last state is sent ──────────────────────────►  guest runs there, reported
                                          epoch + 1  ◄────  take: inherit, VM entered under it
    departed: the old record is deleted

Leave is given while the guest runs, so that it stands still for nobody's word. From the promise on
the VM may be at either site, and the source's node alone knows whether it has gone.

Fault model. Who gives a migration up first takes leave back, by a wish that speaks of none, and
waits for the source's word on that wish. If the VM is there, the promise is taken back and it goes
on; the target drops what waits. If it has gone, or nobody can know any more, it is the target's:
the source stops what it has, says so in its record, and then the target starts the VM from its
disks, unless it runs there. So it never runs twice.

A target makes ready once the VM's disks serve: a head that opens anew, or whose only other copy
catches up, lets nobody log in. Until then the source's record says what the VM waits for.

Either site may restart in the middle, or hear the other too late: `watch` gives up what does not
get ready, and drops arrivals that will not happen any more. A target whose source has lost its
lease takes the VM over, on the very node that it was on its way to.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum

import structlog

from nuage.errors import Conflict, NuageError
from nuage.iaas.epochs import FIRST_EPOCH, quorum_part
from nuage.iaas.erasure import delete_with_copies
from nuage.iaas.removal import remove_vm
from nuage.iaas.site import Site
from nuage.iaas.wishes import Leave, disk_waited_for
from nuage.ids import SiteId, VmId
from nuage.model.network import Port
from nuage.model.placement import Decision
from nuage.model.record import Noun
from nuage.model.status import Migration
from nuage.model.vm import Vm, VmState
from nuage.quorum.model import NOBODY, Ownership
from nuage.units import format_size

WATCH_EVERY_S = 3.0
DISKS_WITHIN_S = 900.0  # since it was decided: a copy of some 10 GB is filled by then
READY_WITHIN_S = 30.0  # QEMU listens within one; beyond, the target's node is gone or full
UNDECIDED_AFTER_S = 30.0  # for a decision to come by the feed; a request ends within ten
STALE_AFTER_S = 10.0  # of silence by the source's feed that the VM still comes
GIVE_UP_METHOD = "migration.give-up"
DECIDED_METHOD = "placement.decided"
HERE_METHOD = "vm.here"
PAUSED_NOTICE = "vm.paused"
ASK_TIMEOUT_S = 5.0
log = structlog.get_logger("movement")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AskHere:
    """Asks the site that owns a VM whether it has it, or expects it."""

    vm_id: VmId


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    """Tells the site to which a VM went how long its guest stood still for that."""

    vm_id: VmId
    downtime_ms: float


class Whereabouts(Enum):
    """What a source's node says of a VM on its way."""

    HERE = "here"  # it is not being sent, and what was sent of it cannot run
    LEAVING = "leaving"
    GONE = "gone"  # or nobody can know


@dataclass(slots=True)
class _TakenBack:
    """Leave that is being taken back: for which move, why, and by which wish of its node."""

    target_epoch: int
    reason: str
    revision: int = 0  # 0: no wish was made yet


class Movement:
    """The steps of migrations at one site, as source and as target."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._granted: dict[VmId, int] = {}  # to the target epoch that it may go under
        self._taken_back: dict[VmId, _TakenBack] = {}
        self._told: dict[VmId, set[float]] = {}  # of its last move: how long it paused, as told

    def leave(self, vm_id: VmId) -> Leave:
        """Tell whether the source may send the VM away, and hand it over."""
        migration = self._site.index.find_value(Migration, vm_id)
        if migration is None or self._back(migration) is not None:
            return Leave.NONE
        return Leave.SWITCH if self._is_granted(migration) else Leave.SEND

    def _is_granted(self, migration: Migration) -> bool:
        return self._granted.get(migration.vm_id) == migration.target_epoch

    def _back(self, migration: Migration) -> _TakenBack | None:
        back = self._taken_back.get(migration.vm_id)
        return back if back is not None and back.target_epoch == migration.target_epoch else None

    async def grant(self, vm_id: VmId) -> bool:
        """Promise a VM to its target; the source's wish may let it go from then on.

        Its guest runs meanwhile. Returns whether that is news.
        """
        site = self._site
        migration = site.index.find_value(Migration, vm_id)
        vm = site.index.find_value(Vm, vm_id)
        if migration is None or vm is None or vm.migrating_to is None or vm.is_let_go:
            return False
        if self._is_granted(migration) or self._back(migration) is not None:
            return False
        target = site.index.home("migration", vm_id)
        if target != site.site_id:
            await self._promise(vm_id, target, quorum_part(migration.source_epoch))
        self._granted[vm_id] = migration.target_epoch
        self._told.pop(vm_id, None)
        return True

    async def _promise(self, vm_id: VmId, heir: SiteId, epoch: int) -> None:
        quorum, own = self._site.quorum, self._site.site_id
        try:
            await quorum.promise("vm", vm_id, owner=own, heir=heir, expected_epoch=epoch)
        except Conflict:
            if not await claimed(self._site, vm_id):
                raise
            await quorum.promise("vm", vm_id, owner=own, heir=heir, expected_epoch=epoch)

    async def take(self, vm_id: VmId) -> None:
        """Enter a VM that now runs here, with its ports, under its new epoch."""
        migration = self._site.index.value(Migration, vm_id)
        vm = self._site.index.value(Vm, vm_id)
        await self._inherit(migration)
        await self._enter_here(migration, vm, VmState.RUNNING)

    async def _inherit(self, arrival: Migration) -> None:
        """Own a VM that has come, or that its source has let go."""
        site, own = self._site, self._site.site_id
        if arrival.source_site == own:
            return
        term = site.lease_term()
        await site.quorum.inherit(
            "vm", arrival.vm_id, owner=arrival.source_site, heir=own,
            expected_epoch=quorum_part(arrival.source_epoch),
        )  # fmt: skip
        site.gained(arrival.vm_id, term)

    async def succeed(self, vm_id: VmId) -> None:
        """Enter a VM that was taken over while it was on its way here.

        Its node alone knows how much of it has come: it starts there, unless it runs there.
        """
        arrival = self._site.index.value(Migration, vm_id)
        await self._enter_here(arrival, self._site.index.value(Vm, vm_id), VmState.STARTING)

    async def _enter_here(self, migration: Migration, vm: Vm, state: VmState) -> None:
        site = self._site
        arrived = replace(
            vm,
            node_id=migration.target_node,
            site_id=site.site_id,
            state=state,
            epoch=migration.target_epoch,
            migrating_to=None,
            failure="",
        )
        ports = site.index.ports_of(vm)
        await site.save_moving(arrived, *ports, epoch=migration.target_epoch)
        await site.delete(migration)
        text = f"{vm.name} is {state.value} on {migration.target_node}"
        site.announce("vm", vm.vm_id, "arrived", text)

    async def give_up(
        self, vm_id: VmId, reason: str, *, source: Whereabouts = Whereabouts.HERE, revision: int = 0
    ) -> bool:
        """End a migration, as far as it can be; return whether leave is to be taken back now.

        `source` is what its node said when it had taken the wish `revision`. "" as a reason ends
        only what is being given up already.
        """
        vm = self._site.index.value(Vm, vm_id)
        if vm.migrating_to is None or vm.is_let_go:
            return False
        migration = self._site.index.find_value(Migration, vm_id)
        if migration is None:
            if reason and not await self._has_left(vm) and vm_id not in self._granted:
                await self._stay(vm, None, reason)
            return False
        if not migration.address and not self._is_granted(migration):
            if reason:
                self._taken_back[vm_id] = _TakenBack(migration.target_epoch, reason)
                await self._stay(vm, migration, reason)
            return False
        if source is Whereabouts.GONE:
            if reason:
                await self._let_go(vm)
            return False
        back = self._back(migration)
        if back is None and reason:
            self._taken_back[vm_id] = _TakenBack(migration.target_epoch, reason)
            return True
        if back is not None and 0 < back.revision <= revision and source is Whereabouts.HERE:
            await self._stay(vm, migration, back.reason)
            return False
        return back is not None and not back.revision

    def taken_back(self, vm_id: VmId, revision: int) -> None:
        """Note which wish first told the source's node that its leave is taken back."""
        self._taken_back[vm_id].revision = revision

    async def _stay(self, vm: Vm, migration: Migration | None, reason: str) -> None:
        """Go on here: nothing of the VM has gone that could run."""
        site, vm_id = self._site, vm.vm_id
        if migration is not None and site.index.home("migration", vm_id) != site.site_id:
            held = await site.quorum.owner("vm", vm_id)
            if held is not None and held.owner != site.site_id:
                await self._let_go(vm)  # taken over while our lease was over
                return
            if held is not None and held.heir != NOBODY:
                await self._promise(vm_id, NOBODY, held.epoch)
        told = f"migration to {vm.migrating_to} failed: {reason}"
        await site.save(replace(vm, state=VmState.RUNNING, migrating_to=None, failure=told))
        self._granted.pop(vm_id, None)
        self._taken_back.pop(vm_id, None)
        site.announce("vm", vm_id, "stayed", f"{vm.name}: {told}")
        if migration is not None:
            given_up = MigrationGivenUp(vm_id=vm_id, source_epoch=vm.epoch, reason=reason)
            await self._tell_target(site.index.home("migration", vm_id), given_up)

    async def _has_left(self, vm: Vm) -> bool:
        """Tell whether a VM belongs to another site; forget it, if it was deleted there since."""
        site = self._site
        held = await site.quorum.owner("vm", vm.vm_id)
        if held is None or held.owner == site.site_id:
            return False
        ask = AskHere(vm_id=vm.vm_id)
        is_there = held.owner != NOBODY and await site.others.ask(
            held.owner, HERE_METHOD, ask, bool, timeout_s=ASK_TIMEOUT_S
        )
        if not is_there:
            await self._forget(vm)
            told = f"{vm.name} went to {held.owner or 'another site'}, and was deleted there"
            site.announce("vm", vm.vm_id, "forgotten", told)
        return True

    def is_here(self, vm_id: VmId) -> bool:
        """Tell whether this site has a VM, or expects it."""
        copies = [*self._site.index.own_copies("vm"), *self._site.index.own_copies("migration")]
        return any(record.id == vm_id for record in copies)

    async def _let_go(self, vm: Vm) -> None:
        """Stop a VM that has gone, or of which nobody knows whether it has.

        Its target starts it from its disks once this record says that it is stopped.
        """
        told = "its hand-over broke at the switch; it starts at its target"
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
            if not isinstance(vm, Vm) or await self._tell_waiting(vm):
                continue
            if now_s - record.changed_s > READY_WITHIN_S:
                await self._end_waiting(vm)
        for record in [r for r in site.index.records("migration") if r.home == site.site_id]:
            arrival = record.value
            is_old = now_s - record.changed_s > STALE_AFTER_S
            if isinstance(arrival, Migration) and is_old:
                try:
                    await self._end_arrival(arrival)
                except Conflict as error:  # the next one does not wait for it
                    log.info("arrival not ended", vm=arrival.vm_id, reason=error.message)
        for record in site.index.shadowed():
            vm = record.value
            if isinstance(vm, Vm) and vm.is_let_go and vm.state is VmState.STOPPED:
                await self._forget(vm)  # it was taken, also if this controller was not there then
        for record in site.index.own_copies("vm"):
            if isinstance(record.value, Vm) and record.epoch == FIRST_EPOCH:
                await self._drop_unelected(record.value)
                if now_s - record.changed_s > UNDECIDED_AFTER_S:
                    await self._drop_undecided(record.value)

    async def _end_arrival(self, arrival: Migration) -> None:
        site = self._site
        vm = site.index.find_value(Vm, arrival.vm_id)
        if vm is not None and vm.state is VmState.STOPPED and vm.is_let_go:
            await self._inherit(arrival)
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
        await self._delete_own(vm)
        site.announce("vm", vm.vm_id, "unelected", f"{vm.name} went to {decision.elected_site}")

    async def _delete_own(self, vm: Vm) -> None:
        """Delete what was entered here with a new VM that is another site's."""
        site = self._site
        gone: list[Noun] = [vm]
        for kind, ids in (("port", vm.ports), ("volume", vm.volumes)):
            own = {r.id: r.value for r in site.index.own_copies(kind)}
            gone += [own[object_id] for object_id in ids if object_id in own]
        await delete_with_copies(site, *gone)

    def was_decided(self, vm_id: VmId) -> bool:
        """Tell whether a VM asked for here was decided, or is being decided now.

        Once it says no, it never says yes: whoever asked for the VM was told nothing, or no.
        """
        return vm_id in self._site.deciding or (
            self._site.index.find("decision", vm_id) is not None
        )

    async def _drop_undecided(self, vm: Vm) -> None:
        """Drop a new VM whose controller died before it wrote its decision down; it never ran.

        The word of a site that was revoked is not waited for: nobody would believe it.
        """
        site = self._site
        if vm.asked_at is None or site.index.find("decision", vm.vm_id) is not None:
            return
        if vm.asked_at == site.site_id:
            decided = self.was_decided(vm.vm_id)
        elif site.is_revoked(vm.asked_at):
            decided = False
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
            if site.index.home("vm", vm.vm_id) == site.site_id:
                await remove_vm(site, vm.vm_id)
            else:  # another site, which the revoked one may have told, has one
                await self._delete_own(vm)

    async def _end_waiting(self, vm: Vm) -> None:
        """A VM on its way whose record has not changed for long."""
        if vm.is_let_go:
            try:
                await self._has_left(vm)
            except NuageError as error:  # asked again; the next one does not wait for it
                log.info("let go, and nobody tells", vm=vm.vm_id, reason=error.message)
            return
        if vm.migrating_to is None:
            if vm.state is VmState.MIGRATING:  # its placement was interrupted
                told = "its migration was interrupted"
                await self._site.save(replace(vm, state=VmState.RUNNING, failure=told))
            return
        migration = self._site.index.find_value(Migration, vm.vm_id)
        if migration is None or not migration.address:
            if vm.failure and self._may_wait(vm):
                return
            told = f": it {vm.failure}" if vm.failure else ""
            try:
                await self.give_up(vm.vm_id, f"the target did not get ready{told}")
            except NuageError as error:  # asked again; the next one does not wait for it
                log.info("not given up", vm=vm.vm_id, reason=error.message)

    async def _tell_waiting(self, vm: Vm) -> bool:
        """Say in its record what a VM on its way waits for; return whether that is news."""
        if vm.migrating_to is None or vm.is_let_go or not self._may_wait(vm):
            return False
        told = waits_for(self._site, vm)
        if told == vm.failure:
            return False
        await self._site.save(replace(vm, failure=told))
        return True

    def _may_wait(self, vm: Vm) -> bool:
        """Tell whether a move that was decided may still wait for its disks."""
        record = self._site.index.find("migration", vm.vm_id)
        age_s = DISKS_WITHIN_S if record is None else self._site.clock.now_s() - record.changed_s
        return age_s < DISKS_WITHIN_S

    async def _is_stale(self, arrival: Migration) -> bool:
        site = self._site
        vm = site.index.find_value(Vm, arrival.vm_id)
        if vm is None:
            return True
        if vm.epoch == arrival.source_epoch and (vm.state is VmState.MIGRATING or vm.is_let_go):
            return False
        if arrival.source_site == site.site_id:
            return True
        return not may_be_at(site.site_id, await site.quorum.owner("vm", arrival.vm_id), arrival)

    async def departed(self, vm_id: VmId, downtime_ms: float) -> None:
        """Tell once how long the guest paused, by QEMU's own figure."""
        site = self._site
        vm = site.index.find_value(Vm, vm_id)
        if vm is None or downtime_ms in self._told.get(vm_id, ()):
            return
        self._told.setdefault(vm_id, set()).add(downtime_ms)
        site.announce(
            "vm", vm_id, "migrated", f"{vm.name} was handed over, paused {downtime_ms:g} ms"
        )
        paused, home = Paused(vm_id=vm_id, downtime_ms=downtime_ms), site.index.home("vm", vm_id)
        if home is None or home == site.site_id:
            await self.note_pause(paused)
            return
        with suppress(NuageError):  # a figure to look at, no more
            site.others.tell(home, PAUSED_NOTICE, paused)

    async def note_pause(self, told: Paused) -> None:
        """Write down how long a VM that is here stood still in its last move."""
        vm = self._site.index.find_value(Vm, told.vm_id)
        if vm is not None and self._site.index.home("vm", told.vm_id) == self._site.site_id:
            await self._site.save(replace(vm, downtime_ms=told.downtime_ms))

    def has_left(self, vm_id: VmId) -> bool:
        """Tell whether a VM that was on its way from here is at another site: `tidy` is due.

        The record here says so, not what this controller remembers. Left there, it would be the
        truth again as soon as the VM moves on to a site that is not heard.
        """
        record = self._site.index.hidden("vm", vm_id)
        vm = None if record is None else record.value
        return isinstance(vm, Vm) and vm.migrating_to is not None

    async def tidy(self, vm_id: VmId) -> None:
        """Delete this site's record of a VM that was on its way and arrived elsewhere."""
        vm = self._site.index.find_value(Vm, vm_id)
        if vm is not None and self.has_left(vm_id):
            await self._forget(vm)

    def forget(self, vm_id: VmId) -> None:
        """Let go of what is remembered of the moves of a VM that is no more."""
        self._granted.pop(vm_id, None)
        self._taken_back.pop(vm_id, None)
        self._told.pop(vm_id, None)

    async def _forget(self, vm: Vm) -> None:
        """Delete this site's records of a VM that is another's, and of its ports."""
        site, vm_id = self._site, vm.vm_id
        self._granted.pop(vm_id, None)
        self._taken_back.pop(vm_id, None)
        found = (site.index.find("vm", vm_id), *(site.index.find("port", p) for p in vm.ports))
        shown = [r for r in found if r is not None and r.home == site.site_id]
        hidden = [r for r in site.index.shadowed() if r.id == vm_id or _port_of(r.value, vm_id)]
        await site.delete(*(record.value for record in (*shown, *hidden)))


def waits_for(site: Site, vm: Vm) -> str:
    """Return what a VM that shall move waits for before its target makes ready, "": nothing."""
    migration = site.index.find_value(Migration, vm.vm_id)
    volume = disk_waited_for(site.index, vm)
    if volume is None or (migration is not None and migration.address):
        return ""
    behind = ", ".join(volume.catching_up)
    if volume.failure or not behind:
        return f"waits for {volume.name}: {volume.failure or 'its head opens'}"
    head = site.heads_seen.get(volume.volume_id)
    copies = () if head is None or head.epoch != volume.epoch else head.copies
    left_bytes = sum(c.lag_bytes for c in copies if c.node_id in volume.catching_up)
    left = f", {format_size(left_bytes)} to go" if left_bytes else ""
    return f"waits for {volume.name}: {behind} is brought up to date{left}"


async def claimed(site: Site, vm_id: VmId) -> bool:
    """Own in the quorum a VM of this site that nobody was said to own; tell whether it was so."""
    if await site.quorum.owner("vm", vm_id) is not None:
        return False
    await site.quorum.claim("vm", vm_id, site.site_id, expected_epoch=0)
    return True


def _port_of(value: object, vm_id: VmId) -> bool:
    return isinstance(value, Port) and value.vm_id == vm_id


def may_be_at(site_id: SiteId, held: Ownership | None, arrival: Migration) -> bool:
    """Tell whether a VM has gone to its target `site_id`, or may have, by the quorum's word."""
    if held is None:
        return False
    if held.owner == site_id:
        return held.epoch == quorum_part(arrival.target_epoch)
    return held.heir == site_id and held.epoch == quorum_part(arrival.source_epoch)
