"""A storage daemon without a disk: the port's meaning in memory, for tests and the simulation.

It keeps what a real daemon keeps: copies with their size and highest epoch, heads, and who may
log in. What happens to it from outside (a full disk, a daemon that does not answer) is done by
the test. `FakeDaemon` outlives its agent, as the real process does.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from nuage.errors import Conflict, InvalidRequest, NotFound, StaleEpoch, Unavailable
from nuage.ids import VolumeId
from nuage.ionode.port import CopySeen, DaemonReceipt, DaemonSeen, HeadSeen, VolumeSeen
from nuage.model.desired import HeadWish, ReplicaWish
from nuage.model.history import (
    AskHistory,
    AskMark,
    AskRollback,
    JournalMark,
    Marked,
    VolumeHistory,
)


@dataclass(slots=True)
class _Copy:
    size_bytes: int
    epoch: int = 0
    mapped_bytes: int = 0
    sequence: int = 0
    marks: list[JournalMark] = field(default_factory=list)


@dataclass(slots=True)
class _Head:
    wish: HeadWish
    initiators: frozenset[str]


class FakeDaemon:
    """Copies and heads that are records. `acts` lists every act asked, as (name, volume)."""

    def __init__(self, *, address: str = "127.0.0.1") -> None:
        self._address = address
        self._copies: dict[VolumeId, _Copy] = {}
        self._heads: dict[VolumeId, _Head] = {}
        self.acts: list[tuple[str, VolumeId]] = []
        self.unavailable = ""
        self.refusals: dict[str, str] = {}  # act to why it fails
        self.receipts: list[DaemonReceipt] = []
        self.silent_copies: set[str] = set()  # nodes whose copies do not answer a head here
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
                VolumeSeen(volume_id=volume_id, size_bytes=copy.size_bytes)
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
                            is_live=peer.node_id not in self.silent_copies,
                        )
                        for peer in head.wish.replicas
                    ),
                )
                for volume_id, head in sorted(self._heads.items())
            ),
        )

    async def create(self, wish: ReplicaWish) -> None:
        """Make an empty copy; one that is there already stays as it is."""
        self._begin("create", wish.volume_id)
        self._copies.setdefault(wish.volume_id, _Copy(wish.size_bytes))

    async def clone(self, wish: ReplicaWish) -> None:
        """Make a copy that starts from another volume's past."""
        self._begin("clone", wish.volume_id)
        assert wish.origin is not None
        origin = self._require(wish.origin.volume_id)
        copy = _Copy(origin.size_bytes, mapped_bytes=origin.mapped_bytes)
        self._copies.setdefault(wish.volume_id, copy)

    async def history(self, ask: AskHistory) -> VolumeHistory:
        """Return what a head's journal keeps: here, its marks."""
        copy = self._served("history", ask.volume_id)
        return VolumeHistory(
            horizon_sequence=0,
            sequence=copy.sequence,
            history_bytes=0,
            marks=tuple(m for m in copy.marks if m.sequence > ask.after_sequence)[: ask.count],
            groups=(),
        )

    async def mark(self, ask: AskMark) -> Marked:
        """Write one mark into several journals at one instant."""
        copies = {volume_id: self._served("mark", volume_id) for volume_id in ask.volume_ids}
        for copy in copies.values():
            copy.sequence += 1
            mark = JournalMark(sequence=copy.sequence, time_s=0.0, name=ask.name, kind="user")
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

    async def open_head(self, wish: HeadWish) -> None:
        """Order the volume's writes under the wish's epoch, never under a lower one."""
        self._begin("open_head", wish.volume_id)
        copy = self._require(wish.volume_id)
        if wish.epoch < copy.epoch:
            raise StaleEpoch(
                f"{wish.volume_id} has seen epoch {copy.epoch}, not {wish.epoch}",
                epoch=copy.epoch,
            )
        known = self._heads.get(wish.volume_id)
        if known is not None and known.wish.epoch != wish.epoch:
            raise Conflict(f"{wish.volume_id} has a head under epoch {known.wish.epoch}")
        copy.epoch = wish.epoch
        self._heads[wish.volume_id] = _Head(wish, _users(wish))

    async def set_initiators(self, wish: HeadWish) -> None:
        """Let exactly the wish's initiators in."""
        self._begin("set_initiators", wish.volume_id)
        head = self._heads.get(wish.volume_id)
        if head is None:
            raise NotFound("head", wish.volume_id)
        head.wish = replace(head.wish, chap=wish.chap)
        head.initiators = _users(wish)

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

    async def past_receipts(self) -> tuple[DaemonReceipt, ...]:
        """Return every receipt noted so far."""
        return tuple(self.receipts)

    async def follow_receipts(self, after: int) -> AsyncIterator[DaemonReceipt]:
        """Yield the receipts numbered above `after`, and each new one."""
        while True:
            for receipt in [r for r in self.receipts if r.number > after]:
                after = receipt.number
                yield receipt
            self._noted.clear()
            await self._noted.wait()

    # What the world asks of it.

    def note(self, volume_id: VolumeId, act: str, segment: int, *, time_ms: int = 0) -> None:
        """Note that something became of a segment of ten writes."""
        self.receipts.append(
            DaemonReceipt(
                number=len(self.receipts) + 1,
                act=act,
                volume_id=volume_id,
                segment=segment,
                first_sequence=segment * 10,
                last_sequence=segment * 10 + 9,
                chain=f"{segment:064x}",
                time_ms=time_ms,
            )
        )
        self._noted.set()

    def may_log_in(self, volume_id: VolumeId, user: str) -> bool:
        """Tell whether an initiator of this name is let in now."""
        head = self._heads.get(volume_id)
        return not self.unavailable and head is not None and user in head.initiators


def _users(wish: HeadWish) -> frozenset[str]:
    return frozenset(chap.user for chap in wish.chap)
