"""What the storage daemon answers on its control socket (docs/protocols/storaged.md §3, §4)."""

from dataclasses import replace

import msgspec

from nuage.ids import VolumeId
from nuage.ionode.port import CopyLag, ScrubSeen, VolumeSeen
from nuage.model.contract import JournalRule
from nuage.model.desired import LostBlocks, Rebuild, RetiredCopy
from nuage.model.history import OpenView, VolumeViews


class ChainAnswer(msgspec.Struct):
    """Of `verify_chain`."""

    last_sequence: int
    chain: str
    groups: int
    complete: bool


class ReceiptAnswer(msgspec.Struct):
    """A line of `receipts`."""

    number: int
    act: str
    volume: str
    segment: int
    first_sequence: int
    last_sequence: int
    chain: str
    time_ns: int
    disk: str = ""


class MarkAnswer(msgspec.Struct):
    """A mark in `history`."""

    sequence: int
    time_us: int
    name: str
    kind: str
    id: int


class GroupAnswer(msgspec.Struct):
    """A group in `history`."""

    first_sequence: int
    last_sequence: int
    time_us: int
    epoch: int
    segment: int
    blocks: int


class HistoryAnswer(msgspec.Struct):
    """Of `history`."""

    horizon_sequence: int
    horizon_time_us: int
    dropped_early_us: int
    sequence: int
    history_bytes: int
    marks: list[MarkAnswer]
    groups: list[GroupAnswer]


class CopyAnswer(msgspec.Struct):
    """A copy elsewhere, as the head sees it."""

    node: str
    connected: bool = False
    state: str = ""
    durable_sequence: int = 0
    lag: CopyLag = CopyLag()
    let_go: bool = False
    silent_since_s: float | None = None
    rebuild: Rebuild | None = None


class HeadAnswer(msgspec.Struct):
    """The head that is open here."""

    epoch: int
    state: str
    copies: list[CopyAnswer] = []
    sequence: int = 0
    durable_sequence: int = 0
    mapped_bytes: int = 0
    journal_bytes: int = 0
    failure: str | None = None
    lost: bool = False
    answers: str = "at_once"
    horizon_time_us: int = 0
    dropped_early_us: int = 0
    held_by_views_bytes: int = 0
    history_full: bool = False
    key_id: str | None = None


class OwnCopyAnswer(msgspec.Struct):
    """The copy here, while the head is elsewhere."""

    sequence: int = 0
    durable_sequence: int = 0
    journal_bytes: int = 0


class LostAnswer(msgspec.Struct):
    """What no copy has any more, and what this one keeps aside of its log."""

    lost: list[tuple[int, int]] = []
    lost_segments: list[int] = []
    quarantine_bytes: int = 0

    def counted(self) -> LostBlocks:
        """Return how much it is."""
        return LostBlocks(
            block_count=sum(count for _, count in self.lost),
            segment_count=len(self.lost_segments),
        )


class RetentionAnswer(msgspec.Struct):
    """How much of its past a copy keeps."""

    seconds: int
    bytes: int
    strict: bool

    def rule(self) -> JournalRule:
        """Return it as contracts say it."""
        return JournalRule(window_s=self.seconds, window_bytes=self.bytes, strict=self.strict)


class ViewAnswer(msgspec.Struct):
    """A view in `status`."""

    view: str
    sequence: int
    opened_s: float
    left_s: float | None
    sessions: int


class ViewsAnswer(msgspec.Struct):
    """Of `status`, what is asked of its views; a daemon of before tells none."""

    views: list[ViewAnswer] = []
    head: HeadAnswer | None = None

    def told(self) -> VolumeViews:
        """Return them as controllers hear them."""
        return VolumeViews(
            views=tuple(
                OpenView(
                    view=view.view,
                    sequence=view.sequence,
                    opened_s=view.opened_s,
                    left_s=view.left_s,
                    sessions=view.sessions,
                )
                for view in self.views
            ),
            held_bytes=0 if self.head is None else self.head.held_by_views_bytes,
        )


class VolumeAnswer(msgspec.Struct):
    """Of `status`. `retention` None: a daemon of before `set_retention`, not yet restarted."""

    volume: str
    size_bytes: int
    logical_block_bytes: int
    retention: RetentionAnswer | None = None
    disk: str = ""
    base_disk: str | None = None
    failure: str | None = None
    head: HeadAnswer | None = None
    copy: OwnCopyAnswer | None = None
    scrub: LostAnswer | None = None
    stands_by: bool = False
    retired: list[RetiredCopy] = []

    def seen(self, *, first_disk: str) -> VolumeSeen:
        """Return it as the agent sees it."""
        return VolumeSeen(
            volume_id=VolumeId(self.volume),
            size_bytes=self.size_bytes,
            sector_bytes=self.logical_block_bytes,
            journal=None if self.retention is None else self.retention.rule(),
            durable_sequence=durable_sequence(self),
            mapped_bytes=0 if self.head is None else self.head.mapped_bytes,
            journal_bytes=journal_bytes(self),
            failure=self.failure or "",
            disk=self.disk or first_disk,
            base_disk="" if self.base_disk is None else self.base_disk or first_disk,
            is_open=self.head is not None or self.copy is not None,
            lost=None if self.scrub is None else self.scrub.counted(),
            quarantine_bytes=None if self.scrub is None else self.scrub.quarantine_bytes,
            stands_by=self.stands_by,
            retired=tuple(replace(copy, disk=copy.disk or first_disk) for copy in self.retired),
        )


class ListAnswer(msgspec.Struct):
    """Of `list`."""

    volumes: list[VolumeAnswer] = []
    key_id: str | None = None
    version: str = ""


def durable_sequence(volume: VolumeAnswer) -> int:
    """Return up to where the copy here is on its disk."""
    if volume.head is not None:
        return volume.head.durable_sequence
    return 0 if volume.copy is None else volume.copy.durable_sequence


def journal_bytes(volume: VolumeAnswer) -> int:
    """Return what its journal takes of the disk."""
    if volume.head is not None:
        return volume.head.journal_bytes
    return 0 if volume.copy is None else volume.copy.journal_bytes


class RunningAnswer(msgspec.Struct):
    """How far a pass of the scrub is."""

    done_bytes: int
    total_bytes: int


class ScrubAnswer(msgspec.Struct):
    """Of `scrub`."""

    last_s: int
    found: int
    mended: int
    waiting: int
    lost: list[tuple[int, int]]
    lost_segments: list[int]
    running: RunningAnswer | None = None
    quarantine_bytes: int = 0


def scrub_seen(document: object) -> ScrubSeen:
    """Return what a pass of the scrub has told."""
    told = msgspec.convert(document, ScrubAnswer)
    running = told.running
    return ScrubSeen(
        last_s=told.last_s,
        done_bytes=0 if running is None else running.done_bytes,
        total_bytes=0 if running is None else running.total_bytes,
        found=told.found,
        mended=told.mended,
        waiting=told.waiting,
        lost=tuple(told.lost),
        lost_segments=tuple(told.lost_segments),
        quarantine_bytes=told.quarantine_bytes,
    )
