"""A federation through a minute of trouble, from one seed, with checks on what must always hold.

Users create, stop, start, migrate and delete; lines are cut, controllers and nodes crash, BMCs
fall silent. Then all is healed, and what is left is compared with what was promised.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.federation.nodes import DISK, SimIonode, SimVnode, Watching, make_node
from tests.simulation.federation.whole_sites import SimSite

from nuage.errors import NoCandidate, NuageError
from nuage.iaas.building import CreateIaas
from nuage.iaas.index import Change
from nuage.iaas.machines import CreateVm, MigrateVm, NameVm
from nuage.ids import ImageId, NodeId, SiteId, VmId, VolumeId
from nuage.model.contract import AckPolicy, Contract, CutOffRule, refusal_of_site
from nuage.model.iaas import Iaas
from nuage.model.image import Image, ImageState
from nuage.model.infrastructure import Datacenter, NodeRole, Operator
from nuage.model.placement import Decision
from nuage.model.record import Record
from nuage.model.status import OVERCOMMIT_RATIO, NodeStatus
from nuage.model.vm import PowerWish, Vm
from nuage.model.volume import Volume
from nuage.quorum.model import DRIFT_MAX
from nuage.simulation.virtual_time import SkewedClock, run_virtually
from nuage.simulation.wires import Machine
from nuage.storage.places import PROMISED
from nuage.units import MIB
from nuage.vnode.fake import FakeFabric

SITE_NAMES = ("lyon", "marne", "rennes")
IMAGE_BYTES = 16 * MIB
SETTLE_S = 6.0  # feeds, leases, first reports
CHAOS_S = 40.0  # longer than a lease, a takeover and a return
HEAL_S = 16.0  # a lease and an election
CONVERGE_TRIES = 40  # three seconds each: fencing given up, back-off of crashed guests
CONTRACTS = {
    "stay": Contract(),
    "copied": Contract(
        copies=2, copy_sites=2, ack_policy=AckPolicy.ALL, cut_off=CutOffRule.FAIL_OVER
    ),
    "western": Contract(
        sites=(SiteId("lyon"), SiteId("rennes")), copies=2, copy_sites=2,
        ack_policy=AckPolicy.ALL, cut_off=CutOffRule.FAIL_OVER,
    ),
}  # fmt: skip


class Broken(AssertionError):
    """A promise was broken."""


class World(Watching):
    """One run."""

    overcommit_ratio = OVERCOMMIT_RATIO  # of each IO-node

    def __init__(self, seed: int) -> None:
        super().__init__(seed, slow_share=0.0)
        self.seed = seed
        self.wires.slow_share = self.prng.choice((0.0, 0.0, 0.05))
        self.breaches: list[str] = []
        self.runs_at: dict[VmId, set[str]] = {}
        self.wanted: dict[str, PowerWish | None] = {}  # by name; None: nobody knows
        self.iaas_of: dict[str, str] = {}
        self.busy: set[str] = set()  # a person waits for an answer before asking again
        self.refused: list[NoCandidate] = []
        self.promised_by: dict[tuple[VolumeId, NodeId], SiteId] = {}  # who put a copy on a node
        self.dark: set[SiteId] = set()  # sites without power: their members of the quorum, too
        self.log: list[str] = []

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def tell(self, text: str) -> None:
        self.log.append(f"{self.now_s():8.3f} {text}")

    # Building -------------------------------------------------------------------------------------

    async def build(self) -> None:
        listeners: dict[str, tuple[Any, VmId]] = {}
        for number, name in enumerate(SITE_NAMES):
            rate = 1.0 + self.prng.uniform(-DRIFT_MAX, DRIFT_MAX)
            offset_s = self.prng.uniform(-5.0, 5.0)
            datacenter = Datacenter(
                site_id=SiteId(name), place=name.title(), country="FR",
                operator=Operator(name.title(), "FR"), tier=3, power_capacity_watts=18_000.0,
                number=number, latitude_deg=45.0 + number,
            )  # fmt: skip
            site = SimSite(self, datacenter, SkewedClock(rate=rate, offset_s=offset_s))
            self.sites[site.site_id] = site
            for n in (1, 2):
                clock = SkewedClock(
                    rate=1.0 + self.prng.uniform(-DRIFT_MAX, DRIFT_MAX),
                    offset_s=offset_s + self.prng.uniform(-20.0, 20.0),
                )
                fabric = FakeFabric(listeners=listeners, port_last=49_151 + 1000 * number + 500 * n)
                node = make_node(site.site_id, NodeRole.VNODE, n)
                site.vnodes.append(SimVnode(self, site, node, clock, fabric))
            node = make_node(site.site_id, NodeRole.IONODE, 1)
            site.ionodes.append(SimIonode(
                self, site, node, site.clock, overcommit_ratio=self.overcommit_ratio
            ))  # fmt: skip
        self.people = Machine("people")
        for site in self.sites.values():
            site.boot()
            for vnode in site.vnodes:
                self.people.spawn(self._watched(vnode.run()))
            for ionode in site.ionodes:
                self.people.spawn(self._watched(ionode.run()))
        await asyncio.sleep(SETTLE_S)
        first = self.sites[SiteId("lyon")]
        image = Image(
            image_id=ImageId("img-1"), name="guest", iaas_id=None, sha256="aa",
            size_bytes=IMAGE_BYTES, state=ImageState.READY,
        )  # fmt: skip
        await first.site.save(image)
        for name, contract in CONTRACTS.items():
            await first.perform("iaas.create", CreateIaas(name=name, contract=contract))
        await asyncio.sleep(2.0)

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.bugs.append(error)
            raise

    # Checks that hold at every moment -------------------------------------------------------------

    def guest_changed(self, node: SimVnode, vm_id: VmId, *, runs: bool) -> None:
        places = self.runs_at.setdefault(vm_id, set())
        if not runs:
            places.discard(node.node.node_id)
            return
        if node.node.node_id not in places:
            self.tell(f"{vm_id} runs on {node.node.node_id}")
        places.add(node.node.node_id)
        if len(places) > 1:
            self.breach(f"{vm_id} runs on {' and '.join(sorted(places))}")
        self._check_contract(node.site, vm_id)

    def _check_contract(self, site: SimSite, vm_id: VmId) -> None:
        vm = site.index.find_value(Vm, vm_id)
        iaas = None if vm is None else site.index.find_value(Iaas, vm.iaas_id)
        if iaas is not None and refusal_of_site(iaas.contract, site.datacenter) is not None:
            self.breach(f"{vm_id} runs at {site.site_id}, outside its contract")

    def saw(self, site: SimSite, change: Change) -> None:
        value = None if change.after is None else change.after.value
        if isinstance(value, Volume):
            iaas = site.index.find_value(Iaas, value.iaas_id)
            for place in value.replicas:
                holder = self.sites[place.site_id].datacenter
                if iaas is not None and refusal_of_site(iaas.contract, holder) is not None:
                    self.breach(f"a copy of {value.name} lies at {place.site_id}")
            if change.after is not None and change.after.home == site.site_id:
                self._check_promises(site, value)

    def _check_promises(self, site: SimSite, volume: Volume) -> None:
        """Look that no site promises more of a node than may be; two at once may, together."""
        for place in volume.replicas:
            key = volume.volume_id, place.node_id
            if key in self.promised_by or volume.is_template:
                continue
            self.promised_by[key] = site.site_id
            promised_bytes = sum(
                v.size_bytes
                for v in site.index.on_node(Volume, place.node_id)
                if self.promised_by.get((v.volume_id, place.node_id)) == site.site_id
            )
            status = site.index.find_value(NodeStatus, place.node_id)
            if status is not None and promised_bytes > status.promise_bytes_max:
                self.breach(f"{site.site_id} promised {promised_bytes} bytes of {place.node_id}")

    def breach(self, text: str) -> None:
        self.tell(f"BREACH {text}")
        self.breaches.append(text)

    # People ---------------------------------------------------------------------------------------

    async def people_work(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(self.prng.uniform(0.3, 2.0))
            door = self.prng.choice(list(self.sites.values()))
            if not door.machine.is_up:
                continue
            known = sorted(self.wanted)
            choice = self.prng.random()
            if number < 6 and (choice < 0.4 or not known):
                number += 1
                self.people.spawn(self._create(door, f"vm{number}"))
            elif known:
                name = self.prng.choice(known)
                if name not in self.busy and self.wanted[name] is not PowerWish.DELETED:
                    self.busy.add(name)
                    self.people.spawn(self._change(door, name, choice))

    async def _create(self, door: SimSite, name: str) -> None:
        iaas = self.prng.choice(sorted(CONTRACTS))
        self.iaas_of[name] = iaas
        body = CreateVm(iaas=iaas, name=name, image="guest")
        done = await self._ask(door, "vm.create", body, f"create {name}")
        if done is not None:
            self.wanted[name] = PowerWish.RUNNING if done else None

    async def _change(self, door: SimSite, name: str, choice: float) -> None:
        body: NameVm | MigrateVm = NameVm(self.iaas_of[name], name)
        if choice < 0.75:
            what, wish = "migrate", self.wanted[name]
            body = MigrateVm(iaas=self.iaas_of[name], vm=name, site=self.prng.choice(
                (*SITE_NAMES, "")))  # fmt: skip
        elif choice < 0.83:
            what, wish = "stop", PowerWish.STOPPED
        elif choice < 0.92:
            what, wish = "start", PowerWish.RUNNING
        else:
            what, wish = "delete", PowerWish.DELETED
        before = self.wanted[name]
        self.wanted[name] = None
        done = await self._ask(door, f"vm.{what}", body, f"{what} {name}")
        self.busy.discard(name)
        if done is None or what == "migrate":
            self.wanted[name] = before
        elif done:
            self.wanted[name] = wish

    async def _ask(self, door: SimSite, operation: str, body: object, told: str) -> bool | None:
        """Return True: done; None: refused, nothing changed; False: nobody knows."""
        try:
            await door.perform(operation, body)
        except NoCandidate as error:
            self.refused.append(error)
            if any(rule == PROMISED for _, rule, _ in error.refusals):
                self.counts["volume promised-out"] = self.counts["volume promised-out"] + 1
            self.tell(f"{told} at {door.site_id}: {error.code}")
            return None
        except NuageError as error:
            self.tell(f"{told} at {door.site_id}: {error.code} {error.message}")
            unknown = error.code in ("timed_out", "site_unreachable", "unavailable")
            return False if unknown else None
        except asyncio.CancelledError:
            return False
        self.tell(f"{told} at {door.site_id}: done")
        return True

    # Trouble --------------------------------------------------------------------------------------

    async def make_trouble(self) -> None:
        while True:
            await asyncio.sleep(self.prng.uniform(1.0, 8.0))
            self.prng.choice(self.TROUBLES)(self)

    def cut_site(self) -> None:
        cut = self.prng.choice(SITE_NAMES)
        self.tell(f"cut {cut}")
        for other in SITE_NAMES:
            if other != cut:
                self.wires.cut(cut, other)
        self._elect()

    def cut_line(self) -> None:
        a, b = self.prng.sample(SITE_NAMES, 2)
        self.tell(f"cut {a} {b}")
        self.wires.cut(a, b)

    def heal_lines(self) -> None:
        self.tell("heal")
        self.wires.heal()

    def _elect(self) -> None:
        """A leader without a majority is replaced; every lease has its full time again."""
        if self.prng.random() < 0.3:
            self.hub.state.expire(self.hub.clock.monotonic_s())
            self.hub.state.extend_all(self.hub.clock.monotonic_s())

    def crash_controller(self) -> None:
        site = self.prng.choice(list(self.sites.values()))
        if site.machine.is_up:
            self.tell(f"crash {site.site_id}")
            site.crash()
            self.people.spawn(self._boot_later(site, self.prng.uniform(0.5, 20.0)))

    async def _boot_later(self, site: SimSite, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if not site.machine.is_up:
            self.tell(f"boot {site.site_id}")
            site.boot()

    def _any_vnode(self) -> SimVnode:
        site = self.prng.choice(list(self.sites.values()))
        return self.prng.choice(site.vnodes)

    def lose_power(self) -> None:
        node = self._any_vnode()
        self.tell(f"power lost {node.node.node_id}")
        if node.boots % 2:  # shut down in order: its controller takes it for a restart
            node.say_goodbye()
        node.power_off()

    def restore_power(self) -> None:
        for site in self.sites.values():
            for node in site.vnodes:
                node.power_on()

    def cut_node(self) -> None:
        node = self._any_vnode()
        self.tell(f"cut {node.node.node_id}")
        self.wires.cut(node.node.node_id, node.site.site_id)

    def go_dark(self) -> None:
        """Everything loses its power at one instant, and gets it back somewhat apart."""
        dark_s = self.prng.choice((0.5, 4.0, 18.0))  # within a lease, or longer
        self.tell(f"all dark for {dark_s} s")
        self.counts["world dark"] += 1
        for site in self.sites.values():
            self.dark.add(site.site_id)
            site.crash()
            for node in site.vnodes:
                node.power_off()
            for ionode in site.ionodes:
                back_s = self.now_s() + dark_s + self.prng.uniform(0.0, 3.0)
                ionode.lose_power(until_s=back_s)
        for site in self.sites.values():
            self.people.spawn(self._light(site, dark_s))

    async def _light(self, site: SimSite, dark_s: float) -> None:
        await asyncio.sleep(dark_s + self.prng.uniform(0.0, 3.0))
        self._power_members(site.site_id)
        self.people.spawn(self._boot_later(site, self.prng.uniform(0.0, 3.0)))
        for node in site.vnodes:
            await asyncio.sleep(self.prng.uniform(0.0, 2.0))
            node.power_on()

    def _power_members(self, *sites: SiteId) -> None:
        """Give members of the quorum their power; with the majority comes a leader."""
        could_elect = 2 * len(self.dark) < len(self.sites)
        self.dark -= set(sites)
        if not could_elect and 2 * len(self.dark) < len(self.sites):
            self.hub.state.extend_all(self.hub.clock.monotonic_s())

    def has_majority(self, site_id: SiteId) -> bool:
        lit = [other for other in self.sites if other not in self.dark]
        linked = sum(self.wires.is_up(site_id, other) for other in lit)
        return site_id in lit and 2 * linked > len(self.sites)

    def silence_bmc(self) -> None:
        self._any_vnode().bmc_answers = False

    def crash_guest(self) -> None:
        node = self._any_vnode()
        for vm_id in sorted(node.running())[:1]:
            node.hypervisor.crash(vm_id)

    TROUBLES: tuple[Callable[["World"], None], ...] = (
        cut_site, cut_site, cut_line, heal_lines, heal_lines, crash_controller, lose_power,
        restore_power, cut_node, silence_bmc, crash_guest, go_dark,
    )  # fmt: skip

    def heal_all(self) -> None:
        self.tell("heal all")
        self.wires.heal()
        self.wires.slow_share = 0.0
        self._power_members(*self.sites)
        for site in self.sites.values():
            for ionode in site.ionodes:
                ionode.down_until_s = 0.0
            if not site.machine.is_up:
                site.boot()
            for node in site.vnodes:
                node.bmc_answers = True
                node.power_on()

    # The run --------------------------------------------------------------------------------------

    async def run(self) -> None:
        await self.build()
        trouble = self.people.spawn(self._watched(self.make_trouble()))
        work = self.people.spawn(self._watched(self.people_work()))
        await asyncio.sleep(CHAOS_S)
        trouble.cancel()
        work.cancel()
        self.heal_all()
        await asyncio.sleep(HEAL_S)
        for _ in range(CONVERGE_TRIES):
            left = self.differences()
            if not left:
                break
            await asyncio.sleep(3.0)
        if self.bugs:
            raise self.bugs[0]
        if self.breaches or left:
            raise Broken("; ".join((*self.breaches, *left)))

    def differences(self) -> list[str]:
        """Return what is not as it should be once all is well again."""
        left = []
        indexes = [site.index for site in self.sites.values()]
        for kind in ("vm", "volume", "iaas", "port", "decision", "migration", "datacenter", "node"):
            shown = [{r.id: _said(r) for r in index.records(kind)} for index in indexes]
            if any(other != shown[0] for other in shown[1:]):
                left.append(f"the sites disagree about {kind}s")
        index = indexes[0]
        by_name = {vm.name: vm for vm in index.values(Vm)}
        for name, wish in self.wanted.items():
            left += self._vm_difference(name, wish, by_name.get(name))
        for vm in by_name.values():
            decision = index.find_value(Decision, vm.vm_id)
            if vm.name in self.wanted and (decision is None or not decision.policy):
                left.append(f"nothing explains where {vm.name} is")
        left += [
            f"{owned.kind} {owned.id} is gone and still {owned.owner}'s in the quorum"
            for owned in self.hub.state.all_owners()
            if owned.owner and index.find(owned.kind, owned.id) is None
        ]
        left += [
            f"a refusal without a rule: {error.refusals}"
            for error in self.refused
            if not error.refusals or not all(rule for _, rule, _ in error.refusals)
        ]
        return left

    def _was_taken_over(self, vm: Vm) -> bool:
        return any(
            object_id == vm.vm_id and what == "taken-over"
            for site in self.sites.values()
            for _, object_id, what, _ in site.said
        )

    def _vm_difference(self, name: str, wish: PowerWish | None, vm: Vm | None) -> list[str]:
        if wish is None:
            return []
        if vm is not None and self._was_taken_over(vm):
            return []  # what its old home had just accepted may not have been heard by the new one
        if wish is PowerWish.DELETED:
            return [f"{name} was deleted and is there"] if vm is not None else []
        if vm is None:
            return [f"{name} is gone, and nobody deleted it"]
        places = self.runs_at.get(vm.vm_id, set())
        if wish is PowerWish.RUNNING and not places:
            return [f"{name} should run: {vm.state.value} on {vm.node_id}, {vm.failure!r}"]
        if wish is PowerWish.STOPPED and places:
            return [f"{name} should be stopped and runs on {places}"]
        return []


def _said(record: Record) -> tuple[str, int, int]:
    return record.home, record.revision, record.epoch


def run_seed(seed: int) -> World:
    """Run one seed to its end; what it raises tells how to run it again."""
    made: list[World] = []

    async def main() -> None:
        world = World(seed)
        if seed % 4 == 1:  # of these a node takes the copies of two boot volumes
            world.overcommit_ratio = 2 * IMAGE_BYTES / DISK.total_bytes
        made.append(world)
        await world.run()

    try:
        run_virtually(main())
    except Broken as error:
        replay = f"NUAGE_SEED={seed} pytest -q tests/simulation/federation"
        raise Broken(f"{error}; again: {replay}") from None
    return made[0]
