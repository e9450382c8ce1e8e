"""A volume's past: what its journal can tell, and moments in it."""

from dataclasses import dataclass

from nuage.errors import InvalidRequest
from nuage.ids import IaasId, VolumeId

MARK_CHARS_MAX = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A point of a volume's past: after write number `sequence`, or at a time. One of the two."""

    sequence: int | None = None
    time_s: float | None = None

    def __post_init__(self) -> None:
        if (self.sequence is None) == (self.time_s is None):
            raise InvalidRequest("give a sequence number or a time, not both", field="moment")


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalMark:
    """A named point."""

    sequence: int
    time_s: float
    name: str
    kind: str


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
    """What the journal keeps: any sequence from `horizon_sequence` to `sequence` can be read."""

    horizon_sequence: int
    sequence: int
    history_bytes: int
    marks: tuple[JournalMark, ...]
    groups: tuple[JournalGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneOrigin:
    """The past of another volume that a volume starts from."""

    volume_id: VolumeId
    moment: Moment


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
