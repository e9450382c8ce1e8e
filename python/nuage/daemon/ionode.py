"""An IO-node's process: the agent, its storage daemons, the channel. Wiring only."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nuage.channel import Handlers, Peer
from nuage.clock import Clock, SystemClock
from nuage.daemon.agent import AgentChannel
from nuage.daemon.agent_trust import REVOCATIONS
from nuage.daemon.configuration import DiskConfiguration, IonodeConfiguration
from nuage.daemon.disk_metrics import DiskMetrics
from nuage.daemon.images import IMAGE_STREAM, ImageChunk, ImageFolder, ReadImage
from nuage.daemon.process import Tasks, new_registry, serve_metrics
from nuage.errors import Unavailable
from nuage.iaas.conditions import CONDITION_METHOD, AskCondition, CopyCondition
from nuage.iaas.heads import RELEASE_METHOD, ReleaseHead
from nuage.iaas.keys import SET_KEY_METHOD
from nuage.iaas.past import HISTORY_METHOD, MARK_METHOD, MOMENT_METHOD, ROLLBACK_METHOD
from nuage.iaas.transfers import (
    CHANGED_METHOD,
    READ_METHOD,
    WRITE_METHOD,
    AskChanged,
    AskPiece,
    AskWrite,
    PieceRead,
)
from nuage.iaas.views import CLOSE_VIEW_METHOD, VIEW_METHOD, VIEWS_METHOD
from nuage.ids import IaasId
from nuage.ionode.agent import WISH_FILE, IonodeAgent, IonodeOptions, load_wish
from nuage.ionode.disks import BasePlace, DiskPlace, base_disk, require_disks
from nuage.ionode.identity import DiskBook
from nuage.ionode.losses import HELD_METHOD, AskHeld, HeldPage, LossTeller
from nuage.ionode.nearby import Nearby
from nuage.ionode.owner import let_read, open_to_daemons
from nuage.ionode.pieces import read_piece, write_piece
from nuage.ionode.port import ChangedRuns, StorageDaemon
from nuage.ionode.ports import choose_ports, taken_ports
from nuage.ionode.probe import best_of, measure
from nuage.ionode.receipts import RECEIPTS_METHOD, ReceiptBatch, Signer
from nuage.ionode.storaged import DISKS_SUFFIX, StoragedDaemon, StoragedOptions
from nuage.model.contract import NO_LIMITS, Limits
from nuage.model.desired import DaemonWish, IonodeReport, IonodeWish, SetKey
from nuage.model.history import (
    AskCloseView,
    AskHistory,
    AskMark,
    AskMoment,
    AskRollback,
    AskView,
    AskViews,
    FoundMoment,
    Marked,
    OpenedView,
    VolumeHistory,
    VolumeViews,
)
from nuage.model.infrastructure import NodeRole, portal_group_of
from nuage.trust.files import write_atomically
from nuage.trust.pki import pem_of
from nuage.trust.store import DAEMON_CHAIN, DAEMON_KEY, ROOT, TrustStore

BASES: Final = "bases"  # of volumes whose journals lie on faster disks
DISKS_FILE: Final = "disks.json"  # which disk was where
DISKS_EVERY_S: Final = 5.0
log = structlog.get_logger("ionode")


def disks_of(configuration: IonodeConfiguration) -> tuple[DiskPlace, ...]:
    """Return the disks of a node, in order of name, as it is configured.

    Raises:
        InvalidRequest: two share a directory.
    """
    known = configuration.disks or {"d0": DiskConfiguration(path=configuration.data_dir)}
    disks = tuple(
        DiskPlace(
            name=name,
            disk_class=disk.disk_class,
            path=disk.path / "volumes",
            size_bytes=disk.size_bytes,
            capacity=Limits(operations_per_s=disk.operations_per_s, bytes_per_s=disk.bytes_per_s),
            serial=disk.serial or f"{configuration.node.node_id}:{disk.path}",
        )
        for name, disk in sorted(known.items())
    )
    require_disks(disks)
    return disks


class IonodeProcess:
    """One IO-node, from configuration to running."""

    def __init__(self, configuration: IonodeConfiguration, clock: Clock | None = None) -> None:
        self._configuration = configuration
        self._clock = clock or SystemClock()
        self._tasks = Tasks()
        self._images: ImageFolder | None = None
        self._nearby = Nearby(self._run_dir / "clear-from", configuration.clear_from)

    async def start(self) -> Callable[[], Awaitable[None]]:
        """Find the daemons that run, talk to the controller."""
        configuration = self._configuration
        open_to_daemons(configuration.state_dir)
        self._disks = disks_of(configuration)
        self._find_disks(configuration.state_dir)
        await self._nearby.open(configuration.node.address)
        self._agent = IonodeAgent(
            IonodeOptions(
                node_id=configuration.node.node_id,
                site_id=configuration.node.site_id,
                state_dir=configuration.state_dir,
                disks=self._disks,
                book=self._book,
                overcommit_ratio=configuration.overcommit_ratio,
            ),
            open_daemon=self._open_daemon,
            find_daemons=self._find_daemons,
            fetch_image=self._fetch_image,
            clock=self._clock,
            signer=self._signer(),
            hand_receipts=self._hand_receipts,
        )
        handlers = Handlers()
        self._register(handlers)
        self._channel: AgentChannel[IonodeWish, IonodeReport] = AgentChannel(
            configuration, NodeRole.IONODE, handlers, self._tasks, self._clock
        )
        self._channel.start(
            wish_type=IonodeWish, take_wish=self._take_wish, reports=self._agent.reports
        )
        self._tasks.keep("agent", self._agent.run)
        self._tasks.keep("shares", self._agent.share_disks)
        self._tasks.keep("disks", self._look_at_disks)
        self._tasks.keep("losses", self._loss_teller().run)
        self._tasks.start("measure", self._measure(self._serving))
        if configuration.metrics_listen:
            registry = new_registry()
            registry.register(DiskMetrics(self._agent.report))
            await serve_metrics(configuration.metrics_listen, registry)
        return self.stop

    async def stop(self) -> None:
        """Stop the agent; the storage daemons go on serving."""
        await self._tasks.close()
        await self._channel.close()

    def _register(self, handlers: Handlers) -> None:
        controllers = {NodeRole.CONTROLLER}

        @handlers.method(HISTORY_METHOD, AskHistory, roles=controllers)
        async def history(_peer: Peer, ask: AskHistory) -> VolumeHistory:
            return await self._agent.daemon_of(ask.iaas_id).history(ask)

        @handlers.method(SET_KEY_METHOD, SetKey, roles=controllers)
        async def set_key(_peer: Peer, given: SetKey) -> None:
            self._agent.take_key(given)

        @handlers.method(MOMENT_METHOD, AskMoment, roles=controllers)
        async def moment(_peer: Peer, ask: AskMoment) -> FoundMoment:
            return await self._agent.daemon_of(ask.iaas_id).find_moment(ask)

        @handlers.method(VIEW_METHOD, AskView, roles=controllers)
        async def view(_peer: Peer, ask: AskView) -> OpenedView:
            return await self._agent.daemon_of(ask.iaas_id).open_view(ask)

        @handlers.method(VIEWS_METHOD, AskViews, roles=controllers)
        async def views(_peer: Peer, ask: AskViews) -> VolumeViews:
            return await self._agent.daemon_of(ask.iaas_id).views_of(ask.volume_id)

        @handlers.method(CLOSE_VIEW_METHOD, AskCloseView, roles=controllers)
        async def close_view(_peer: Peer, ask: AskCloseView) -> None:
            await self._agent.daemon_of(ask.iaas_id).close_view(ask)

        @handlers.method(CHANGED_METHOD, AskChanged, roles=controllers)
        async def changed(_peer: Peer, ask: AskChanged) -> ChangedRuns:
            daemon = self._agent.daemon_of(ask.iaas_id)
            return await daemon.changed(ask.view, ask.since or None, ask.after)

        @handlers.method(READ_METHOD, AskPiece, roles=controllers)
        async def read(_peer: Peer, ask: AskPiece) -> PieceRead:
            daemon = self._agent.daemon_of(ask.iaas_id)
            return PieceRead(await read_piece(daemon, ask.view, ask.offset, ask.length))

        @handlers.method(WRITE_METHOD, AskWrite, roles=controllers)
        async def write(_peer: Peer, ask: AskWrite) -> None:
            daemon = self._agent.daemon_of(ask.iaas_id)
            await write_piece(daemon, ask.volume_id, ask.offset, ask.data)
            if ask.flush:
                await daemon.flush(ask.volume_id)

        @handlers.method(MARK_METHOD, AskMark, roles=controllers)
        async def mark(_peer: Peer, ask: AskMark) -> Marked:
            return await self._agent.daemon_of(ask.iaas_id).mark(ask)

        @handlers.method(ROLLBACK_METHOD, AskRollback, roles=controllers)
        async def rollback(_peer: Peer, ask: AskRollback) -> None:
            await self._agent.daemon_of(ask.iaas_id).rollback(ask)

        @handlers.method(CONDITION_METHOD, AskCondition, roles=controllers)
        async def condition(_peer: Peer, ask: AskCondition) -> CopyCondition:
            daemon = self._agent.daemon_of(ask.iaas_id)
            act = daemon.scrub if ask.begin else daemon.scrubbed
            seen = await act(ask.volume_id)
            node = self._configuration.node
            return CopyCondition(node_id=node.node_id, site_id=node.site_id, **asdict(seen))

        @handlers.method(RELEASE_METHOD, ReleaseHead, roles=controllers, runs_to_end=True)
        async def release(_peer: Peer, ask: ReleaseHead) -> None:
            if ask.reopen:
                self._agent.reopen(ask.volume_id, ask.epoch)
            else:
                await self._agent.release(ask.iaas_id, ask.volume_id, ask.epoch)

    async def _take_wish(self, wish: IonodeWish) -> None:
        self._nearby.take(wish.neighbours)
        await self._agent.take_wish(wish)

    async def _measure(self, disks: Iterable[DiskPlace]) -> None:
        """Find out what the disks do of which nobody has told it.

        The best of all starts counts: at one of them the disk may have been busy.
        """
        for disk in disks:
            if disk.capacity != NO_LIMITS:
                continue
            path = self._configuration.state_dir / f"disk-{disk.name}.json"
            capacity = NO_LIMITS
            if path.exists():
                capacity = msgspec.json.decode(path.read_bytes(), type=Limits)
                self._agent.media.set_capacity(disk.name, capacity)
            capacity = best_of(capacity, await asyncio.to_thread(measure, disk.path))
            write_atomically(path, msgspec.json.encode(capacity))
            log.info("disk measured", disk=disk.name, **asdict(capacity))
            self._agent.media.set_capacity(disk.name, capacity)

    def _signer(self) -> Signer:
        configuration = self._configuration
        store = TrustStore(configuration.trust_dir)
        node = configuration.node
        return Signer(
            site_id=node.site_id,
            node_id=node.node_id,
            serial_of=self._book.serial_at,
            key=store.key,
            chain_pem=lambda: pem_of(*store.chain()),
        )

    async def _hand_receipts(self, batch: ReceiptBatch) -> None:
        await self._channel.client.call(RECEIPTS_METHOD, batch, type(None))

    def _find_disks(self, state_dir: Path) -> None:
        """Take the disks in that are there, were not declared lost, and are no others' copies."""
        clock = self._clock
        self._book = DiskBook(
            state_dir / DISKS_FILE, self._disks, now_ms=lambda: int(clock.now_s() * 1000)
        )
        lost = {disk.loss.disk_serial for disk in load_wish(state_dir / WISH_FILE).lost_disks}
        self._book.take_in(lost)
        self._lay_out(lost)
        for absent in self._book.absent(lost):
            log.warning("disk away", disk=absent.name, serial=absent.serial, why=absent.reason)

    def _lay_out(self, lost: Collection[str]) -> None:
        """Find what goes where on the disks that are in service and answer."""
        away = self._book.away()
        self._serving = tuple(disk for disk in self._book.serving if disk.name not in away)
        base = base_disk(self._disks)
        bases = {disk.name: BasePlace(disk.name, disk.path / BASES) for disk in self._serving}
        self._base = None if base is None else bases.pop(base.name, None)
        self._old_bases = tuple(place for place in bases.values() if place.path.is_dir())
        self._is_complete = self._book.is_complete(lost)
        self._lost_bases = tuple(path / BASES for path in self._book.lost_paths(lost))
        if self._base is not None and not self._base.path.is_dir():
            open_to_daemons(self._base.path)

    async def _look_at_disks(self) -> None:
        """Take in disks that come, for ever; daemons that lack them are started anew."""
        away = self._book.away()
        while True:
            await self._clock.sleep(DISKS_EVERY_S)
            lost = {disk.loss.disk_serial for disk in self._agent.lost_disks}
            fresh = self._book.look_again(lost)
            before, away = away, self._book.away()
            self._lay_out(lost)
            if fresh:
                log.info("disks taken into service", disks=fresh)
                self._agent.media.take_in(self._book.serving)
                come = [disk for disk in self._serving if disk.name in fresh]
                self._tasks.start("measure", self._measure(come))
            if before - away:
                for noted in self._run_dir.glob(f"*{DISKS_SUFFIX}"):
                    noted.write_bytes(b"")  # what was open there may not answer any more
            self._agent.renew(self._outdated())

    def _outdated(self) -> frozenset[IaasId]:
        """Return the daemons that run without disks which are here now."""
        if not self._has_first_disk():
            return frozenset()
        found = [IaasId(socket.stem) for socket in self._run_dir.glob("*.sock")]
        return frozenset(each for each in found if not self._daemon_of(each).knows_its_disks())

    def _has_first_disk(self) -> bool:
        return any(disk.name == self._disks[0].name for disk in self._serving)

    def _loss_teller(self) -> LossTeller:
        async def ask(about: AskHeld) -> HeldPage:
            return await self._channel.client.call(HELD_METHOD, about, HeldPage)

        return LossTeller(
            self._book,
            signer=self._signer(),
            lost=lambda: self._agent.lost_disks,
            uses=self._agent.uses,
            stands=self._agent.stands,
            ask=ask,
            hand=self._hand_receipts,
            clock=self._clock,
        )

    async def _open_daemon(self, wish: DaemonWish) -> StorageDaemon:
        if not self._has_first_disk():
            raise Unavailable(
                f"disk {self._disks[0].name}, where storage daemons keep their notes,"
                " is not in service",
                hint=f"`nuage node disks {self._configuration.node.name}` says why",
            )
        daemon = self._daemon_of(wish.iaas_id)
        await daemon.start()
        return daemon

    async def _find_daemons(self) -> dict[IaasId, StorageDaemon]:
        found: dict[IaasId, StorageDaemon] = {}
        for socket in self._run_dir.glob("*.sock"):
            daemon = self._daemon_of(IaasId(socket.stem))
            if await daemon.find():
                found[IaasId(socket.stem)] = daemon
        return found

    @property
    def _run_dir(self) -> Path:
        return self._configuration.state_dir / "daemons"

    def _daemon_of(self, iaas_id: IaasId) -> StoragedDaemon:
        configuration = self._configuration
        run_dir = self._run_dir
        first = [] if self._has_first_disk() else [self._disks[0]]
        ports = choose_ports(run_dir / f"{iaas_id}.ports", taken_ports(run_dir))
        options = StoragedOptions(
            binary=configuration.storaged,
            disks=(*first, *self._serving),
            base=self._base,
            old_bases=self._old_bases,
            lost_bases=self._lost_bases,
            all_disks=self._is_complete,
            run_dir=run_dir,
            address=configuration.node.address,
            tls_cert=configuration.trust_dir / DAEMON_CHAIN,
            tls_key=configuration.trust_dir / DAEMON_KEY,
            tls_ca=configuration.trust_dir / ROOT,
            tls_crl=configuration.trust_dir / REVOCATIONS,
            clear_from=self._nearby.path,
            portal_group=portal_group_of(configuration.node.node_id),
            own_user=os.geteuid() == 0,
        )
        return StoragedDaemon(options, iaas_id, ports)

    async def _fetch_image(self, sha256: str) -> Path:
        if self._images is None:  # not before a daemon asks: the first disk is in service then
            open_to_daemons(self._configuration.data_dir)
            self._images = ImageFolder(self._configuration.data_dir / "images")
        image = await self._images.require(sha256, self._read_image)
        if os.geteuid() == 0:
            let_read(image)
        return image

    def _read_image(self, ask: ReadImage) -> AsyncIterator[ImageChunk]:
        return self._channel.client.subscribe(IMAGE_STREAM, ask, ImageChunk)
