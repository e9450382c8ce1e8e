"""What the IO-node agent asks of the storage daemon of one IaaS.

Two drivers: `storaged.StoragedDaemon` (the real process) and `fake.FakeDaemon` (for tests); one
contract suite runs on both.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from nuage.ids import NodeId, VolumeId
from nuage.ionode.shares import Used
from nuage.model.contract import JournalRule, Limits
from nuage.model.desired import (
    Answering,
    HeadWish,
    LostBlocks,
    PathWish,
    Rebuild,
    ReplicaWish,
    RetiredCopy,
)
from nuage.model.history import (
    NO_PAST,
    AskCloseView,
    AskHistory,
    AskMark,
    AskMoment,
    AskRollback,
    AskView,
    FoundMoment,
    Marked,
    OpenedView,
    PastSeen,
    VolumeHistory,
    VolumeViews,
)

PIECE_BYTES_MAX: Final = 256 * 1024  # in hexadecimal it fits in a line of the control protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSeen:
    """A copy that the daemon keeps. `lost` None: it is not open, and cannot tell.

    `journal` None: the daemon is too old to tell it, and to change it. `stands_by`: it is shown to
    a host while its head is elsewhere. `base_disk`: where its base segments lie, "": on `disk`.
    """

    volume_id: VolumeId
    size_bytes: int
    sector_bytes: int
    journal: JournalRule | None
    durable_sequence: int = 0
    mapped_bytes: int = 0
    journal_bytes: int = 0
    failure: str = ""
    disk: str = ""
    base_disk: str = ""
    is_open: bool = False
    lost: LostBlocks | None = None
    quarantine_bytes: int | None = None
    stands_by: bool = False
    retired: tuple[RetiredCopy, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyLag:
    """What a copy lacks of its head's log; `milliseconds` is the age of the oldest of it.

    `at_least`: what it lacks of former heads' writes is not known.
    """

    writes: int = 0
    bytes: int = 0
    milliseconds: int = 0
    at_least: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubSeen:
    """How a copy stands with itself. `last_s` 0: it was never read whole.

    `found` and `mended` count damage since the copy was made; `lost` are runs (first block, count)
    of which no copy has what must lie there, `lost_segments` cannot be read at all.
    `quarantine_bytes` of its log it has put aside, refused or damaged.
    """

    last_s: float = 0.0
    done_bytes: int = 0
    total_bytes: int = 0
    found: int = 0
    mended: int = 0
    waiting: int = 0
    lost: tuple[tuple[int, int], ...] = ()
    lost_segments: tuple[int, ...] = ()
    quarantine_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CopySeen:
    """How another copy stands with a head: `is_live` once it gets each write as it is made.

    `lag` is what it lacks; `is_let_go`: no bound holds writers back for it. `silent_since_s`: it
    is cut off, and was heard last then. `is_failed`: it cannot take the log.
    `rebuild`: it is made anew.
    """

    node_id: NodeId
    is_connected: bool
    is_live: bool
    durable_sequence: int = 0
    lag: CopyLag = CopyLag()
    is_let_go: bool = False
    silent_since_s: float | None = None
    is_failed: bool = False
    rebuild: Rebuild | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSeen:
    """A head that the daemon runs. `mapped_bytes` 0: nothing was ever written.

    `is_fenced`: a copy has promised a later epoch; this head will never write again. `is_lost`:
    every copy has answered, and too few have all that was acknowledged. `key_id` names the data key
    that it writes with, "": in clear.
    """

    volume_id: VolumeId
    epoch: int
    portal: str
    sequence: int = 0
    mapped_bytes: int = 0
    is_ready: bool = True
    is_fenced: bool = False
    is_lost: bool = False
    answering: Answering = Answering.AT_ONCE
    past: PastSeen = NO_PAST
    copies: tuple[CopySeen, ...] = ()
    failure: str = ""
    key_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonReceipt:
    """What became of a segment, as the daemon noted it: `act` is sealed, moved or expired.

    Numbers are dense and never used twice; `disk` is where the segment lies, "" the first;
    `chain` is the journal's hash chain in hexadecimal.
    """

    number: int
    act: str
    volume_id: VolumeId
    segment: int
    first_sequence: int
    last_sequence: int
    chain: str
    time_ms: int
    disk: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSeen:
    """What a daemon keeps and serves now. `key_id` names the data key that it has, "": none.

    `version` is the product's that it was started from, "" where it does not say.
    """

    volumes: tuple[VolumeSeen, ...] = ()
    heads: tuple[HeadSeen, ...] = ()
    key_id: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedRuns:
    """Runs (offset, length) in order, in bytes; not `complete`: ask again after the last."""

    runs: tuple[tuple[int, int], ...]
    size_bytes: int
    complete: bool


class StorageDaemon(Protocol):
    """The storage daemon of one IaaS on this node. Calls raise NuageError; each is idempotent."""

    @property
    def replica_address(self) -> str:
        """Return where heads on other nodes find this daemon's copies, ``host:port``."""
        ...

    @property
    def portal(self) -> str:
        """Return where initiators log in, ``host:port``."""
        ...

    async def seen(self) -> DaemonSeen:
        """Return what the daemon keeps and serves."""
        ...

    async def create(self, wish: ReplicaWish, disk: str = "") -> None:
        """Make an empty copy on a disk ("": the first); it is durable on return."""
        ...

    async def clone(self, wish: ReplicaWish) -> None:
        """Make a copy that starts from another volume's past (`wish.origin`), at once."""
        ...

    async def set_key(self, *keys: str) -> None:
        """Give the daemon its IaaS's data keys (hexadecimal, newest first), to keep in memory.

        Heads that are opened from now on write with the first.

        Raises:
            Conflict: its volumes were written with another one.
        """
        ...

    async def forget_key(self) -> None:
        """Have the daemon wipe the data key; heads of encrypted volumes close."""
        ...

    async def changed(self, view: str, since: int | None, after: int) -> ChangedRuns:
        """Return where a view differs from an earlier write's state; None: from nothing."""
        ...

    async def read_view(self, view: str, offset: int, length: int) -> bytes:
        """Return a piece of a view, at most `PIECE_BYTES_MAX`."""
        ...

    async def write(self, volume_id: VolumeId, offset: int, data: bytes) -> None:
        """Write a piece, at most `PIECE_BYTES_MAX`, through the head here."""
        ...

    async def flush(self, volume_id: VolumeId) -> None:
        """Return when all that was written is durable by the volume's policy."""
        ...

    async def set_share(self, disk: str, limits: Limits) -> Used:
        """Hold all heads here to a share of a disk; return what was taken of it until now."""
        ...

    async def set_terms(self, wish: HeadWish) -> None:
        """Hold a head here to the wish's limits, and its copies to the wish's RPO."""
        ...

    async def scrub(self, volume_id: VolumeId) -> ScrubSeen:
        """Begin to read all of a copy kept here, to find damage."""
        ...

    async def scrubbed(self, volume_id: VolumeId) -> ScrubSeen:
        """Return how far a copy kept here is with that, and what was found."""
        ...

    async def find_moment(self, ask: AskMoment) -> FoundMoment:
        """Return which write a moment of a volume kept here is.

        Raises:
            NotFound: no mark has that name.
            InvalidRequest: it lies outside the history.
        """
        ...

    async def open_view(self, ask: AskView) -> OpenedView:
        """Show a past moment, read-only, to one initiator; it ends by itself."""
        ...

    async def views_of(self, volume_id: VolumeId) -> VolumeViews:
        """Return which views of a volume are open here."""
        ...

    async def close_view(self, ask: AskCloseView) -> None:
        """End a view; one that has ended already is no error."""
        ...

    async def history(self, ask: AskHistory) -> VolumeHistory:
        """Return what a head's journal keeps."""
        ...

    async def mark(self, ask: AskMark) -> Marked:
        """Write one mark into several journals at one instant."""
        ...

    async def rollback(self, ask: AskRollback) -> None:
        """Take a volume back to a moment; what came since stays in its journal.

        Raises:
            Conflict: initiators are logged in, and `force` is not set.
        """
        ...

    async def resize(self, volume_id: VolumeId, size_bytes: int) -> None:
        """Make a volume larger, through its head here."""
        ...

    async def set_journal(self, volume_id: VolumeId, journal: JournalRule) -> None:
        """Have the copy here keep so much of its past from now on."""
        ...

    async def open_head(self, wish: HeadWish) -> None:
        """Order the volume's writes from now on, under the wish's epoch."""
        ...

    async def set_initiators(self, wish: HeadWish) -> None:
        """Let exactly the wish's initiators in, and tell them of their paths."""
        ...

    async def stand_by(self, wish: PathWish) -> None:
        """Show a volume to a host while its head is elsewhere; asked again, with what is new.

        Raises:
            Conflict: the head is open here.
        """
        ...

    async def end_standby(self, volume_id: VolumeId) -> None:
        """Show a volume no more to a host."""
        ...

    async def fill(self, volume_id: VolumeId, image: Path) -> None:
        """Copy a raw image into a fresh volume; returns when all of it is durable."""
        ...

    async def close_head(self, volume_id: VolumeId) -> None:
        """Stop ordering a volume's writes; what was acknowledged is durable."""
        ...

    async def erase(self, volume_id: VolumeId) -> None:
        """Delete a copy for good."""
        ...

    async def stop(self) -> None:
        """End the daemon in good order; another takes its place and has all that it kept.

        Raises:
            TimedOut: it does not end.
        """
        ...

    async def retire(self) -> None:
        """End the daemon for good: it keeps no copy, and what it noted has been told.

        Raises:
            Conflict: it keeps one.
        """
        ...

    async def past_receipts(self) -> tuple[DaemonReceipt, ...]:
        """Return the receipts it keeps, oldest first: of what lies here, and not taken in yet."""
        ...

    async def receipts_taken(self, number: int) -> None:
        """Tell that the site has all receipts up to `number`: those of what is gone may go."""
        ...

    def follow_receipts(self, after: int) -> AsyncIterator[DaemonReceipt]:
        """Yield the receipts numbered above `after`, and each new one as it is noted."""
        ...
