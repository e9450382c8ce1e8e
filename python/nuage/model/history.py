"""A volume's past: what its journal can tell, and moments in it."""

from dataclasses import dataclass

from nuage.errors import InvalidRequest
from nuage.ids import IaasId, NodeId, VolumeId

MARK_CHARS_MAX = 120
IMAGE_MARK = "image"  # where a volume is what its image was


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A point of a volume's past: after a write's number, at a time, or at a mark. One of them."""

    sequence: int | None = None
    time_s: float | None = None
    mark: str = ""

    def __post_init__(self) -> None:
        given = (self.sequence is not None, self.time_s is not None, bool(self.mark))
        if sum(given) != 1:
            raise InvalidRequest("give one of: a write's number, a time, a mark", field="moment")

    def __str__(self) -> str:
        """Return it as people write it."""
        if self.sequence is not None:
            return f"write {self.sequence}"
        return f"mark {self.mark}" if self.mark else f"time {self.time_s}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalMark:
    """A named point. Marks with one `mark_id` are one instant of several volumes; names repeat."""

    sequence: int
    time_s: float
    name: str
    kind: str
    mark_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalGroup:
    """Writes that were made durable together; the smallest step of the past that is listed."""

    first_sequence: int
    last_sequence: int
    time_s: float
    epoch: int
    segment: int
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeHistory:
    """What the journal keeps: any sequence from `horizon_sequence` to `sequence` can be read.

    `kept_from_s` and `dropped_early_s` are as in `PastSeen`.
    """

    horizon_sequence: int
    sequence: int
    history_bytes: int
    kept_from_s: float = 0.0
    dropped_early_s: float = 0.0
    marks: tuple[JournalMark, ...]
    groups: tuple[JournalGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PastSeen:
    """How far back a head's journal goes, 0: to its first write, and what open views hold back.

    `dropped_early_s` is when something last left before its time, for being too much; 0: never.
    `is_full`: none may leave so (`strict`), and there is no room for more: writes are refused.
    """

    kept_from_s: float = 0.0
    dropped_early_s: float = 0.0
    held_by_views_bytes: int = 0
    is_full: bool = False


NO_PAST = PastSeen()


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneOrigin:
    """The past of another volume that a volume starts from; `nodes` are those that have it."""

    volume_id: VolumeId
    moment: Moment
    nodes: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AskMoment:
    """A controller asks an IO-node which write a moment is; None: all acknowledged by now."""

    iaas_id: IaasId
    volume_id: VolumeId
    moment: Moment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundMoment:
    """The write that a moment is, and the volume's size then."""

    sequence: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AskView:
    """A controller has an IO-node show a past moment, read-only, to one initiator, for a time."""

    iaas_id: IaasId
    volume_id: VolumeId
    moment: Moment
    iqn: str
    user: str
    secret: str
    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedView:
    """A past moment that is shown: the daemon's name of it, and where to log in."""

    view: str
    sequence: int
    portal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskViews:
    """A controller asks an IO-node which views of a volume are open."""

    iaas_id: IaasId
    volume_id: VolumeId


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenView:
    """A view that is shown. `left_s` None: until its head closes. `sessions` read from it now."""

    view: str
    sequence: int
    opened_s: float
    left_s: float | None
    sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeViews:
    """The views of a volume that are open, and the history that is held back for them."""

    views: tuple[OpenView, ...]
    held_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AskCloseView:
    """A controller ends a view before its time."""

    iaas_id: IaasId
    view: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskHistory:
    """A controller asks an IO-node for a volume's past."""

    iaas_id: IaasId
    volume_id: VolumeId
    after_sequence: int = 0
    count: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class AskMark:
    """A controller has an IO-node write one mark into several journals at one instant."""

    iaas_id: IaasId
    volume_ids: tuple[VolumeId, ...]
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """The sequence number of the mark in each journal."""

    sequences: dict[VolumeId, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskRollback:
    """A controller has an IO-node take a volume back; what came since stays in the journal."""

    iaas_id: IaasId
    volume_id: VolumeId
    moment: Moment
    force: bool = False
