"""A rack's PDU through Redfish `PowerEquipment` (DSP2046; OCP Rack PDU profile)."""

from typing import Final

import msgspec

from nuage.clock import Clock
from nuage.energy.meters import MeterSource, Reading
from nuage.errors import NotFound
from nuage.facility.plausible import believable_kwh, believable_outlet, believable_watts
from nuage.facility.ports import BranchState, OutletState, PduState, PowerOrder
from nuage.facility.redfish import ROOT, Link, Members, RedfishConnection
from nuage.facility.redfish_node import Environment, Excerpt

_ORDERS: Final = {
    PowerOrder.ON: "On", PowerOrder.OFF: "Off", PowerOrder.CYCLE: "PowerCycle",
}  # fmt: skip


class _Expand(msgspec.Struct, frozen=True):
    expand_all: bool = msgspec.field(name="ExpandAll", default=False)
    no_links: bool = msgspec.field(name="NoLinks", default=False)


class _Features(msgspec.Struct, frozen=True):
    expand: _Expand = msgspec.field(name="ExpandQuery", default_factory=_Expand)


class _Root(msgspec.Struct, frozen=True):
    equipment: Link | None = msgspec.field(name="PowerEquipment", default=None)
    features: _Features = msgspec.field(name="ProtocolFeaturesSupported", default_factory=_Features)


class _Equipment(msgspec.Struct, frozen=True):
    pdus: Link | None = msgspec.field(name="RackPDUs", default=None)


class _Distribution(msgspec.Struct, frozen=True):
    metrics: Link | None = msgspec.field(name="Metrics", default=None)
    outlets: Link | None = msgspec.field(name="Outlets", default=None)
    branches: Link | None = msgspec.field(name="Branches", default=None)
    sensors: Link | None = msgspec.field(name="Sensors", default=None)


class _Target(msgspec.Struct, frozen=True):
    target: str


class _OutletActions(msgspec.Struct, frozen=True):
    power_control: _Target | None = msgspec.field(name="#Outlet.PowerControl", default=None)


class _Outlet(msgspec.Struct, frozen=True):
    outlet_id: str = msgspec.field(name="Id")
    label: str | None = msgspec.field(name="UserLabel", default=None)
    power_state: str | None = msgspec.field(name="PowerState", default=None)
    power: Excerpt | None = msgspec.field(name="PowerWatts", default=None)
    energy: Excerpt | None = msgspec.field(name="EnergykWh", default=None)
    actions: _OutletActions = msgspec.field(name="Actions", default_factory=_OutletActions)


class _Outlets(msgspec.Struct, frozen=True):
    members: tuple[_Outlet, ...] = msgspec.field(name="Members")


class _CircuitLinks(msgspec.Struct, frozen=True):
    outlets: tuple[Link, ...] = msgspec.field(name="Outlets", default=())


class _Circuit(msgspec.Struct, frozen=True):
    circuit_id: str = msgspec.field(name="Id")
    power: Excerpt | None = msgspec.field(name="PowerWatts", default=None)
    current: Excerpt | None = msgspec.field(name="CurrentAmps", default=None)
    rated_amps: float | None = msgspec.field(name="RatedCurrentAmps", default=None)
    links: _CircuitLinks = msgspec.field(name="Links", default_factory=_CircuitLinks)


class _Sensor(msgspec.Struct, frozen=True):
    reading: float | None = msgspec.field(name="Reading", default=None)


class RedfishPdu:
    """`RackPdu` of the service's first rack PDU, or of the one named."""

    def __init__(self, connection: RedfishConnection, clock: Clock, *, pdu_id: str = "") -> None:
        self._connection = connection
        self._clock = clock
        self._pdu_id = pdu_id
        self._distribution: _Distribution | None = None
        self._can_expand = False
        self._outlet_paths: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Return the PDU's URL, which names it in errors."""
        return self._connection.url

    async def state(self) -> PduState:
        """Return the whole PDU's reading."""
        pdu = await self._find()
        if pdu.metrics is None:
            raise NotFound("PDU metrics", self.url)
        metrics = await self._connection.get(pdu.metrics.path, Environment)
        if metrics.power is None or metrics.power.reading is None:
            raise NotFound("power reading", self.url)
        watts = believable_watts(metrics.power.reading, self.url)
        return PduState(
            reading=Reading(MeterSource.OUTLET, watts, self._clock.now_s()),
            energy_kwh=believable_kwh(_value(metrics.energy), self.url),
            inlet_celsius=_value(metrics.temperature),
            outside_celsius=await self._outside_celsius(pdu),
        )

    async def outlets(self) -> tuple[OutletState, ...]:
        """Return every outlet, in the order of the device."""
        pdu = await self._find()
        if self._can_expand and pdu.outlets is not None:
            found = await self._connection.get(f"{pdu.outlets.path}?$expand=.", _Outlets)
            return tuple(self._outlet_state(outlet) for outlet in found.members)
        return tuple([self._outlet_state(await self._outlet(p)) for p in await self._outlet_list()])

    async def outlet(self, outlet_id: str) -> OutletState:
        """Return one outlet."""
        return self._outlet_state(await self._outlet(await self._outlet_path(outlet_id)))

    async def branches(self) -> tuple[BranchState, ...]:
        """Return every branch circuit."""
        pdu = await self._find()
        if pdu.branches is None:
            return ()
        members = await self._connection.get(pdu.branches.path, Members)
        circuits = [await self._connection.get(link.path, _Circuit) for link in members.members]
        return tuple(
            BranchState(
                branch_id=circuit.circuit_id,
                power_watts=believable_watts(_value(circuit.power) or 0.0, self.url),
                current_amps=_value(circuit.current) or 0.0,
                rated_amps=circuit.rated_amps or 0.0,
                outlet_ids=tuple(link.path.rpartition("/")[2] for link in circuit.links.outlets),
            )
            for circuit in circuits
        )

    async def switch_outlet(self, outlet_id: str, order: PowerOrder) -> None:
        """Switch one outlet."""
        outlet = await self._outlet(await self._outlet_path(outlet_id))
        control = outlet.actions.power_control
        if control is None:
            raise NotFound("switch of outlet", outlet_id, hint="this PDU only measures")
        await self._connection.post(control.target, {"PowerState": _ORDERS[order]})

    def _outlet_state(self, outlet: _Outlet) -> OutletState:
        state = outlet.power_state
        return believable_outlet(
            self.url,
            outlet.outlet_id,
            label=outlet.label or "",
            is_on=None if state is None else state in ("On", "PoweringOff"),
            watts=_value(outlet.power),
            energy_kwh=_value(outlet.energy),
            read_s=self._clock.now_s(),
        )

    async def _find(self) -> _Distribution:
        if self._distribution is None:
            root = await self._connection.get(f"{ROOT}/", _Root)
            if root.equipment is None:
                raise NotFound("PDU", self.url, hint="this Redfish service has no PowerEquipment")
            expand = root.features.expand
            self._can_expand = expand.no_links or expand.expand_all
            equipment = await self._connection.get(root.equipment.path, _Equipment)
            if equipment.pdus is None:
                raise NotFound("PDU", self.url, hint="its PowerEquipment has no RackPDUs")
            pdus = (await self._connection.get(equipment.pdus.path, Members)).members
            chosen = [
                link for link in pdus
                if not self._pdu_id or link.path.rpartition("/")[2] == self._pdu_id
            ]  # fmt: skip
            if not chosen:
                raise NotFound("PDU", f"{self.url} {self._pdu_id}")
            self._distribution = await self._connection.get(chosen[0].path, _Distribution)
        return self._distribution

    async def _outlet_list(self) -> list[str]:
        pdu = await self._find()
        if pdu.outlets is None:
            return []
        members = await self._connection.get(pdu.outlets.path, Members)
        paths = [link.path for link in members.members]
        self._outlet_paths = {path.rpartition("/")[2]: path for path in paths}
        return paths

    async def _outlet_path(self, outlet_id: str) -> str:
        if outlet_id not in self._outlet_paths:
            await self._outlet_list()
        try:
            return self._outlet_paths[outlet_id]
        except KeyError:
            known = ", ".join(self._outlet_paths)
            raise NotFound("outlet", outlet_id, hint=f"{self.url} has {known}") from None

    async def _outlet(self, path: str) -> _Outlet:
        return await self._connection.get(path, _Outlet)

    async def _outside_celsius(self, pdu: _Distribution) -> float | None:
        """Return the reading of a probe named for outside, where the PDU has one."""
        if pdu.sensors is None:
            return None
        try:
            return (await self._connection.get(f"{pdu.sensors.path}/Outside", _Sensor)).reading
        except NotFound:
            return None


def _value(excerpt: Excerpt | None) -> float | None:
    return None if excerpt is None else excerpt.reading
