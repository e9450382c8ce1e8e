"""What goes into the LISP machines and what comes out of them."""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from nuage.network.forwarding import ForwardingDelta, PortNumber
from nuage.network.lisp_message import Address, Eid, LispKey, Locator, MapRecord

# ---- in ----


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """A datagram came to our control port 4342, at our address `local` (None: the only one)."""

    source: Address
    source_port: int
    data: bytes
    local: Address | None = None


@dataclass(frozen=True, slots=True)
class EidArrived:
    """An EID is here now. `version` rises with each owner (the VM's epoch): older ones lose."""

    eid: Eid
    port: PortNumber
    mac: bytes
    version: int


@dataclass(frozen=True, slots=True)
class EidLeft:
    """An EID is no longer here, and not known where: it was stopped, or moves."""

    eid: Eid


@dataclass(frozen=True, slots=True)
class MappingMissed:
    """A packet from `source` found no mapping for `destination`."""

    instance_id: int
    source: Address
    destination: Address


@dataclass(frozen=True, slots=True)
class HeardFrom:
    """`rloc` sent us packets for a local EID: it has it in its map-cache."""

    eid: Eid
    rloc: Address


@dataclass(frozen=True, slots=True)
class SurroundingsChanged:
    """Who is there to ask, and which ways there are beside our own.

    `backups` lead to our EIDs when our own RLOC does not answer (the lines of our site's edges);
    `petrs` take what goes to addresses that are no EIDs (RFC 9300: proxy ETRs). `key`: our site's
    from now on; None: as it was.
    """

    map_servers: tuple[tuple[Address, ...], ...]
    backups: tuple[Locator, ...] = ()
    petrs: tuple[Locator, ...] = ()
    key: LispKey | None = None


@dataclass(frozen=True, slots=True)
class MappingTold:
    """The map-server beside this router took a register; without locators it ended.

    Without locators and with the action to forward natively: a prefix that is none of ours.
    """

    record: MapRecord


XtrInput: TypeAlias = (
    DatagramReceived
    | EidArrived
    | EidLeft
    | MappingMissed
    | HeardFrom
    | SurroundingsChanged
    | MappingTold
)

# ---- out ----


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send from our control port to `destination`, from `source` if we have several addresses."""

    destination: Address
    port: int
    data: bytes
    source: Address | None = None


@dataclass(frozen=True, slots=True)
class ApplyLisp:
    """Change the forwarding plane."""

    delta: ForwardingDelta


class LispNews(Enum):
    """What is worth a line in the log."""

    AUTHENTICATION_FAILED = "authentication_failed"
    REPLAYED = "replayed"
    MALFORMED = "malformed"
    FLOODING = "flooding"
    REFUSED = "refused"
    OUTDATED = "outdated"
    REGISTERED = "registered"
    MOVED = "moved"
    EXPIRED = "expired"
    RLOC_DOWN = "rloc_down"
    RLOC_UP = "rloc_up"
    UNCONFIRMED = "unconfirmed"


@dataclass(frozen=True, slots=True)
class LispLog:
    """Something happened."""

    news: LispNews
    who: str
    detail: str


LispEffect: TypeAlias = SendDatagram | ApplyLisp | LispLog | MappingTold
