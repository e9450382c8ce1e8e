"""The ports through which use cases act: one `Site` per controller.

A use case reads `site.index` (synchronous), decides, and writes through `save` and `delete`, which
commit to the site's own catalogue and show the change at once in the index. Other sites are asked
through `others`; nothing here knows a socket.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias, TypeVar

import msgspec

from nuage.catalogue.codec import id_of, kind_of
from nuage.catalogue.store import ABSENT, Catalogue, Delete, LostRace, Put
from nuage.clock import Clock
from nuage.errors import Conflict, Moving, Unavailable
from nuage.facility.ports import BootDevice, PowerOrder, PowerState
from nuage.iaas.index import Change, FederationIndex, name_of
from nuage.iaas.promises import Promises
from nuage.ids import EntropySource, IaasId, NodeId, PortId, SegmentId, SiteId, VmId, VolumeId
from nuage.model.contract import Contract
from nuage.model.desired import ChapWish, HeadReport, IonodeReport
from nuage.model.energy import EnergyPlan, EnergyRow, PlanAsk, VmEnergy
from nuage.model.iaas import IaasKey
from nuage.model.infrastructure import Node
from nuage.model.placement import Decision, VmRequest
from nuage.model.record import Noun, Record
from nuage.model.vm import Vm
from nuage.model.volume import Volume
from nuage.quorum.model import Quorum
from nuage.storage.ledgers import LedgerShelf
from nuage.storage.places import Ranked
from nuage.trust.datakeys import Keyring

HAND_OVER_S_MAX: Final = 30.0  # a feed brings the new home's record within a second
# Before each further try of what lost a race: the index shows the write that won once that is on
# the disk, in milliseconds, or on a busy one in some tenths of a second.
RACE_WAITS_S: Final = (0.02, 0.1, 0.5)
R = TypeVar("R")


class OtherSites(Protocol):
    """Asks another site's controller."""

    async def ask(
        self, site_id: SiteId, method: str, body: object, result: type[R], *, timeout_s: float
    ) -> R:
        """Return the answer of `site_id` to `method`.

        Raises:
            SiteUnreachable: the site is cut off, or does not answer.
            NuageError: what the other site raised.
        """
        ...

    def tell(self, site_id: SiteId, method: str, body: object) -> None:
        """Send a notice that may be lost.

        Raises:
            SiteUnreachable: the site is cut off.
        """
        ...

    def subscribe(
        self, site_id: SiteId, method: str, body: object, item_type: type[R]
    ) -> AsyncIterator[R]:
        """Follow a stream of `site_id`.

        Raises:
            SiteUnreachable: the site is cut off.
        """
        ...


class VmDraft(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A new VM on its way to the site that will be elected, with what is made along with it."""

    vm: Vm
    volumes: tuple[Volume, ...]
    port_id: PortId | None


class ArrivalDraft(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A VM that exists and moves: the elected node shall expect it."""

    vm_id: VmId
    source_site: SiteId
    source_node: NodeId
    source_epoch: int


class RestartDraft(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A VM whose node is gone: the elected node shall start it, under `epoch`."""

    vm: Vm
    epoch: int


Draft: TypeAlias = VmDraft | ArrivalDraft | RestartDraft


class Nodes(Protocol):
    """Asks a node of this site."""

    async def ask(
        self, node_id: NodeId, method: str, body: object, result: type[R], *, timeout_s: float
    ) -> R:
        """Return the answer of the node's agent.

        Raises:
            Unavailable: its agent is not connected.
        """
        ...

    def subscribe(
        self, node_id: NodeId, method: str, body: object, item_type: type[R]
    ) -> AsyncIterator[R]:
        """Follow a stream of the node's agent.

        Raises:
            Unavailable: its agent is not connected.
        """
        ...


class Placer(Protocol):
    """The Master Agent of this site."""

    async def place(self, request: VmRequest, draft: Draft) -> Decision:
        """Run steps 2 to 5 for `request`; the elected site enters `draft` in its catalogue.

        Raises:
            NoCandidate: every candidate refused; each refusal is kept.
        """
        ...


class Steering(Protocol):
    """The energy of this site: accounts, plans, figures posted."""

    async def what_if(self, ask: PlanAsk) -> EnergyPlan:
        """Return the plan that `ask` would give; nothing is done."""
        ...

    async def apply(self, ask: PlanAsk) -> EnergyPlan:
        """Begin the plan that `ask` gives now.

        Raises:
            Conflict: a plan is under way.
        """
        ...

    def progress(self) -> EnergyPlan | None:
        """Return the plan under way, or the last one."""
        ...

    def post(self, figure: str, value: float | None, for_s: float) -> None:
        """Take a figure that somebody knows, until then; None takes it back."""
        ...

    def report(self, month: str) -> tuple[EnergyRow, ...]:
        """Return the accounts of a month (``2026-11``), or of all."""
        ...

    def vm_energy(self, vm_id: VmId) -> VmEnergy:
        """Return what a VM has used here."""
        ...

    def wake(self, node_id: NodeId, why: str) -> None:
        """Begin to switch a sleeping node on."""
        ...


class Machines(Protocol):
    """The power of this site's nodes by hand, through BMCs and PDUs.

    Each raises InvalidRequest where the node has no BMC or outlets that the site knows, and a
    NuageError where these do not answer or obey.
    """

    async def power_state(self, node: Node) -> PowerState:
        """Return what a node's BMC says."""
        ...

    async def outlet_states(self, node: Node) -> dict[str, bool | None]:
        """Return which outlets of a node (``rack/number``) are on; None where nobody tells."""
        ...

    async def order(
        self, node: Node, order: PowerOrder, *, force: bool, boot: BootDevice | None
    ) -> None:
        """Have a node's BMC switch it; `boot` is what it boots from next."""
        ...

    async def order_outlets(self, node: Node, order: PowerOrder) -> None:
        """Switch all of a node's outlets."""
        ...


class Distrust(Protocol):
    """Takes back what certificates promised."""

    async def revoke_node(self, node_id: NodeId) -> None:
        """Believe nothing any more that a node of this site shows.

        Raises:
            NotFound: it never joined.
        """
        ...

    async def revoke_site(self, site_id: SiteId) -> None:
        """Believe nothing any more that a whole datacenter shows.

        Raises:
            NotFound: no such datacenter.
            Unavailable: the federation's root key is not here.
        """
        ...

    async def roll_keys(self) -> int:
        """Begin the next generation of the fabric's keys; return its number."""
        ...


Announce = Callable[[str, str, str, str], None]


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A volume that goes to another home, under `epoch` (0: not known yet).

    After `until_s` that home may be gone, and its record with it: then it is as it was before.
    """

    epoch: int
    until_s: float


@dataclass(slots=True)
class VolumePlaces:
    """Who takes new volumes by contract, as worked out at `version` of the index's places."""

    version: int = -1
    by_contract: dict[Contract, Ranked] = field(default_factory=dict)


def _no_login(volume: Volume) -> ChapWish:
    raise Unavailable(f"no secrets are here that a host could log in to {volume.name} with")


@dataclass(slots=True)
class Site:
    """What the use cases of one controller act through.

    `announce(kind, id, what, text)` puts a line on the live event stream. `on_change` hears every
    change of the index that this site's own writes make. `age_of` tells how many seconds ago a
    site was last heard: 0.0 for this one, infinity for one never heard. `addresses_promised` are
    given to ports whose write is on its way to the disk, `promises_begun` made of nodes by volumes
    whose write is. `ledgers` are where this site notes
    what its IO-nodes vouch for. `keyring` has the data keys that are unlocked here. `deciding` are
    new VMs whose decision is not written down yet. `host_login` tells how the host that has a
    volume logs in, `target_login` by what its target proves itself to it, if it shall. `is_revoked`
    tells whether a datacenter is believed no more.
    `heads_seen` is what heads said last, `ionodes_seen` what this site's IO-nodes did, and
    `drops_told` the last day (since 1970) on which a volume's early loss of history was announced,
    `waits_told` for which copies a volume's writes were last said to wait, `anew_told` which of
    its copies were said to be made anew and have not been said to have everything since.
    `handed_over` has the volumes that go to another home: what is written of them here before
    that home's record has come would be lost.
    """

    site_id: SiteId
    clock: Clock
    index: FederationIndex
    catalogue: Catalogue
    quorum: Quorum
    others: OtherSites
    nodes: Nodes
    placer: Placer
    announce: Announce
    on_change: Callable[[Change], None]
    age_of: Callable[[SiteId], float]
    entropy: EntropySource = field(default=os.urandom)
    lease_term: Callable[[], int] = field(default=lambda: 0)
    gained: Callable[[VmId, int], bool] = field(default=lambda _vm_id, _term: True)  # in a term
    holds_lease: Callable[[], bool] = field(default=lambda: True)  # others leave ours alone
    steering: Steering | None = None
    machines: Machines | None = None
    confirm_off: Callable[[Node, str], Awaitable[None]] | None = None
    distrust: Distrust | None = None
    host_login: Callable[[Volume], ChapWish] = field(default=_no_login)
    target_login: Callable[[Volume], ChapWish | None] = field(default=_no_login)
    is_revoked: Callable[[SiteId], bool] = field(default=lambda _site_id: False)
    volume_places: VolumePlaces = field(default_factory=VolumePlaces)
    promises_begun: Promises = field(default_factory=Promises)
    addresses_promised: dict[SegmentId, set[int]] = field(default_factory=dict)
    ledgers: LedgerShelf | None = None
    keyring: Keyring = field(default_factory=Keyring)
    deciding: set[VmId] = field(default_factory=set)
    heads_seen: dict[VolumeId, HeadReport] = field(default_factory=dict)
    ionodes_seen: dict[NodeId, IonodeReport] = field(default_factory=dict)
    drops_told: dict[VolumeId, int] = field(default_factory=dict)
    waits_told: dict[VolumeId, tuple[NodeId, ...]] = field(default_factory=dict)
    handed_over: dict[VolumeId, HandedOver] = field(default_factory=dict)
    anew_told: dict[VolumeId, frozenset[NodeId]] = field(default_factory=dict)

    async def save(self, *values: Noun, unique_name: bool = False) -> tuple[Record, ...]:
        """Write `values` as one unit into this site's catalogue.

        Raises:
            Conflict: an object lives at another site under the same or a later epoch, was
                changed meanwhile, or its name is taken (`unique_name`).
        """
        return await self.commit([self._put(value, unique_name=unique_name) for value in values])

    def put(self, value: Noun) -> Put:
        """Return the change that writes `value`, to be committed with others."""
        return self._put(value, unique_name=False)

    def _put(self, value: Noun, *, unique_name: bool) -> Put:
        kind, object_id = kind_of(value), id_of(value)
        record = self.index.find(kind, object_id)
        if record is not None and record.home != self.site_id:
            if getattr(value, "epoch", 0) <= record.epoch:
                raise Conflict(f"{kind} {object_id} belongs to site {record.home}")
            record = None
        expected = ABSENT if record is None else record.revision
        return Put(value=value, expected=expected, unique_name=unique_name and record is None)

    async def save_moving(self, *values: Noun, epoch: int) -> tuple[Record, ...]:
        """Write what comes here from another home along with a VM, all under its `epoch`."""
        puts = []
        for value in values:
            record = self.index.find(kind_of(value), id_of(value))
            mine = record is not None and record.home == self.site_id
            expected = record.revision if record is not None and mine else None
            puts.append(Put(value=value, expected=expected, epoch=epoch))
        return await self.commit(puts)

    async def save_decision(self, decision: Decision, *values: Noun, epoch: int) -> None:
        """Keep the last decision on a VM, whichever site took the one before, with `values`.

        `epoch` is the VM's once the decision has come true: the highest counts everywhere.
        """
        record = self.index.find("decision", decision.vm_id)
        mine = record is not None and record.home == self.site_id
        expected = record.revision if record is not None and mine else None
        kept = Put(value=decision, expected=expected, epoch=epoch)
        await self.commit([*(self._put(value, unique_name=False) for value in values), kept])

    async def delete(self, *values: Noun) -> None:
        """Delete this site's own records of `values` as one unit."""
        await self.commit([Delete(kind=kind_of(value), id=id_of(value)) for value in values])

    async def commit(self, changes: Sequence[Put | Delete]) -> tuple[Record, ...]:
        """Commit several puts and deletes as one unit and show them in the index.

        Raises:
            Moving: a volume among them is on its way to another home.
            Conflict: as in `save`.
        """
        for change in changes:
            self._require_kept(change)
        begun = self._promised_by(changes)
        for node_id, iaas_id, more_bytes in begun:
            self.promises_begun.add(node_id, iaas_id, more_bytes)
        try:
            records = await self.catalogue.write(changes)
        finally:
            for node_id, iaas_id, more_bytes in begun:
                self.promises_begun.add(node_id, iaas_id, -more_bytes)
        for record in records:
            self.on_change(self.index.put(record))
        for change in changes:
            if isinstance(change, Delete):
                self.on_change(self.index.remove(change.kind, change.id, self.site_id))
        return records

    def _promised_by(self, changes: Sequence[Put | Delete]) -> list[tuple[NodeId, IaasId, int]]:
        """Return what volumes among `changes` take more of nodes than they have."""
        more = []
        for change in changes:
            if not isinstance(change, Put) or not isinstance(change.value, Volume):
                continue
            volume = change.value
            known = self.index.find_value(Volume, volume.volume_id)
            held = () if known is None else {place.node_id for place in known.replicas}
            for place in volume.replicas:
                had_bytes = known.size_bytes if known and place.node_id in held else 0
                if volume.size_bytes > had_bytes and not volume.is_template:
                    more.append((place.node_id, volume.iaas_id, volume.size_bytes - had_bytes))
        return more

    def _require_kept(self, change: Put | Delete) -> None:
        if not self.handed_over:
            return
        if isinstance(change, Put):
            volume_id = change.value.volume_id if isinstance(change.value, Volume) else None
        else:
            volume_id = VolumeId(change.id) if change.kind == "volume" else None
        given = None if volume_id is None else self.handed_over.get(volume_id)
        if volume_id is None or given is None:
            return
        if given.until_s < self.clock.monotonic_s():
            del self.handed_over[volume_id]  # the new home is not heard: it may be gone
            return
        record = self.index.find("volume", volume_id)
        if record is None or record.home != self.site_id:
            return
        raise Moving(
            f"the head of volume {name_of(record.value)} goes to another site just now",
            hint=f"`nuage volume show {name_of(record.value)}` tells where it is; ask again",
        )

    def hand_over(self, volume_id: VolumeId, epoch: int = 0) -> None:
        """Note that a volume is another home's from `epoch` on (0: not known yet)."""
        record = self.index.find("volume", volume_id)
        if record is None or 0 < epoch <= record.epoch:
            self.handed_over.pop(volume_id, None)  # its record has come already
        else:
            until_s = self.clock.monotonic_s() + HAND_OVER_S_MAX
            self.handed_over[volume_id] = HandedOver(epoch, until_s)

    def forget(self, change: Change) -> None:
        """Let go of what is remembered of what no site knows any more, or has gone elsewhere."""
        if change.kind == "volume" and change.id in self.handed_over:
            epoch = self.handed_over[VolumeId(change.id)].epoch
            if change.after is None or 0 < epoch <= change.after.epoch:
                del self.handed_over[VolumeId(change.id)]
        if change.before is None or change.after is not None:
            return
        match change.before.value:
            case Volume(volume_id=volume_id):
                self.heads_seen.pop(volume_id, None)
                self.drops_told.pop(volume_id, None)
                self.waits_told.pop(volume_id, None)
                self.anew_told.pop(volume_id, None)
            case IaasKey(iaas_id=iaas_id):
                self.keyring.forget(iaas_id)
            case _:
                pass


async def begun_anew(site: Site, act: Callable[[], Awaitable[R]]) -> R:
    """Return what `act` gives; it is begun anew, a few times, when its write loses a race.

    Only for what does nothing before its one write: nothing is done twice then.

    Raises:
        LostRace: others write it all the time.
    """
    for wait_s in RACE_WAITS_S:
        try:
            return await act()
        except LostRace:
            await site.clock.sleep(wait_s)
    return await act()
