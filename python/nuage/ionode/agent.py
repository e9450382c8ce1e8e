"""The IO-node agent's loop: one storage daemon per IaaS, with or without its site.

The last wish is kept on disk. Each daemon is looked at when a wish comes and every `LOOK_EVERY_S`
seconds; acts on different daemons run side by side.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nuage.clock import Clock
from nuage.errors import (
    UNREADABLE,
    Conflict,
    CorruptData,
    Locked,
    Lost,
    NotFound,
    NuageError,
    Unavailable,
)
from nuage.ids import IaasId, NodeId, SiteId, VolumeId
from nuage.ionode.copies import OriginMissing, check_sectors, make_copy
from nuage.ionode.disks import DiskPlace
from nuage.ionode.identity import VOLUME_FILES, DiskBook
from nuage.ionode.losses import Standing
from nuage.ionode.media import Media
from nuage.ionode.plan import (
    Act,
    CloseHead,
    Create,
    EndStandby,
    Erase,
    Fill,
    Keep,
    OpenHead,
    Resize,
    StandBy,
    Tell,
    plan,
)
from nuage.ionode.port import DaemonReceipt, DaemonSeen, HeadSeen, StorageDaemon, VolumeSeen
from nuage.ionode.receipts import BATCH_MAX, Outbox, ReceiptBatch, Signer
from nuage.ionode.shares import DIVIDE_EVERY_S
from nuage.model.desired import (
    AbsentDisk,
    CopyReport,
    DaemonWish,
    HeadReport,
    HeadWish,
    IonodeReport,
    IonodeWish,
    PathWish,
    ReplicaReport,
    ReplicaWish,
    SetKey,
)
from nuage.model.history import IMAGE_MARK, AskMark
from nuage.model.iaas import KEY_SHREDDED
from nuage.model.infrastructure import LostDisk
from nuage.model.status import OVERCOMMIT_RATIO
from nuage.trust.datakeys import key_id_of
from nuage.trust.files import write_atomically

LOOK_EVERY_S: Final = 2.0
BUSY_LOOK_S: Final = 0.05  # while a head opens or an image is copied in
REPORT_EVERY_S: Final = 1.0  # a silent node is looked into after one that did not come
RECEIPTS_RETRY_S: Final = 2.0
RECEIPTS_FOLDER: Final = "receipts"
WISH_FILE: Final = "ionode-wish.json"
FILLED_FILE: Final = "filled.json"
log = structlog.get_logger("ionode")

OpenDaemon = Callable[[DaemonWish], Awaitable[StorageDaemon]]
FindDaemons = Callable[[], Awaitable[dict[IaasId, StorageDaemon]]]
FetchImage = Callable[[str], Awaitable[Path]]
HandReceipts = Callable[[ReceiptBatch], Awaitable[None]]


@dataclass(slots=True)
class _Hosted:
    """A daemon, and what was done to it last."""

    daemon: StorageDaemon
    seen: DaemonSeen = field(default_factory=DaemonSeen)
    told: dict[VolumeId, HeadWish] = field(default_factory=dict)
    shown: dict[VolumeId, PathWish] = field(default_factory=dict)
    failures: dict[VolumeId, str] = field(default_factory=dict)
    lost: set[VolumeId] = field(default_factory=set)  # failures that no other node can help
    lacking: set[VolumeId] = field(default_factory=set)  # the past they should start from
    locked: set[VolumeId] = field(default_factory=set)  # their data key is not here
    filling: dict[VolumeId, asyncio.Task[None]] = field(default_factory=dict)
    telling: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IonodeOptions:
    """Who this agent is and where it keeps things.

    `book` knows which of the `disks` are there; without one all are. `overcommit_ratio` times their
    bytes may be promised to volumes.
    """

    node_id: NodeId
    site_id: SiteId
    state_dir: Path
    disks: tuple[DiskPlace, ...]
    book: DiskBook | None = None
    overcommit_ratio: float = OVERCOMMIT_RATIO


class IonodeAgent:
    """Works towards the last wish it took."""

    def __init__(
        self,
        options: IonodeOptions,
        *,
        open_daemon: OpenDaemon,
        fetch_image: FetchImage,
        clock: Clock,
        signer: Signer | None = None,
        hand_receipts: HandReceipts | None = None,
        find_daemons: FindDaemons | None = None,
    ) -> None:
        self._options = options
        self._signer = signer
        self._hand_receipts = hand_receipts
        self._outboxes: dict[IaasId, Outbox] = {}
        self._released: set[tuple[VolumeId, int]] = set()
        self._open_daemon = open_daemon
        self._find_daemons = find_daemons
        self._fetch_image = fetch_image
        self._clock = clock
        self._wish = load_wish(options.state_dir / WISH_FILE)
        self._filled = _load_filled(options.state_dir / FILLED_FILE)
        self._hosted: dict[IaasId, _Hosted] = {}
        self._keys: dict[IaasId, SetKey] = {}  # never on disk, never in a log
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._last_told: IonodeReport | None = None
        self._outdated: frozenset[IaasId] = frozenset()
        serving = options.disks if options.book is None else options.book.serving
        self.media = Media(serving, clock)

    async def take_wish(self, wish: IonodeWish) -> None:
        """Take desired state; it is on disk when this returns.

        Raises:
            Conflict: its revision is older than the one taken last.
        """
        if wish.revision < self._wish.revision:
            raise Conflict(
                f"wish {wish.revision} is older than {self._wish.revision}",
                revision=self._wish.revision,
            )
        data = msgspec.json.encode(wish)
        write_atomically(self._options.state_dir / WISH_FILE, data, secret=True)
        self._wish = wish
        heads = {head.volume_id: head.epoch for daemon in wish.daemons for head in daemon.heads}
        replicas = {copy.volume_id for daemon in wish.daemons for copy in daemon.replicas}
        self._released = {
            (volume_id, epoch)
            for volume_id, epoch in self._released
            if heads.get(volume_id, 0) <= epoch and volume_id in replicas | heads.keys()
        }
        self._wake.set()

    async def run(self) -> None:
        """Work for ever, with the daemons that a former agent left running."""
        if self._find_daemons is not None:
            found = await self._find_daemons()
            self._hosted = {iaas_id: _Hosted(daemon) for iaas_id, daemon in found.items()}
        while True:
            self._wake.clear()
            busy = await self.step()
            try:
                await asyncio.wait_for(
                    self._wake.wait(), timeout=BUSY_LOOK_S if busy else LOOK_EVERY_S
                )
            except TimeoutError:
                continue

    async def step(self) -> bool:
        """Look at every daemon and do what is due; return whether something is under way."""
        busy = await asyncio.gather(*(self._step_daemon(wish) for wish in self._wish.daemons))
        unwished = self._hosted.keys() - {wish.iaas_id for wish in self._wish.daemons}
        await asyncio.gather(*(self._retire_when_empty(iaas_id) for iaas_id in unwished))
        self._tell()
        return any(busy)

    async def _retire_when_empty(self, iaas_id: IaasId) -> None:
        """End a daemon that no wish names, once nothing is left of its IaaS here.

        One that keeps a copy goes on: no wish erases by what it does not say.
        """
        hosted, outbox = self._hosted[iaas_id], self._outbox(iaas_id)
        try:
            hosted.seen = await hosted.daemon.seen()
            outbox.erase_ended(volume.volume_id for volume in hosted.seen.volumes)
            self._keep_telling(iaas_id, hosted, outbox)
            if hosted.seen.volumes or not outbox.has_told(await hosted.daemon.past_receipts()):
                return
            if hosted.telling is not None:
                hosted.telling.cancel()
            outbox.remove()  # first: receipts that are told again are taken once
            self._outboxes.pop(iaas_id)
            self._keys.pop(iaas_id, None)
            await hosted.daemon.retire()
        except Unavailable:
            log.info("daemon ended by itself", iaas=iaas_id)
        except NuageError as error:
            log.warning("daemon does not end", iaas=iaas_id, error=error.message)
            return
        else:
            log.info("daemon ended: nothing of its IaaS is left here", iaas=iaas_id)
        self._drop(iaas_id)

    async def _step_daemon(self, wish: DaemonWish) -> bool:
        try:
            hosted = self._hosted.get(wish.iaas_id)
            if hosted is None:
                hosted = _Hosted(await self._open_daemon(wish))
                self._hosted[wish.iaas_id] = hosted
            hosted.seen = await hosted.daemon.seen()
        except NuageError as error:
            log.warning("daemon does not answer", iaas=wish.iaas_id, error=error.message)
            was_there = wish.iaas_id in self._hosted
            self._drop(wish.iaas_id)
            return was_there  # one that ended is started again at once
        if wish.iaas_id in self._outdated and await self._renew(wish.iaas_id, hosted):
            return True
        outbox = self._outbox(wish.iaas_id)
        outbox.erase_ended(volume.volume_id for volume in hosted.seen.volumes)
        self._keep_telling(wish.iaas_id, hosted, outbox)
        done = self._filled | set(hosted.filling)
        await self._mind_key(wish, hosted)
        acts = plan(
            wish,
            hosted.seen,
            filled=done,
            told=hosted.told,
            shown=hosted.shown,
            released=frozenset(self._released),
        )
        due = {_volume_of(act) for act in acts} | set(hosted.filling)
        for volume_id in set(hosted.failures) - due:  # what failed is no longer wanted
            del hosted.failures[volume_id]
        hosted.lacking &= hosted.failures.keys()
        hosted.locked &= hosted.failures.keys()
        gave_up = self._heads_that_gave_up(wish, hosted)
        for act in acts:
            await self._perform(hosted, act)
        for volume_id in gave_up:  # it is tried again, and told: another copy may know more
            hosted.failures.setdefault(volume_id, "the head gave up while it opened")
        if acts:
            try:
                hosted.seen = await hosted.daemon.seen()
            except NuageError as error:
                log.warning("daemon ended", iaas=wish.iaas_id, error=error.message)
                self._drop(wish.iaas_id)
                return True
            outbox.erase_ended(volume.volume_id for volume in hosted.seen.volumes)
        return bool(acts) or any(not head.is_ready for head in hosted.seen.heads)

    def renew(self, outdated: Collection[IaasId]) -> None:
        """Have these daemons, which lack disks, started anew as soon as they serve no head."""
        if outdated != self._outdated:
            self._outdated = frozenset(outdated)
            self._wake.set()

    async def _renew(self, iaas_id: IaasId, hosted: _Hosted) -> bool:
        """End a daemon for one with the present disks, if nobody works with it; tell if so."""
        if hosted.seen.heads or hosted.filling:
            return False
        try:
            await hosted.daemon.stop()
        except NuageError as error:
            log.warning("daemon does not end", iaas=iaas_id, error=error.message)
            return False
        log.info("daemon ended: it starts anew with other disks", iaas=iaas_id)
        self._outdated -= {iaas_id}
        self._drop(iaas_id)
        return True

    def _heads_that_gave_up(self, wish: DaemonWish, hosted: _Hosted) -> list[VolumeId]:
        """Return the volumes whose heads were opened here, and closed without anybody's word."""
        seen = {head.volume_id for head in hosted.seen.heads}
        return [
            head.volume_id
            for head in wish.heads
            if head.volume_id not in seen
            and (head.volume_id, head.epoch) not in self._released
            and head.volume_id in hosted.told
            and hosted.told[head.volume_id].epoch == head.epoch
        ]

    async def _mind_key(self, wish: DaemonWish, hosted: _Hosted) -> None:
        """Give a daemon the key that the controller gave us, or take it away for good."""
        if wish.key_id == hosted.seen.key_id:
            return
        try:
            if wish.key_id == KEY_SHREDDED:
                self._keys.pop(wish.iaas_id, None)
                if hosted.seen.key_id:
                    await hosted.daemon.forget_key()
            elif wish.key_id and wish.iaas_id in self._keys:
                await hosted.daemon.set_key(*self._keys[wish.iaas_id].keys)
                hosted.seen = await hosted.daemon.seen()
        except NuageError as error:
            log.warning("key not taken", iaas=wish.iaas_id, error=error.message)

    def take_key(self, given: SetKey) -> None:
        """Keep a data key in memory, for the daemon of its IaaS now and after its restarts."""
        self._keys[given.iaas_id] = given
        self._wake.set()

    def _locked(self) -> tuple[IaasId, ...]:
        wanted = {w.iaas_id: w.key_id for w in self._wish.daemons if w.key_id != KEY_SHREDDED}
        return tuple(
            iaas_id
            for iaas_id, key_id in sorted(wanted.items())
            if key_id
            and (iaas_id not in self._keys or self._keys_id(iaas_id) != key_id)
            and (iaas_id not in self._hosted or self._hosted[iaas_id].seen.key_id != key_id)
        )

    def _keys_id(self, iaas_id: IaasId) -> str:
        return key_id_of(bytes.fromhex(self._keys[iaas_id].key))

    async def _perform(self, hosted: _Hosted, act: Act) -> None:
        volume_id = _volume_of(act)
        try:
            await self._act(hosted, act)
        except NuageError as error:
            if hosted.failures.get(volume_id) != error.message:
                log.warning("act failed", act=type(act).__name__, on=volume_id, error=error.message)
            hosted.failures[volume_id] = error.message
            if isinstance(error, Lost):
                hosted.lost.add(volume_id)
            if isinstance(error, OriginMissing):
                hosted.lacking.add(volume_id)
            if isinstance(error, Locked):
                hosted.locked.add(volume_id)
        else:
            hosted.failures.pop(volume_id, None)
            if isinstance(act, OpenHead):
                hosted.lost.discard(volume_id)

    async def _act(self, hosted: _Hosted, act: Act) -> None:
        daemon = hosted.daemon
        match act:
            case Create(wish=wish):
                await make_copy(daemon, wish, self._choose_disk(wish))
            case Resize(volume_id=volume_id, size_bytes=size_bytes):
                await daemon.resize(volume_id, size_bytes)
            case Keep(volume_id=volume_id, journal=journal):
                await daemon.set_journal(volume_id, journal)
            case OpenHead(wish=head):
                check_sectors(head.volume_id, self._wish, hosted.seen)
                await daemon.open_head(head)
                hosted.told[head.volume_id] = replace(head, groups=())  # once it is ready
            case Tell(wish=head):
                await daemon.set_terms(head)
                await daemon.set_initiators(head)
                hosted.told[head.volume_id] = head
            case Fill(volume_id=volume_id, sha256=sha256):
                task = asyncio.create_task(self._fill(hosted, volume_id, sha256))
                hosted.filling[volume_id] = task
            case CloseHead(volume_id=volume_id):
                await daemon.close_head(volume_id)
                hosted.told.pop(volume_id, None)
            case StandBy(wish=path):
                check_sectors(path.volume_id, self._wish, hosted.seen)
                await daemon.stand_by(path)
                hosted.shown[path.volume_id] = path
            case EndStandby(volume_id=volume_id):
                await daemon.end_standby(volume_id)
                hosted.shown.pop(volume_id, None)
            case Erase(volume_id=volume_id):
                await self._note_erasure(hosted, volume_id)
                await daemon.erase(volume_id)
                hosted.lost.discard(volume_id)

    async def _note_erasure(self, hosted: _Hosted, volume_id: VolumeId) -> None:
        iaas_id = next(i for i, other in self._hosted.items() if other is hosted)
        outbox, first = self._outbox(iaas_id), self._options.disks[0].name
        await _tell_taken(hosted.daemon, outbox)  # it then tells only of what lies here
        copies = [v for v in hosted.seen.volumes if v.volume_id == volume_id]
        lies_on = {v.disk or first for v in copies} | {v.base_disk for v in copies}
        past = await hosted.daemon.past_receipts()
        # On a disk that is away may lie another copy, which is not erased.
        here = [receipt for receipt in past if (receipt.disk or first) in lies_on]
        outbox.erase_begins(volume_id, here, now_ms=int(self._clock.now_s() * 1000))

    # Receipts -------------------------------------------------------------------------------------

    def _outbox(self, iaas_id: IaasId) -> Outbox:
        known = self._outboxes.get(iaas_id)
        if known is None:
            known = Outbox(self._options.state_dir / RECEIPTS_FOLDER / f"{iaas_id}.json")
            self._outboxes[iaas_id] = known
        return known

    def _drop(self, iaas_id: IaasId) -> None:
        """Forget a daemon that does not answer; the next step finds or starts it."""
        hosted = self._hosted.pop(iaas_id, None)
        if hosted is not None and hosted.telling is not None:
            hosted.telling.cancel()

    def _keep_telling(self, iaas_id: IaasId, hosted: _Hosted, outbox: Outbox) -> None:
        if self._signer is None or self._hand_receipts is None or hosted.telling is not None:
            return
        hosted.telling = asyncio.create_task(self._tell_receipts(iaas_id, hosted, outbox))

    async def _tell_receipts(self, iaas_id: IaasId, hosted: _Hosted, outbox: Outbox) -> None:
        """Hand receipts to the site as they are noted, for as long as the daemon runs."""
        queue: asyncio.Queue[DaemonReceipt] = asyncio.Queue(maxsize=BATCH_MAX)
        following = asyncio.create_task(self._follow_receipts(hosted, outbox, queue))
        try:
            while not following.done():
                batch = await _next_batch(queue)
                batch += outbox.erased[:BATCH_MAX]
                if batch:
                    await self._hand_over(iaas_id, outbox, batch)
                    await _tell_taken(hosted.daemon, outbox)
        finally:
            following.cancel()
            hosted.telling = None

    async def _follow_receipts(
        self, hosted: _Hosted, outbox: Outbox, queue: asyncio.Queue[DaemonReceipt]
    ) -> None:
        await _tell_taken(hosted.daemon, outbox)
        try:
            async for receipt in hosted.daemon.follow_receipts(outbox.cursor):
                await queue.put(receipt)
        except NuageError as error:
            log.info("receipts interrupted", error=error.message)
            self._wake.set()  # the daemon may have ended: it is started again at once

    async def _hand_over(self, iaas_id: IaasId, outbox: Outbox, batch: list[DaemonReceipt]) -> None:
        """Sign and send until the site has taken the batch in."""
        assert self._signer is not None
        assert self._hand_receipts is not None
        while True:
            signed = tuple(self._signer.sign(noted) for noted in batch)
            chain_pem = self._signer.chain_pem()
            try:
                await self._hand_receipts(
                    ReceiptBatch(iaas_id=iaas_id, chain_pem=chain_pem, receipts=signed)
                )
            except NuageError as error:
                log.info("receipts wait", iaas=iaas_id, count=len(batch), error=error.message)
                await self._clock.sleep(RECEIPTS_RETRY_S)
                continue
            outbox.taken(batch)
            return

    async def stands(self, iaas_id: IaasId) -> Standing:
        """Tell how an IaaS stands here, for what is told of lost disks.

        Raises:
            Unavailable: its daemon does not answer.
        """
        hosted = self._hosted.get(iaas_id)
        if hosted is None:
            return Standing(is_told=all(d.iaas_id != iaas_id for d in self._wish.daemons))
        past = await hosted.daemon.past_receipts()
        seen = (await hosted.daemon.seen()).volumes
        here = {
            (disk.name, path.parent.name)
            for disk in self._options.disks
            for path in (disk.path / iaas_id).glob(VOLUME_FILES)
        }
        paths = {disk.name: disk.path / iaas_id / "volumes" for disk in self._options.disks}
        used = {
            v.volume_id
            for v in seen
            if (v.disk, v.volume_id) not in here
            or (v.is_open and _is_base_away(paths[v.disk] / v.volume_id))
        }
        return Standing(is_told=self._outbox(iaas_id).has_told(past), used=frozenset(used))

    @property
    def lost_disks(self) -> tuple[LostDisk, ...]:
        """Return the disks of this node that were declared lost."""
        return self._wish.lost_disks

    def uses(self, place: str) -> bool:
        """Tell whether a daemon has volumes on the disk of this place."""
        return any(place in (volume.disk, volume.base_disk) for volume in self._volumes())

    # Images ---------------------------------------------------------------------------------------

    async def _fill(self, hosted: _Hosted, volume_id: VolumeId, sha256: str) -> None:
        try:
            await hosted.daemon.fill(volume_id, await self._fetch_image(sha256))
            iaas_id = next(i for i, other in self._hosted.items() if other is hosted)
            ask = AskMark(iaas_id=iaas_id, volume_ids=(volume_id,), name=IMAGE_MARK)
            await hosted.daemon.mark(ask)
        except NuageError as error:
            log.warning("image not copied in", on=volume_id, error=error.message)
            hosted.failures[volume_id] = error.message
        else:
            hosted.failures.pop(volume_id, None)
            self._note_filled(volume_id)
        finally:
            del hosted.filling[volume_id]
            self._wake.set()

    def _note_filled(self, volume_id: VolumeId) -> None:
        wanted = {copy.volume_id for daemon in self._wish.daemons for copy in daemon.replicas}
        self._filled = self._filled & wanted | {volume_id}
        data = msgspec.json.encode(sorted(self._filled))
        write_atomically(self._options.state_dir / FILLED_FILE, data)

    # Asked by the controller ----------------------------------------------------------------------

    def daemon_of(self, iaas_id: IaasId) -> StorageDaemon:
        """Return the daemon of an IaaS.

        Raises:
            NotFound: none runs here, now.
        """
        hosted = self._hosted.get(iaas_id)
        if hosted is None:
            raise NotFound("storage daemon", iaas_id)
        return hosted.daemon

    async def release(self, iaas_id: IaasId, volume_id: VolumeId, epoch: int) -> None:
        """Close a head for another node to open the next; it stays closed under this epoch.

        Raises:
            Conflict: the head here has another epoch.
        """
        daemon = self.daemon_of(iaas_id)
        for head in (await daemon.seen()).heads:
            if head.volume_id == volume_id and head.epoch != epoch:
                raise Conflict(f"the head of {volume_id} has epoch {head.epoch}, not {epoch}")
        self._released.add((volume_id, epoch))
        await daemon.close_head(volume_id)

    def reopen(self, volume_id: VolumeId, epoch: int) -> None:
        """Take a release back: nobody else has opened the volume."""
        self._released.discard((volume_id, epoch))
        self._wake.set()

    # Disks ----------------------------------------------------------------------------------------

    async def share_disks(self) -> None:
        """Divide the disks among the daemons, for ever."""
        while True:
            await self._clock.sleep(DIVIDE_EVERY_S)
            await self.divide()

    async def divide(self) -> None:
        """Divide each disk anew among the daemons that have copies there."""
        rules = {wish.iaas_id: wish.disk for wish in self._wish.daemons}
        for disk in self.media.names:
            daemons = {
                iaas_id: hosted.daemon
                for iaas_id, hosted in self._hosted.items()
                if iaas_id in rules and any(v.disk == disk for v in hosted.seen.volumes)
            }
            await self.media.divide(disk, daemons, rules)

    def _volumes(self) -> list[VolumeSeen]:
        return [volume for hosted in self._hosted.values() for volume in hosted.seen.volumes]

    def _choose_disk(self, wish: ReplicaWish) -> str:
        rules = {daemon.iaas_id: daemon.disk for daemon in self._wish.daemons}
        return self.media.choose(self._volumes(), rules[wish.iaas_id].disk_class)

    # Reports ------------------------------------------------------------------------------------

    def _tell(self) -> None:
        report = self.report()
        if self._last_told is None or _facts(report) != _facts(self._last_told):
            self._last_told = report
            self._news.set()

    async def reports(self, every_s: float = REPORT_EVERY_S) -> AsyncIterator[IonodeReport]:
        """Yield a report now, whenever there is news, and every `every_s` seconds."""
        while True:
            self._news.clear()
            yield self.report()
            try:
                await asyncio.wait_for(self._news.wait(), timeout=every_s)
            except TimeoutError:
                continue

    def report(self) -> IonodeReport:
        """Return this node's facts as seen last."""
        book = self._options.book
        absent: tuple[AbsentDisk, ...] = ()
        if book is not None:
            self.media.away = book.away()
            absent = book.absent({lost.loss.disk_serial for lost in self._wish.lost_disks})
        disks = self.media.reports(self._volumes())
        rules = {wish.iaas_id: wish.disk for wish in self._wish.daemons}
        heads = {head.volume_id: head for d in self._wish.daemons for head in d.heads}
        return IonodeReport(
            node_id=self._options.node_id,
            site_id=self._options.site_id,
            wish_revision=self._wish.revision,
            replicas=tuple(
                ReplicaReport(
                    volume_id=volume.volume_id,
                    iaas_id=iaas_id,
                    state="failed" if volume.failure else "ready",
                    durable_sequence=volume.durable_sequence,
                    mapped_bytes=volume.mapped_bytes,
                    journal_bytes=volume.journal_bytes,
                    failure=volume.failure,
                    disk=volume.disk,
                    lost=volume.lost,
                    quarantine_bytes=volume.quarantine_bytes,
                    retired=volume.retired,
                )
                for iaas_id, hosted in sorted(self._hosted.items())
                for volume in hosted.seen.volumes
            ),
            heads=tuple(
                self._head_report(iaas_id, hosted, head, heads.get(head.volume_id))
                for iaas_id, hosted in sorted(self._hosted.items())
                for head in hosted.seen.heads
            )
            + self._unopened(heads),
            replica_addresses={
                iaas_id: hosted.daemon.replica_address for iaas_id, hosted in self._hosted.items()
            },
            portals={iaas_id: hosted.daemon.portal for iaas_id, hosted in self._hosted.items()},
            daemon_versions={
                iaas_id: hosted.seen.version
                for iaas_id, hosted in self._hosted.items()
                if hosted.seen.version or hosted.seen.volumes  # else it was not asked yet
            },
            erased=self._erased(),
            locked=self._locked(),
            disks=disks,
            shares=tuple(self.media.shares(rules)),
            absent_disks=absent,
            outdated=tuple(sorted(self._outdated & self._hosted.keys())),
            overcommit_ratio=self._options.overcommit_ratio,
        )

    def _erased(self) -> tuple[VolumeId, ...]:
        """Return what the wish said to erase and a daemon that answers no longer has."""
        gone = []
        for wish in self._wish.daemons:
            hosted = self._hosted.get(wish.iaas_id)
            if hosted is not None:
                present = {volume.volume_id for volume in hosted.seen.volumes}
                gone += [volume_id for volume_id in wish.erased if volume_id not in present]
        return tuple(gone)

    def _unopened(self, wanted: dict[VolumeId, HeadWish]) -> tuple[HeadReport, ...]:
        """Return a failed report for each head that could not be opened."""
        return tuple(
            HeadReport(
                volume_id=volume_id,
                iaas_id=iaas_id,
                state="failed",
                epoch=wanted[volume_id].epoch,
                failure=failure,
                is_lost=volume_id in hosted.lost,
                lacks_origin=volume_id in hosted.lacking,
                is_locked=volume_id in hosted.locked,
            )
            for iaas_id, hosted in sorted(self._hosted.items())
            for volume_id, failure in sorted(hosted.failures.items())
            if volume_id in wanted
            and all(head.volume_id != volume_id for head in hosted.seen.heads)
        )

    def _head_report(
        self, iaas_id: IaasId, hosted: _Hosted, head: HeadSeen, wish: HeadWish | None
    ) -> HeadReport:
        needs_image = wish is not None and bool(wish.image_sha256)
        is_filled = not needs_image or head.volume_id in self._filled
        ready = head.is_ready and is_filled and head.volume_id not in hosted.filling
        failure = head.failure or hosted.failures.get(head.volume_id, "")
        if head.is_fenced:
            failure = failure or "another head was opened under a later epoch"
        if head.is_lost:
            failure = failure or "its copies are empty or damaged: what it held is lost"
        return HeadReport(
            volume_id=head.volume_id,
            iaas_id=iaas_id,
            state="failed" if failure else ("ready" if ready else "opening"),
            epoch=head.epoch,
            portal=head.portal,
            sequence=head.sequence,
            failure=failure,
            is_lost=head.is_lost,
            answering=head.answering,
            past=head.past,
            key_id=head.key_id,
            next_key_id=hosted.seen.key_id,
            copies=tuple(
                CopyReport(
                    node_id=copy.node_id,
                    is_connected=copy.is_connected,
                    is_live=copy.is_live,
                    durable_sequence=copy.durable_sequence,
                    lag_writes=copy.lag.writes,
                    lag_bytes=copy.lag.bytes,
                    lag_s=copy.lag.milliseconds / 1000,
                    lag_is_at_least=copy.lag.at_least,
                    is_let_go=copy.is_let_go,
                    silent_since_s=copy.silent_since_s,
                    is_failed=copy.is_failed,
                    rebuild=copy.rebuild,
                )
                for copy in head.copies
            ),
        )


async def _tell_taken(daemon: StorageDaemon, outbox: Outbox) -> None:
    try:
        await daemon.receipts_taken(outbox.cursor)
    except NuageError as error:  # it is told again with the next
        log.info("receipts stay with their daemon", error=error.message)


async def _next_batch(queue: asyncio.Queue[DaemonReceipt]) -> list[DaemonReceipt]:
    """Return what waits, after at most `RECEIPTS_RETRY_S`."""
    batch: list[DaemonReceipt] = []
    try:
        batch.append(await asyncio.wait_for(queue.get(), timeout=RECEIPTS_RETRY_S))
    except TimeoutError:
        return batch
    while len(batch) < BATCH_MAX and not queue.empty():
        batch.append(queue.get_nowait())
    return batch


def _is_base_away(volume: Path) -> bool:
    """Tell whether the base segments of the volume in this folder are on a disk that is gone."""
    link = volume / "journal" / "base"
    return link.is_symlink() and not link.is_dir()


def _volume_of(act: Act) -> VolumeId:
    if isinstance(act, Create | OpenHead | Tell | StandBy):
        return act.wish.volume_id
    return act.volume_id


def _facts(report: IonodeReport) -> tuple[object, ...]:
    """Return what is news when it changes: not counters, not the wish's number."""
    return (
        tuple((h.volume_id, h.state, h.epoch, h.portal, h.failure) for h in report.heads),
        tuple((h.key_id, h.next_key_id) for h in report.heads),
        tuple(h.answering for h in report.heads),
        tuple(
            (c.node_id, c.is_connected, c.is_live, c.is_let_go, c.silent_since_s is None)
            for h in report.heads
            for c in h.copies
        ),
        tuple(c.rebuild is None for h in report.heads for c in h.copies),
        report.erased,
        report.locked,
        report.absent_disks,
        report.outdated,
        tuple(
            (r.volume_id, r.state, r.lost, r.quarantine_bytes, r.retired) for r in report.replicas
        ),
        tuple(sorted(report.replica_addresses.items())),
        tuple(sorted(report.portals.items())),
    )


def load_wish(path: Path) -> IonodeWish:
    """Return the wish that was taken last.

    Raises:
        CorruptData: it cannot be read.
    """
    if not path.exists():
        return IonodeWish(revision=0, daemons=())
    try:
        return msgspec.json.decode(path.read_bytes(), type=IonodeWish)
    except UNREADABLE as error:
        raise CorruptData(f"the last wish cannot be read: {error}", where=str(path)) from None


def _load_filled(path: Path) -> set[VolumeId]:
    if not path.exists():
        return set()
    return set(msgspec.json.decode(path.read_bytes(), type=list[VolumeId]))
