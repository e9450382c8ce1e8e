"""What goes into the RBridge machine and what comes out of it."""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from nuage.network.circuit import Trunk
from nuage.network.forwarding import ForwardingDelta, Label, Nickname, PortNumber
from nuage.network.isis_auth import Keyring

# ---- in ----


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """A control frame came in on a trunk: IS-IS, or a TRILL frame with an RBridge Channel."""

    port: PortNumber
    frame: bytes


@dataclass(frozen=True, slots=True)
class EchoReturned:
    """An echo of ours came back at `at_s` by the machine's clock: the plane noted it."""

    port: PortNumber
    content: bytes
    at_s: float


@dataclass(frozen=True, slots=True)
class TrunkAdded:
    """A trunk is there; an equal port number replaces the old one."""

    trunk: Trunk


@dataclass(frozen=True, slots=True)
class TrunkRemoved:
    """A trunk is no more."""

    port: PortNumber


@dataclass(frozen=True, slots=True)
class CarrierChanged:
    """The link of a trunk went down or came up."""

    port: PortNumber
    up: bool


@dataclass(frozen=True, slots=True)
class LabelsChanged:
    """The segments that have a port here, all of them."""

    labels: frozenset[Label]


@dataclass(frozen=True, slots=True)
class KeysChanged:
    """Sign and accept with these keys from now on."""

    ring: Keyring


@dataclass(frozen=True, slots=True)
class MaintenanceChanged:
    """Ask the campus to route around us where there is any other way, or no longer."""

    maintenance: bool


@dataclass(frozen=True, slots=True)
class TraceAsked:
    """Send probes to a nickname; `seed` chooses among equal paths. Answers: `TraceAnswered`."""

    target: Nickname
    trace_id: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Leaving:
    """We go for good: withdraw what we said. A mere restart does not send this."""


FabricInput: TypeAlias = (
    FrameReceived
    | EchoReturned
    | TrunkAdded
    | TrunkRemoved
    | CarrierChanged
    | LabelsChanged
    | KeysChanged
    | MaintenanceChanged
    | TraceAsked
    | Leaving
)

# ---- out ----


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Send these bytes on a port."""

    port: PortNumber
    frame: bytes


@dataclass(frozen=True, slots=True)
class SendEcho:
    """Send an echo on a port: `head` and `content`, or `content` by another way there."""

    port: PortNumber
    head: bytes
    content: bytes


@dataclass(frozen=True, slots=True)
class ApplyForwarding:
    """Change the forwarding plane."""

    delta: ForwardingDelta


@dataclass(frozen=True, slots=True)
class RememberNickname:
    """Write the nickname to disk; give it back as `NicknameWish.remembered` after a restart."""

    nickname: Nickname


@dataclass(frozen=True, slots=True)
class TraceAnswered:
    """A probe with hop count `hop` ended at `nickname`, where it came in by `port`."""

    trace_id: int
    hop: int
    nickname: Nickname
    hostname: str
    port: PortNumber


class FabricNews(Enum):
    """What is worth a line in the log, and a counter."""

    ADJACENCY_UP = "adjacency_up"
    ADJACENCY_DOWN = "adjacency_down"
    AUTHENTICATION_FAILED = "authentication_failed"
    MALFORMED = "malformed"
    NEIGHBOUR_FLOODING = "neighbour_flooding"
    NICKNAME_CHANGED = "nickname_changed"
    MTU_TOO_SMALL = "mtu_too_small"
    MTU_ENOUGH = "mtu_enough"
    SECOND_NEIGHBOUR = "second_neighbour"
    LSP_OVERFLOW = "lsp_overflow"
    NEIGHBOUR_RESTARTED = "neighbour_restarted"
    NAME_DISPUTED = "name_disputed"


@dataclass(frozen=True, slots=True)
class FabricLog:
    """Something happened; `detail` is for people, `news` for machines."""

    news: FabricNews
    port: PortNumber
    detail: str


FabricEffect: TypeAlias = (
    SendFrame | SendEcho | ApplyForwarding | RememberNickname | TraceAnswered | FabricLog
)


@dataclass(frozen=True, slots=True)
class NeighbourView:
    """A trunk as `nuage fabric show` prints it."""

    port: PortNumber
    state: str
    system_id: str
    nickname: Nickname
    hostname: str
    bfd: str
    mtu_bytes: int | None
    metric: int
    narrow: bool


@dataclass(frozen=True, slots=True)
class NodeView:
    """A RBridge of the campus as `nuage fabric show` prints it."""

    system_id: str
    hostname: str
    nicknames: tuple[Nickname, ...]
    reachable: bool
    distance: int | None
    tree_parent: str
    overload: bool
    label_count: int


@dataclass(frozen=True, slots=True)
class FabricView:
    """The campus as one RBridge sees it."""

    system_id: str
    nickname: Nickname
    tree: Nickname
    tree_root: str
    neighbours: tuple[NeighbourView, ...]
    nodes: tuple[NodeView, ...]
    lsp_count: int
    counters: dict[str, int]
