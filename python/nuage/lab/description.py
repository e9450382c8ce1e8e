"""The lab's description: one TOML file, typed, refused with the name of the wrong field.

What flows in: a file such as `france.toml`. What flows out: a frozen `LabDescription`
whose names are unique and whose numbers fit the address plan (`addresses.py`).
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from nuage.errors import InvalidRequest, NotFound
from nuage.ids import is_slug
from nuage.model.contract import DiskClass
from nuage.model.infrastructure import NodeRole, require_country
from nuage.units import parse_size

NAME_CHARS_MAX: Final = 20  # a lab's name is part of file, cgroup and namespace names
CURVE_POINTS: Final = 11  # SPECpower's levels: 0, 10 … 100 % load
PER_ROLE_MAX: Final = 80  # the address plan keeps 80 hosts for a role in each site
SITES_MAX: Final = 60  # a /30 for each site in a provider's /24
PROVIDERS_MAX: Final = 4  # a /24 each for lines to the sites' first edges, and to the second
EDGES_MAX: Final = 2  # of a site
DEFAULT_DESCRIPTION: Final = Path(__file__).with_name("france.toml")


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A disk of a node; `class` in the file is `disk_class` here.

    `iops` and `bandwidth` are what a second of it gives; 0: as measured.
    """

    name: str
    disk_class: DiskClass = msgspec.field(name="class")
    size: str
    iops: int = 0
    bandwidth: str = "0"

    @property
    def size_bytes(self) -> int:
        """Return the size; the text was checked when the description was read."""
        return parse_size(self.size)

    @property
    def bytes_per_s(self) -> int:
        """Return the bandwidth."""
        return parse_size(self.bandwidth)


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model of machine.

    Watts are what the machine's boards draw (DC); the outlet sees them divided by
    `psu_efficiency`. The power curve is `curve_watts` (11 points, idle to full) or, without
    it, `epsilon_watts` above idle as soon as there is any load and a straight line to peak
    (SimGrid's form, which follows the jump of the first tenth that real machines show).
    """

    cpu_count: int
    memory_mib: int
    idle_watts: float
    peak_watts: float
    epsilon_watts: float = 0.0
    curve_watts: tuple[float, ...] = ()
    standby_watts: float = 4.0
    boot_watts: float | None = None
    boot_seconds: float = 2.0
    psu_efficiency: float = 0.94
    disks: tuple[Disk, ...] = ()


class Links(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Speeds of cables, in Mbit/s (0 leaves a cable unshaped), and what fits in a frame.

    1600 bytes ("baby giants") carry a tenant's 1500 within TRILL or LISP headers, in the rack
    and on the carriers' lines alike, so nothing needs to be fragmented. `wan_mtu_bytes` is of the
    providers' lines, 0: as all.
    """

    node_mbit: int = 1000
    wan_mbit: int = 200
    mtu_bytes: int = 1600
    wan_mtu_bytes: int = 0


class Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the BMCs and PDUs accept."""

    user: str = "operator"
    password: str
    community: str = "nuage-lab"


class SiteOperator(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The company that runs a site; `country` is where it answers to the law."""

    name: str
    country: str


class PduSpeech(Enum):
    """What a rack's PDU speaks beside Redfish; an ``apc`` or ``raritan`` is read by SNMP."""

    REDFISH = "redfish"
    APC = "apc"
    RARITAN = "raritan"


class RackDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A rack: each list names the hardware model of one node."""

    name: str
    vnodes: tuple[str, ...] = ()
    ionodes: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()
    controllers: tuple[str, ...] = ()
    switch_watts: float = 30.0
    pdu_rated_amps: float = 32.0
    pdu: PduSpeech = PduSpeech.REDFISH


class SiteDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A datacenter of the lab. `outside_celsius` holds until `nuage lab weather` says other.

    `tariff` is a file of `lab/tariffs/` without its ending; `carbon_g_per_kwh` is the grid's.
    """

    id: str
    place: str
    country: str
    latitude_deg: float
    longitude_deg: float
    climate_zone: str = ""
    operator: SiteOperator
    tier: int
    power_capacity_watts: float
    outside_celsius: float = 15.0
    tariff: str = "two-rates"
    carbon_g_per_kwh: float = 32.0
    racks: tuple[RackDescription, ...]


class NodeDescription(msgspec.Struct, frozen=True, kw_only=True):
    """One machine, worked out of its rack. `host` is its number in the site's subnets."""

    name: str
    site: str
    site_number: int
    rack: str
    role: NodeRole
    host: int
    outlet: int
    hardware: Hardware


class PduDescription(msgspec.Struct, frozen=True, kw_only=True):
    """The PDU of a rack: outlet n feeds node `outlets[n - 1]`, the last the rack's switch."""

    name: str
    site: str
    site_number: int
    rack: str
    host: int
    outlets: tuple[str, ...]
    switch_watts: float
    rated_amps: float
    speech: PduSpeech


class LabDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A lab. `number` is the second byte of its addresses, seen inside it only."""

    name: str
    number: int = 1
    providers: tuple[str, ...] = ("isp1", "isp2")
    links: Links = Links()
    credentials: Credentials
    hardware: dict[str, Hardware]
    sites: tuple[SiteDescription, ...]

    def nodes(self) -> tuple[NodeDescription, ...]:
        """Return every machine, in the order of the file."""
        return tuple(self._nodes())

    def edges(self, site_id: str) -> tuple[NodeDescription, ...]:
        """Return the edges of a site, the first first."""
        nodes = self._nodes()
        return tuple(n for n in nodes if n.role is NodeRole.EDGE and n.site == site_id)

    def node(self, name: str) -> NodeDescription:
        """Return the machine `name`, or raise NotFound with the names there are."""
        for node in self._nodes():
            if node.name == name:
                return node
        raise NotFound("node", name, hint="nodes: " + ", ".join(n.name for n in self._nodes()))

    def site(self, site_id: str) -> SiteDescription:
        """Return the site `site_id`, or raise NotFound with the names there are."""
        for site in self.sites:
            if site.id == site_id:
                return site
        raise NotFound("site", site_id, hint="sites: " + ", ".join(s.id for s in self.sites))

    def site_number(self, site_id: str) -> int:
        """Return the third byte of the site's addresses (1 for the first)."""
        return self.sites.index(self.site(site_id)) + 1

    def pdus(self) -> tuple[PduDescription, ...]:
        """Return the PDU of every rack."""
        return tuple(self._pdus())

    def _pdus(self) -> Iterator[PduDescription]:
        nodes = self.nodes()
        for site_number, site in enumerate(self.sites, start=1):
            for rack_index, rack in enumerate(site.racks):
                fed = tuple(n.name for n in nodes if (n.site, n.rack) == (site.id, rack.name))
                yield PduDescription(
                    name=f"{site.id}-{rack.name}-pdu",
                    site=site.id,
                    site_number=site_number,
                    rack=rack.name,
                    host=240 + rack_index,
                    outlets=(*fed, f"{site.id}-switch"),
                    switch_watts=rack.switch_watts,
                    rated_amps=rack.pdu_rated_amps,
                    speech=rack.pdu,
                )

    def _nodes(self) -> Iterator[NodeDescription]:
        for site_number, site in enumerate(self.sites, start=1):
            counts: Counter[NodeRole] = Counter()
            for rack in site.racks:
                outlet = 0
                for role, models in _roles_of(rack):
                    for model in models:
                        outlet += 1
                        counts[role] += 1
                        yield NodeDescription(
                            name=f"{site.id}-{_SHORT[role]}{counts[role]}",
                            site=site.id,
                            site_number=site_number,
                            rack=rack.name,
                            role=role,
                            host=_FIRST_HOST[role] + counts[role] - 1,
                            outlet=outlet,
                            hardware=self.hardware[model],
                        )


_SHORT: Final = {
    NodeRole.CONTROLLER: "c", NodeRole.VNODE: "v", NodeRole.IONODE: "io", NodeRole.EDGE: "edge",
}  # fmt: skip
_FIRST_HOST: Final = {
    NodeRole.EDGE: 1, NodeRole.CONTROLLER: 10, NodeRole.VNODE: 20, NodeRole.IONODE: 120,
}  # fmt: skip
_MAX_OF_ROLE: Final = {
    NodeRole.EDGE: EDGES_MAX, NodeRole.CONTROLLER: 7, NodeRole.VNODE: PER_ROLE_MAX,
    NodeRole.IONODE: PER_ROLE_MAX,
}  # fmt: skip


def _roles_of(rack: RackDescription) -> tuple[tuple[NodeRole, tuple[str, ...]], ...]:
    return (
        (NodeRole.VNODE, rack.vnodes),
        (NodeRole.IONODE, rack.ionodes),
        (NodeRole.EDGE, rack.edges),
        (NodeRole.CONTROLLER, rack.controllers),
    )


def bundled_names() -> list[str]:
    """Return the names of the descriptions that come with Nuage."""
    return sorted(path.stem for path in DEFAULT_DESCRIPTION.parent.glob("*.toml"))


def description_file(path: Path) -> Path:
    """Return the file that a person means: one at `path`, else a bundled one of that name."""
    if not path.is_file() and str(path) in bundled_names():
        return DEFAULT_DESCRIPTION.with_name(f"{path}.toml")
    return path


def load_description(path: Path) -> LabDescription:
    """Read and check a description file, or a bundled one by its name.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: it is not TOML, or a field (named) is wrong.
    """
    try:
        text = description_file(path).read_text(encoding="utf-8")
    except OSError as error:
        hint = f"give a TOML file, or a name that Nuage knows: {', '.join(bundled_names())}"
        raise NotFound("lab description", str(path), hint=hint) from error
    return parse_description(text)


def parse_description(text: str) -> LabDescription:
    """Return the description that `text` (TOML) holds; raise InvalidRequest with the field."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"the lab description is not TOML: {error}") from error
    try:
        description = msgspec.convert(document, LabDescription)
    except msgspec.ValidationError as error:
        message, field = _split_path(str(error))
        raise InvalidRequest(f"lab description: {message}", field=field) from error
    _check(description)
    return description


def _split_path(message: str) -> tuple[str, str]:
    """Split msgspec's ``text - at `$.sites[0].tier` `` into the text and ``sites[0].tier``."""
    found = re.search(r" - at `\$\.?([^`]*)`", message)
    unknown = re.search(r"(?:unknown|missing required) field `([^`]+)`", message)
    field = found.group(1) if found else ""
    if unknown:
        field = f"{field}.{unknown.group(1)}" if field else unknown.group(1)
    return (message[: found.start()] if found else message), field


def _check(description: LabDescription) -> None:
    if len(description.name) > NAME_CHARS_MAX or not is_slug(description.name):
        _refuse(
            "name", f"{description.name!r} is not a slug of at most {NAME_CHARS_MAX} characters"
        )
    if not 1 <= description.number <= 250:
        _refuse("number", f"{description.number} is not within 1 to 250")
    if not 1 <= len(description.providers) <= PROVIDERS_MAX or len(
        set(description.providers)
    ) != len(description.providers):
        _refuse("providers", "name one to four different providers")
    for index, provider in enumerate(description.providers):
        if not is_slug(provider) or provider == "outside":  # which is everybody's host
            _refuse(f"providers[{index}]", f"{provider!r} is not a slug of its own")
    if not description.credentials.password:
        _refuse("credentials.password", "a BMC needs a password")
    if description.links.node_mbit < 0 or description.links.wan_mbit < 0:
        _refuse("links", "a speed is not negative; 0 leaves the cable unshaped")
    if not 1280 <= description.links.mtu_bytes <= 9000:
        _refuse("links.mtu_bytes", "an MTU is within 1280 to 9000")
    if description.links.wan_mtu_bytes and not 1280 <= description.links.wan_mtu_bytes <= 9000:
        _refuse("links.wan_mtu_bytes", "an MTU is within 1280 to 9000; 0: as all")
    for name, hardware in description.hardware.items():
        _check_hardware(hardware, f"hardware.{name}")
    _check_sites(description)


def _check_hardware(hardware: Hardware, field: str) -> None:
    if hardware.cpu_count < 1:
        _refuse(f"{field}.cpu_count", "a machine has at least one CPU")
    if hardware.memory_mib < 1:
        _refuse(f"{field}.memory_mib", "a machine has memory")
    if not 0 <= hardware.standby_watts <= hardware.idle_watts <= hardware.peak_watts:
        _refuse(f"{field}.idle_watts", "0 ≤ standby ≤ idle ≤ peak does not hold")
    if not 0 <= hardware.epsilon_watts <= hardware.peak_watts - hardware.idle_watts:
        _refuse(f"{field}.epsilon_watts", "the jump at first load exceeds peak - idle")
    curve = hardware.curve_watts
    if curve and (len(curve) != CURVE_POINTS or list(curve) != sorted(curve) or curve[0] < 0):
        _refuse(f"{field}.curve_watts", f"give {CURVE_POINTS} rising values, idle to full load")
    if not 0.5 <= hardware.psu_efficiency <= 1:
        _refuse(f"{field}.psu_efficiency", "an efficiency is within 0.5 to 1")
    if hardware.boot_seconds < 0:
        _refuse(f"{field}.boot_seconds", "a duration is not negative")
    for index, disk in enumerate(hardware.disks):
        for name in ("size", "bandwidth"):
            try:
                parse_size(getattr(disk, name))
            except ValueError as error:
                _refuse(f"{field}.disks[{index}].{name}", str(error))


def _check_sites(description: LabDescription) -> None:
    if not 1 <= len(description.sites) <= SITES_MAX:
        _refuse("sites", f"a lab has 1 to {SITES_MAX} sites")
    seen: set[str] = set()
    for index, site in enumerate(description.sites):
        field = f"sites[{index}]"
        if not is_slug(site.id) or site.id in seen:
            _refuse(f"{field}.id", f"{site.id!r} is not a slug of its own")
        if site.id in description.providers:
            _refuse(f"{field}.id", f"{site.id!r} is the name of a provider")
        seen.add(site.id)
        require_country(site.country, f"{field}.country")
        require_country(site.operator.country, f"{field}.operator.country")
        if not 1 <= site.tier <= 4:
            _refuse(f"{field}.tier", f"{site.tier} is not one of TIA-942's 1 to 4")
        if site.power_capacity_watts <= 0:
            _refuse(f"{field}.power_capacity_watts", "a site has power")
        if not -60 <= site.outside_celsius <= 60:
            _refuse(f"{field}.outside_celsius", "no weather on Earth: give -60 to 60 °C")
        _check_racks(description, site, field)


def _check_racks(description: LabDescription, site: SiteDescription, field: str) -> None:
    counts: Counter[NodeRole] = Counter()
    if not 1 <= len(site.racks) <= 10 or len({rack.name for rack in site.racks}) != len(site.racks):
        _refuse(f"{field}.racks", "a site has 1 to 10 racks with names of their own")
    for rack_index, rack in enumerate(site.racks):
        where = f"{field}.racks[{rack_index}]"
        if not is_slug(rack.name):
            _refuse(f"{where}.name", f"{rack.name!r} is not a slug")
        for role, models in _roles_of(rack):
            counts[role] += len(models)
            for model_index, model in enumerate(models):
                if model not in description.hardware:
                    known = ", ".join(sorted(description.hardware))
                    _refuse(
                        f"{where}.{role.value}s[{model_index}]",
                        f"no hardware {model!r}; there is {known}",
                    )
    if not counts[NodeRole.EDGE]:
        _refuse(f"{field}.racks", "a site needs one or two edges: the others reach it there")
    for role, most in _MAX_OF_ROLE.items():
        if counts[role] > most:
            _refuse(f"{field}.racks", f"at most {most} {role.value}s fit a site's address plan")


def _refuse(field: str, message: str) -> None:
    raise InvalidRequest(f"lab description: {message}", field=field)
