"""A storage daemon without a disk: the port's meaning in memory, for tests and the simulation.

It keeps what a real daemon keeps: copies with their size and highest epoch, heads, and who may
log in. What happens to it from outside (a full disk, a daemon that does not answer) is done by
the test. `FakeDaemon` outlives its agent, as the real process does.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from nuage import __version__
from nuage.errors import (
    Conflict,
    InvalidRequest,
    Locked,
    Lost,
    NotFound,
    StaleEpoch,
    Unavailable,
)
from nuage.ids import VolumeId
from nuage.ionode.port import (
    ChangedRuns,
    CopySeen,
    DaemonReceipt,
    DaemonSeen,
    HeadSeen,
    ScrubSeen,
    VolumeSeen,
)
from nuage.ionode.shares import Used
from nuage.model.contract import JournalRule, Limits
from nuage.model.desired import HeadWish, LostBlocks, PathWish, ReplicaWish
from nuage.model.history import (
    AskCloseView,
    AskHistory,
    AskMark,
    AskMoment,
    AskRollback,
    AskView,
    FoundMoment,
    JournalMark,
    Marked,
    Moment,
    OpenedView,
    OpenView,
    VolumeHistory,
    VolumeViews,
)
from nuage.trust.datakeys import key_id_of
from nuage.units import SECTOR_BYTES


@dataclass(slots=True)
class _Copy:
    size_bytes: int
    journal: JournalRule
    epoch: int = 0
    mapped_bytes: int = 0
    sequence: int = 0
    marks: list[JournalMark] = field(default_factory=list)
    blocks: dict[int, bytes] = field(default_factory=dict)  # what `write` wrote, by offset
    encrypted: bool = False
    is_whole: bool = True
    disk: str = ""
    sector_bytes: int = SECTOR_BYTES


@dataclass(slots=True)
class _Head:
    wish: HeadWish
    initiators: frozenset[str]
    key_id: str = ""


def _lost(scrub: ScrubSeen) -> LostBlocks:
    return LostBlocks(
        block_count=sum(count for _, count in scrub.lost), segment_count=len(scrub.lost_segments)
    )


class FakeDaemon:
    """Copies and heads that are records. `acts` lists every act asked, as (name, volume)."""

    def __init__(self, *, address: str = "127.0.0.1") -> None:
        self._address = address
        self._copies: dict[VolumeId, _Copy] = {}
        self._heads: dict[VolumeId, _Head] = {}
        self.paths: dict[VolumeId, PathWish] = {}
        self.acts: list[tuple[str, VolumeId]] = []
        self.unavailable = ""
        self.refusals: dict[str, str] = {}  # act to why it fails
        self.receipts: list[DaemonReceipt] = []
        self.taken = 0
        self.silent_copies: set[str] = set()  # nodes whose copies do not answer a head here
        self.failed_copies: set[tuple[VolumeId, str]] = set()  # those that cannot take the log
        self.views: dict[str, tuple[int, dict[int, bytes]]] = {}
        self._last_mark_id = 0
        self.scrubs: dict[VolumeId, ScrubSeen] = {}
        self.shares: dict[str, Limits] = {}  # as set, by disk
        self.used: dict[str, Used] = {}  # what clients took, by disk
        self._key_id = ""  # of the key that is here now
        self._known_key_ids: set[str] = set()  # of the keys that the volumes were written with
        self._noted = asyncio.Event()

    @property
    def replica_address(self) -> str:
        """Return where heads on other nodes would find this daemon's copies."""
        return f"{self._address}:21001"

    @property
    def portal(self) -> str:
        """Return where initiators would log in."""
        return f"{self._address}:21000"

    def _begin(self, act: str, volume_id: VolumeId) -> None:
        self.acts.append((act, volume_id))
        if self.unavailable:
            raise Unavailable(self.unavailable)
        if act in self.refusals:
            raise Unavailable(self.refusals[act])

    def _require(self, volume_id: VolumeId) -> _Copy:
        copy = self._copies.get(volume_id)
        if copy is None:
            raise NotFound("volume", volume_id)
        return copy

    async def seen(self) -> DaemonSeen:
        """Return what the daemon keeps and serves."""
        if self.unavailable:
            raise Unavailable(self.unavailable)
        return DaemonSeen(
            volumes=tuple(
                VolumeSeen(
                    volume_id=volume_id,
                    size_bytes=copy.size_bytes,
                    sector_bytes=copy.sector_bytes,
                    journal=copy.journal,
                    disk=copy.disk,
                    lost=_lost(self.scrubs.get(volume_id, ScrubSeen())),
                    stands_by=volume_id in self.paths,
                )
                for volume_id, copy in sorted(self._copies.items())
            ),
            heads=tuple(
                HeadSeen(
                    volume_id=volume_id,
                    epoch=head.wish.epoch,
                    portal=self.portal,
                    mapped_bytes=self._copies[volume_id].mapped_bytes,
                    copies=tuple(
                        CopySeen(
                            node_id=peer.node_id,
                            is_connected=peer.node_id not in self.silent_copies,
                            is_live=peer.node_id not in self.silent_copies
                            and (volume_id, peer.node_id) not in self.failed_copies,
                            is_failed=(volume_id, peer.node_id) in self.failed_copies,
                        )
                        for peer in head.wish.replicas
                    ),
                    key_id=head.key_id,
                )
                for volume_id, head in sorted(self._heads.items())
            ),
            key_id=self._key_id,
            version=__version__,
        )

    async def create(self, wish: ReplicaWish, disk: str = "") -> None:
        """Make an empty copy; one that is there already stays as it is."""
        self._begin("create", wish.volume_id)
        fresh = _Copy(
            wish.size_bytes,
            wish.journal,
            encrypted=wish.encrypted,
            is_whole=not wish.joins,
            disk=disk,
            sector_bytes=wish.sector_bytes,
        )
        self._copies.setdefault(wish.volume_id, fresh)

    async def clone(self, wish: ReplicaWish) -> None:
        """Make a copy that starts from another volume's past."""
        self._begin("clone", wish.volume_id)
        assert wish.origin is not None
        origin = self._require(wish.origin.volume_id)
        if not origin.is_whole:
            raise NotFound("past", str(wish.origin.volume_id))
        await self.find_moment(
            AskMoment(
                iaas_id=wish.iaas_id,
                volume_id=wish.origin.volume_id,
                moment=wish.origin.moment,
            )
        )
        copy = _Copy(
            origin.size_bytes,
            wish.journal,
            mapped_bytes=origin.mapped_bytes,
            blocks=dict(origin.blocks),
            encrypted=origin.encrypted,
            is_whole=not wish.joins,
            disk=origin.disk,
            sector_bytes=origin.sector_bytes,
        )
        self._copies.setdefault(wish.volume_id, copy)

    async def find_moment(self, ask: AskMoment) -> FoundMoment:
        """Return which write a moment is: here, times are not told apart."""
        self._begin("find_moment", ask.volume_id)
        copy = self._require(ask.volume_id)
        moment = ask.moment or Moment(sequence=copy.sequence)
        sequence = copy.sequence if moment.sequence is None else moment.sequence
        if moment.mark:
            named = [m.sequence for m in copy.marks if m.name == moment.mark]
            if not named:
                raise NotFound("mark", moment.mark)
            sequence = named[-1]
        if sequence > copy.sequence:
            raise InvalidRequest(f"{ask.volume_id} is at {copy.sequence}", field="moment")
        return FoundMoment(sequence=sequence, size_bytes=copy.size_bytes)

    async def open_view(self, ask: AskView) -> OpenedView:
        """Show a past moment."""
        self._served("open_view", ask.volume_id)
        found = await self.find_moment(
            AskMoment(iaas_id=ask.iaas_id, volume_id=ask.volume_id, moment=ask.moment)
        )
        view = f"{ask.volume_id}@{found.sequence}#{len(self.views)}"
        copy = self._copies[ask.volume_id]
        self.views[view] = (copy.size_bytes, dict(copy.blocks))
        return OpenedView(view=view, sequence=found.sequence, portal=self.portal)

    async def views_of(self, volume_id: VolumeId) -> VolumeViews:
        """Return which views are open: until they are closed."""
        self._served("views", volume_id)
        mine = (view for view in self.views if view.startswith(f"{volume_id}@"))
        return VolumeViews(
            views=tuple(
                OpenView(
                    view=view,
                    sequence=int(view.partition("@")[2].partition("#")[0]),
                    opened_s=0.0,
                    left_s=None,
                    sessions=0,
                )
                for view in mine
            )
        )

    async def close_view(self, ask: AskCloseView) -> None:
        """End a view."""
        self.views.pop(ask.view, None)

    async def set_key(self, *keys: str) -> None:
        """Take the data keys."""
        key_ids = [key_id_of(bytes.fromhex(key)) for key in keys]
        if not self._known_key_ids <= set(key_ids):
            raise Conflict("a key that the volumes here were written with is not among these")
        self._key_id = key_ids[0]
        self._known_key_ids = set(key_ids)

    async def forget_key(self) -> None:
        """Wipe the data key and close what needs it."""
        self._key_id = ""
        encrypted = {i for i, copy in self._copies.items() if copy.encrypted}
        self._heads = {i: head for i, head in self._heads.items() if i not in encrypted}

    async def changed(self, view: str, since: int | None, after: int) -> ChangedRuns:
        """Return where a view has anything; an earlier state is not told apart here."""
        assert since is None or since >= 0
        size_bytes, blocks = self._view(view)
        runs = tuple((at, len(data)) for at, data in sorted(blocks.items()) if at >= after)
        return ChangedRuns(runs=runs, size_bytes=size_bytes, complete=True)

    async def read_view(self, view: str, offset: int, length: int) -> bytes:
        """Return a piece of a view."""
        _, blocks = self._view(view)
        return blocks.get(offset, b"").ljust(length, b"\0")[:length]

    def _view(self, view: str) -> tuple[int, dict[int, bytes]]:
        if view not in self.views:
            raise NotFound("view", view)
        return self.views[view]

    async def write(self, volume_id: VolumeId, offset: int, data: bytes) -> None:
        """Write a piece through the head here."""
        copy = self._served("write", volume_id)
        copy.blocks[offset] = data
        copy.sequence += 1

    async def flush(self, volume_id: VolumeId) -> None:
        """Do nothing: nothing waits here."""
        self._served("flush", volume_id)

    async def set_share(self, disk: str, limits: Limits) -> Used:
        """Remember a share of a disk; return what the test says was taken of it."""
        if self.unavailable:
            raise Unavailable(self.unavailable)
        self.shares[disk] = limits
        return self.used.get(disk, Used())

    async def set_terms(self, wish: HeadWish) -> None:
        """Hold a head here to the wish's limits and RPO."""
        self._served("set_terms", wish.volume_id)
        self._heads[wish.volume_id].wish = replace(
            self._heads[wish.volume_id].wish, limits=wish.limits, rpo=wish.rpo, bound=wish.bound
        )

    async def scrub(self, volume_id: VolumeId) -> ScrubSeen:
        """Begin to read all of a copy; it is over at once."""
        self._begin("scrub", volume_id)
        self._require(volume_id)
        self.scrubs[volume_id] = replace(self.scrubs.get(volume_id, ScrubSeen()), last_s=1_000.0)
        return self.scrubs[volume_id]

    async def scrubbed(self, volume_id: VolumeId) -> ScrubSeen:
        """Return what the last pass found."""
        self._require(volume_id)
        return self.scrubs.get(volume_id, ScrubSeen())

    async def history(self, ask: AskHistory) -> VolumeHistory:
        """Return what a head's journal keeps: here, its marks."""
        copy = self._served("history", ask.volume_id)
        return VolumeHistory(
            horizon_sequence=0,
            sequence=copy.sequence,
            history_bytes=0,
            marks=tuple(copy.marks),
            groups=(),
        )

    async def mark(self, ask: AskMark) -> Marked:
        """Write one mark into several journals at one instant."""
        copies = {volume_id: self._served("mark", volume_id) for volume_id in ask.volume_ids}
        self._last_mark_id += 1
        for copy in copies.values():
            copy.sequence += 1
            mark = JournalMark(
                sequence=copy.sequence,
                time_s=0.0,
                name=ask.name,
                kind="user",
                mark_id=self._last_mark_id,
            )
            copy.marks.append(mark)
        return Marked(sequences={volume_id: copy.sequence for volume_id, copy in copies.items()})

    async def rollback(self, ask: AskRollback) -> None:
        """Take a volume back to a moment; refused while somebody may be logged in."""
        copy = self._served("rollback", ask.volume_id)
        if self._heads[ask.volume_id].initiators and not ask.force:
            raise Conflict(f"initiators are logged in to {ask.volume_id}")
        copy.sequence += 1

    def _served(self, act: str, volume_id: VolumeId) -> _Copy:
        self._begin(act, volume_id)
        if volume_id not in self._heads:
            raise NotFound("head", volume_id)
        return self._require(volume_id)

    async def resize(self, volume_id: VolumeId, size_bytes: int) -> None:
        """Make a volume larger, through its head here."""
        self._begin("resize", volume_id)
        if volume_id not in self._heads:
            raise NotFound("head", volume_id)
        copy = self._require(volume_id)
        if size_bytes < copy.size_bytes:
            raise InvalidRequest(f"{volume_id} never shrinks", field="size_bytes")
        copy.size_bytes = size_bytes

    async def set_journal(self, volume_id: VolumeId, journal: JournalRule) -> None:
        """Have the copy here keep so much of its past from now on."""
        self._begin("set_journal", volume_id)
        self._require(volume_id).journal = journal

    async def open_head(self, wish: HeadWish) -> None:
        """Order the volume's writes under the wish's epoch, never under a lower one."""
        self._begin("open_head", wish.volume_id)
        copy = self._require(wish.volume_id)
        if copy.encrypted and not self._key_id:
            raise Locked("the data key of this IaaS is not here")
        if not wish.replicas and not copy.is_whole and not wish.accepts_loss:
            raise Lost(f"what {wish.volume_id} held is lost here")
        if wish.epoch < copy.epoch:
            raise StaleEpoch(
                f"{wish.volume_id} has seen epoch {copy.epoch}, not {wish.epoch}",
                epoch=copy.epoch,
            )
        known = self._heads.get(wish.volume_id)
        if known is not None and known.wish.epoch != wish.epoch:
            raise Conflict(f"{wish.volume_id} has a head under epoch {known.wish.epoch}")
        copy.epoch, copy.is_whole = wish.epoch, True
        key_id = self._key_id if copy.encrypted else ""
        self.paths.pop(wish.volume_id, None)
        self._heads[wish.volume_id] = _Head(wish, _users(wish), key_id)

    async def set_initiators(self, wish: HeadWish) -> None:
        """Let exactly the wish's initiators in."""
        self._begin("set_initiators", wish.volume_id)
        head = self._heads.get(wish.volume_id)
        if head is None:
            raise NotFound("head", wish.volume_id)
        head.wish = replace(head.wish, chap=wish.chap, chap_own=wish.chap_own, groups=wish.groups)
        head.initiators = _users(wish)

    async def stand_by(self, wish: PathWish) -> None:
        """Show a volume to a host while its head is elsewhere."""
        self._begin("stand_by", wish.volume_id)
        self._require(wish.volume_id)
        if wish.volume_id in self._heads:
            raise Conflict(f"the head of {wish.volume_id} is open here")
        self.paths[wish.volume_id] = wish

    async def end_standby(self, volume_id: VolumeId) -> None:
        """Show a volume no more to a host."""
        self._begin("end_standby", volume_id)
        self.paths.pop(volume_id, None)

    async def fill(self, volume_id: VolumeId, image: Path) -> None:
        """Copy a raw image into a fresh volume."""
        self._begin("fill", volume_id)
        if volume_id not in self._heads:
            raise NotFound("head", volume_id)
        self._require(volume_id).mapped_bytes = image.stat().st_size if image.exists() else 4096

    async def close_head(self, volume_id: VolumeId) -> None:
        """Stop ordering a volume's writes."""
        self._begin("close_head", volume_id)
        self._heads.pop(volume_id, None)

    async def erase(self, volume_id: VolumeId) -> None:
        """Delete a copy for good."""
        self._begin("erase", volume_id)
        self._heads.pop(volume_id, None)
        self._copies.pop(volume_id, None)
        self.paths.pop(volume_id, None)

    async def stop(self) -> None:
        """Answer nobody any more."""
        self.unavailable = "the daemon was ended"

    async def retire(self) -> None:
        """Answer nobody any more."""
        if self._copies:
            raise Conflict("the daemon keeps copies")
        self.receipts.clear()
        self.unavailable = "the daemon was ended"

    async def past_receipts(self) -> tuple[DaemonReceipt, ...]:
        """Return every receipt noted so far."""
        return tuple(self.receipts)

    async def receipts_taken(self, number: int) -> None:
        """Note how far the site is; this one keeps all."""
        self.taken = number

    async def follow_receipts(self, after: int) -> AsyncIterator[DaemonReceipt]:
        """Yield the receipts numbered above `after`, and each new one."""
        while True:
            for receipt in [r for r in self.receipts if r.number > after]:
                after = receipt.number
                yield receipt
            self._noted.clear()
            await self._noted.wait()

    # What the world asks of it.

    def note(
        self, volume_id: VolumeId, act: str, segment: int, *, time_ms: int = 0, disk: str = ""
    ) -> None:
        """Note that something became of a segment of ten writes."""
        first_sequence = segment % (1 << 32) * 10  # the numbers of moved segments begin far above
        self.receipts.append(
            DaemonReceipt(
                number=len(self.receipts) + 1,
                act=act,
                volume_id=volume_id,
                segment=segment,
                first_sequence=first_sequence,
                last_sequence=first_sequence + 9,
                chain=f"{segment:064x}",
                time_ms=time_ms,
                disk=disk,
            )
        )
        self._noted.set()

    def may_log_in(self, volume_id: VolumeId, user: str) -> bool:
        """Tell whether an initiator of this name is let in now."""
        head = self._heads.get(volume_id)
        return not self.unavailable and head is not None and user in head.initiators


def _users(wish: HeadWish) -> frozenset[str]:
    return frozenset(chap.user for chap in wish.chap)
