"""What a lab's hardware process understands on its Unix socket: one JSON line, one answer.

::

    {"type": "power", "node": "marne-v1", "order": "on", "wait": true}
    {"error": "", "code": "", "field": "", "status": null}

The socket is the lab's own wiring, for `nuage lab` and the assembly alone. The product does
not know it: it reaches the hardware by Redfish.
"""

from typing import Final, Literal, TypeAlias

import msgspec

LINE_BYTES_MAX: Final = 4 * 1024 * 1024  # services of 168 nodes, or the status of as many

PowerOrder: TypeAlias = Literal["on", "off", "kill", "cycle"]


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A daemon of a node, as a unit file would have it: started at boot, restarted on exit."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = msgspec.field(default_factory=dict)
    directory: str = "/"


class SetServices(msgspec.Struct, frozen=True, tag_field="type", tag="services"):
    """Say what a node's init starts; a running node starts what is new and ends what is gone."""

    node: str
    services: tuple[Service, ...]


class Power(msgspec.Struct, frozen=True, tag_field="type", tag="power"):
    """Press a node's button, in the BMC's stead. `off` asks, `kill` does not."""

    node: str
    order: PowerOrder
    wait: bool = False


class SetWeather(msgspec.Struct, frozen=True, tag_field="type", tag="weather"):
    """Change the outside temperature of a site."""

    site: str
    celsius: float


class SetFault(msgspec.Struct, frozen=True, tag_field="type", tag="fault"):
    """Make a BMC (by its node's name) or a PDU misbehave; zero values heal it."""

    device: str
    silent: bool = False
    slow_s: float = 0.0
    jump_watts: float = 0.0


class AskStatus(msgspec.Struct, frozen=True, tag_field="type", tag="status"):
    """Ask how everything is."""


Request: TypeAlias = SetServices | Power | SetWeather | SetFault | AskStatus


class ServiceStatus(msgspec.Struct, frozen=True):
    """A daemon as its init sees it; `pid` 0 when it is not running now."""

    name: str
    pid: int
    starts: int
    last_exit: int | None


class NodeStatus(msgspec.Struct, frozen=True):
    """A machine. Watts and kWh are the outlet's."""

    name: str
    site: str
    role: str
    state: str
    address: str
    bmc_url: str
    watts: float
    kwh: float
    utilisation: float
    services: tuple[ServiceStatus, ...]


class PduStatus(msgspec.Struct, frozen=True):
    """A rack's PDU."""

    name: str
    site: str
    url: str
    watts: float
    kwh: float
    outlets_off: tuple[str, ...]


class SiteStatus(msgspec.Struct, frozen=True):
    """A site. `cuts` says in words what of its lines is cut."""

    name: str
    place: str
    operator: str
    watts: float
    capacity_watts: float
    outside_celsius: float
    cuts: tuple[str, ...]


class LabStatus(msgspec.Struct, frozen=True):
    """A whole lab."""

    name: str
    hardware_pid: int
    sites: tuple[SiteStatus, ...]
    nodes: tuple[NodeStatus, ...]
    pdus: tuple[PduStatus, ...]


class Answer(msgspec.Struct, frozen=True):
    """What came of a request; `code` is empty when it was done."""

    code: str = ""
    error: str = ""
    hint: str = ""
    field: str = ""
    status: LabStatus | None = None


def encode(message: Request | Answer) -> bytes:
    """Return one line."""
    return msgspec.json.encode(message) + b"\n"
