"""The TOML file of a process, read once at start.

Unknown keys are errors, so that a typing mistake is not silently a default.
"""

import os
import tomllib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Final, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from nuage.errors import InvalidRequest
from nuage.model.contract import DiskClass
from nuage.model.infrastructure import Datacenter, Node
from nuage.model.status import OVERCOMMIT_RATIO, OVERCOMMIT_RATIO_BOUNDS

STATE_DIR_BYTES_MAX: Final = 107 - len("/daemons/iaas-0123456789abcdef.sock")  # sockaddr_un
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumConfiguration:
    """A site's member of the quorum; without `peer_url` the federation is one site alone."""

    data_dir: Path | None = None
    client_url: str = ""
    peer_url: str = ""
    metrics_listen: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfiguration:
    """A public source that the site asks by itself (`nuage.energy.public_sources`).

    `url` empty is its public address. `key_file` (0600) holds ENTSO-E's security token, or RTE's
    ``id:secret``, which `token_url` changes for a token.
    """

    url: str = ""
    key_file: Path | None = None
    token_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyConfiguration:
    """Where a site learns what a watt costs. Every source may be left out.

    `pdus` maps a rack's name to its PDU's URL, ``https:`` for Redfish or ``snmp:``; outlets are
    ``rack/number`` in `Node`. `snmp_login_file` is what ``snmp:`` PDUs accept.
    The outside temperature is the PDU's probe, else `outside_file` (a number, not older than two
    hours), else the source ``weather``, else the normal of `climate_zone` (RT2012; empty: the
    nearest). `carbon_g_per_kwh` holds where the source ``eco2mix`` does not tell. Prices are those
    of `tariff_file`, else of the source ``day-ahead``. `ashrae` (A1 to A4) lets a dew point above
    the class's limit close the outside air; it needs the source ``weather``. `facility_file` models
    the paths of power and cooling, from which the tier is checked. `renewable_share` is of the
    energy bought or made, `reused_share` of the heat given away: REF and ERF.
    """

    pdus: dict[str, str] = field(default_factory=dict)
    snmp_login_file: Path | None = None
    sources: dict[str, SourceConfiguration] = field(default_factory=dict)
    feed_amps: float = 32.0
    climate_zone: str = ""
    outside_file: Path | None = None
    tariff_file: Path | None = None
    carbon_g_per_kwh: float | None = None
    set_point_c: float = 20.0
    ashrae: str = ""
    facility_file: Path | None = None
    renewable_share: float = 0.0
    reused_share: float = 0.0
    cooling: str = "bang-bang"
    pue_free: float = 1.16
    pue_conditioned: float = 1.55
    boundary: str = "servers, switches and PDUs at their outlets; air and its cooling by model"
    migration_bits_per_s: float = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfiguration:
    """A site's controller.

    `api_listen` holds ``host:port`` (TLS) and ``unix:/path``. `catalogue` is ``sqlite``, or the
    client URLs of the site's own etcd where it runs several controllers (`daemon.seat`); all their
    addresses stand in `datacenter.addresses`. `rack_agents` gives each rack a Local Agent of its
    own. Copies on an IO-node that was lost for `replace_lost_after_s` are made anew on others.
    `fence_by_outlets` says that `outlets` of each V-node are all that feed it: one that is silent,
    and whose BMC is too, is then switched off there.
    """

    state_dir: Path
    trust_dir: Path
    datacenter: Datacenter
    channel_listen: str
    join_listen: str
    api_listen: tuple[str, ...]
    quorum: QuorumConfiguration = field(default_factory=QuorumConfiguration)
    catalogue: str = "sqlite"
    policy: str = "power"
    rack_agents: bool = False
    replace_lost_after_s: float = 900.0
    fence_by_outlets: bool = False
    log_level: str = "info"
    bmc_login_file: Path | None = None
    energy: EnergyConfiguration = field(default_factory=EnergyConfiguration)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfiguration:
    """What every agent needs: who it is, and where its controller listens.

    A site with several controllers has several addresses in `controller`, with commas between.
    """

    node: Node
    state_dir: Path
    trust_dir: Path
    controller: str
    metrics_listen: str = ""
    log_level: str = "info"
    bmc_login_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VnodeConfiguration(AgentConfiguration):
    """A V-node; `plane`, `cables` and `cable_xdp` as in `EdgeConfiguration`.

    `idle_watts` and `peak_watts` are the node's own, for the model meter.

    `cpu_stat_file` is a cgroup's ``cpu.stat`` where the node is a slice of a machine. `relay` is
    the program that carries iSCSI to other sites.
    """

    idle_watts: float = 100.0
    peak_watts: float = 250.0
    boot_time_s: float = 60.0
    accelerator: str = "auto"
    calibration_file: Path | None = None
    cpu_stat_file: Path | None = None
    plane: str = "auto"
    cables: tuple[str, ...] = ()
    cable_xdp: bool = False
    relay: str = "nuage-relay"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskConfiguration:
    """A disk of an IO-node, mounted at `path`; `disk_class` is ``nvme``, ``ssd`` or ``hdd``.

    `size_bytes` 0: all that is mounted there. `operations_per_s` and `bytes_per_s` are what it
    does; 0: it is measured at the start. `serial` goes into the receipts of what lies there, as it
    is when the disk is first seen; empty: node and mount point.
    """

    path: Path
    disk_class: DiskClass = DiskClass.SSD
    size_bytes: int = 0
    operations_per_s: int = 0
    bytes_per_s: int = 0
    serial: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IonodeConfiguration(AgentConfiguration):
    """An IO-node: its disks by name, and which program stores.

    Images are kept under `data_dir`; without `disks` volumes are, too. What belongs to no volume
    lies on the first disk in order of name. `clear_from` names networks of the site beside the
    node's own from where hosts may reach volumes over iSCSI in clear. Volumes may be promised
    `overcommit_ratio` bytes for each byte of the disks: 1.0 is what fits were all written, without
    its history, which less than 1.0 leaves room for.
    """

    data_dir: Path
    disks: dict[str, DiskConfiguration] = field(default_factory=dict)
    storaged: str = "nuage-storaged"
    clear_from: tuple[str, ...] = ()
    overcommit_ratio: float = OVERCOMMIT_RATIO

    def __post_init__(self) -> None:
        least, most = OVERCOMMIT_RATIO_BOUNDS
        if not least <= self.overcommit_ratio <= most:
            raise InvalidRequest(
                f"overcommit_ratio {self.overcommit_ratio:g} is not within {least:g} and {most:g}",
                field="overcommit_ratio", hint="1.0 promises what the disks hold, 4.0 four times",
            )  # fmt: skip
        if len(os.fsencode(self.state_dir)) > STATE_DIR_BYTES_MAX:
            raise InvalidRequest(
                f"state_dir {self.state_dir} is longer than {STATE_DIR_BYTES_MAX} bytes, "
                "which leaves no room for the name of a storage daemon's socket",
                field="state_dir", hint="choose a shorter one",
            )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeConfiguration(AgentConfiguration):
    """An edge: its lines, each ``provider=address``, and how its trunks are kept.

    Trunks are encrypted unless both ends say `bare_trunks`: fibre of the operator's own.
    `plane` is auto, kernel or software. `cables`, each ``node=interface``, are cards that lead
    straight to another node of the site, which says so too; `cable_xdp` has their drivers run
    the forwarding program.
    """

    providers: tuple[str, ...] = ()
    line_mbit: int = 1000
    line_mtu_bytes: int = 1500
    bare_trunks: bool = False
    plane: str = "auto"
    cables: tuple[str, ...] = ()
    cable_xdp: bool = False


def load(path: Path, cls: type[T]) -> T:
    """Read `path` as `cls`.

    Raises:
        InvalidRequest: the file is missing or not TOML, or a key is missing, unknown or of the
            wrong kind; the message names file and key.
    """
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InvalidRequest(f"there is no configuration file {path}", field="config") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"{path}: {error}", field="config") from None
    _forbid_unknown(document, cls, where=str(path))
    try:
        return msgspec.convert(document, cls, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{path}: {error}", field="config") from None


def _path(cls: type, value: object) -> object:
    if issubclass(cls, Path):
        return Path(str(value))
    raise NotImplementedError(cls)


def _forbid_unknown(document: dict[str, object], cls: type, *, where: str) -> None:
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    for key, value in document.items():
        if key not in known:
            raise InvalidRequest(
                f"{where}: no key {key!r}; there is {', '.join(sorted(known))}", field=key
            )
        if not isinstance(value, dict):
            continue
        is_named = get_origin(hints[key]) is dict  # a table of tables, each under its own name
        tables = value if is_named else {"": value}
        for inner in (hints[key], *get_args(hints[key])):
            if get_origin(inner) is None and isinstance(inner, type) and is_dataclass(inner):
                for name, table in tables.items():
                    place = f"{where}: {key}" + (f".{name}" if name else "")
                    if isinstance(table, dict):
                        _forbid_unknown(table, inner, where=place)


def render(value: object) -> str:
    """Return a configuration as TOML, for tools that write these files."""
    return "\n".join(_tables(msgspec.to_builtins(value, enc_hook=str), ())).lstrip("\n") + "\n"


def _tables(document: dict[str, object], path: tuple[str, ...]) -> list[str]:
    """Return a table's own keys, then the tables within it."""
    plain = {k: v for k, v in document.items() if not isinstance(v, dict) and v is not None}
    lines = [f"\n[{'.'.join(path)}]"] if path else []
    lines += [f"{key} = {_toml(item)}" for key, item in plain.items()]
    for key, item in document.items():
        if isinstance(item, dict):
            lines += _tables(item, (*path, key))
    return lines


def _toml(item: object) -> str:
    if isinstance(item, list | tuple):
        return "[" + ", ".join(_toml(part) for part in item) + "]"
    return msgspec.json.encode(item).decode()  # strings, numbers, booleans: JSON's are TOML's
