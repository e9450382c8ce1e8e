"""The real storage daemon: one `nuage-storaged` process per IaaS, asked over its control socket.

The process outlives the agent, as a guest's QEMU does: a restarted agent finds it by its socket.
Its ports are chosen once and kept beside its data, so that portals stay the same over restarts.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nuage.errors import (
    Conflict,
    InvalidRequest,
    Locked,
    Lost,
    NotFound,
    NuageError,
    StaleEpoch,
    TimedOut,
    Unavailable,
)
from nuage.ids import IaasId, NodeId, VolumeId
from nuage.ionode.answers import (
    ChainAnswer,
    HistoryAnswer,
    ListAnswer,
    ReceiptAnswer,
    ViewsAnswer,
    scrub_seen,
)
from nuage.ionode.asked import (
    chap_of,
    chap_own_of,
    lag_bound_of,
    limits_of,
    moment_of,
    port_groups_of,
    retention_of,
    uuid_of,
)
from nuage.ionode.disks import BasePlace, DiskPlace
from nuage.ionode.owner import (
    closed_to_others,
    give,
    open_to_daemons,
    user_of,
)
from nuage.ionode.port import (
    ChangedRuns,
    CopySeen,
    DaemonReceipt,
    DaemonSeen,
    HeadSeen,
    ScrubSeen,
)
from nuage.ionode.ports import DaemonPorts
from nuage.ionode.shares import Used
from nuage.model.contract import JournalRule, Limits
from nuage.model.desired import (
    Answering,
    HeadWish,
    PathWish,
    ReplicaWish,
)
from nuage.model.history import (
    AskCloseView,
    AskHistory,
    AskMark,
    AskMoment,
    AskRollback,
    AskView,
    FoundMoment,
    JournalGroup,
    JournalMark,
    Marked,
    Moment,
    OpenedView,
    PastSeen,
    VolumeHistory,
    VolumeViews,
)
from nuage.trust.copies import GROUP, TrustCopies
from nuage.trust.files import write_atomically

# Its allocator takes memory before the daemon can refuse huge pages, and fills little of theirs.
ALLOCATOR: Final = {"MIMALLOC_ALLOW_THP": "0"}
START_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.02
ASK_TIMEOUT_S: Final = 10.0  # a daemon answers at once; opening a head waits for its copies
HEAD_OPEN: Final = "open"
HEAD_FENCED: Final = "fenced"
COPY_LIVE: Final = "live"
COPY_FAILED: Final = "lost"  # it answers that it cannot take the log
RESTART_BITS: Final = 16  # the journal's epoch counts a head's restarts below ours
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
log = structlog.get_logger("storaged")

RECEIPTS_FILE: Final = "receipts.jsonl"
DISKS_SUFFIX: Final = ".disks"  # with which disks a daemon was started
LOG_BYTES_MAX: Final = 4 * 1024 * 1024  # twice, for the part before; it may lie in memory

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoragedOptions:
    """How this node runs its daemons. The daemon reads its trust from `tls_…`, also anew.

    What a daemon keeps for itself lies on the first of the `disks`; what compaction writes goes
    to `base`, if there is one, and went to `old_bases`; `lost_bases` were on disks that were
    declared lost since. `all_disks`: none else is away. `clear_from` is the file that says from
    where iSCSI is taken in clear (`ionode.nearby`). `portal_group` is the tag of this node's
    iSCSI portals. With `own_user` each daemon runs as a user of its own, which takes root.
    """

    binary: str
    disks: tuple[DiskPlace, ...]
    run_dir: Path
    address: str
    tls_cert: Path
    tls_key: Path
    tls_ca: Path
    tls_crl: Path
    clear_from: Path
    base: BasePlace | None = None
    old_bases: tuple[BasePlace, ...] = ()
    lost_bases: tuple[Path, ...] = ()
    all_disks: bool = False
    portal_group: int = 1
    own_user: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedChain:
    """A copy's chain that holds: up to which write, its value there, in how many groups."""

    sequence: int
    chain: str
    group_count: int


class StoragedDaemon:
    """One process and its control socket (`ionode.port.StorageDaemon`)."""

    def __init__(self, options: StoragedOptions, iaas_id: IaasId, ports: DaemonPorts) -> None:
        self._options = options
        self._iaas_id = iaas_id
        self._ports = ports
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._next_id = 1
        self._trust = self._copies_of_trust() if options.own_user else None

    def _copies_of_trust(self) -> TrustCopies:
        options = self._options
        files = (options.tls_key, options.tls_cert, options.tls_ca, options.tls_crl)
        directory = options.run_dir / f"{self._iaas_id}.trust"
        return TrustCopies(directory, files, user_of(self._ports))

    @property
    def replica_address(self) -> str:
        """Return where heads on other nodes find this daemon's copies."""
        return f"{self._options.address}:{self._ports.replica}"

    @property
    def portal(self) -> str:
        """Return where initiators log in."""
        return f"{self._options.address}:{self._ports.iscsi}"

    @property
    def _socket_path(self) -> Path:
        return self._options.run_dir / f"{self._iaas_id}.sock"

    @property
    def _log_path(self) -> Path:
        return self._options.run_dir / f"{self._iaas_id}.log"

    async def start(self) -> None:
        """Find the running process or start one.

        Raises:
            Unavailable: it does not come up; its log says why.
        """
        if await self._connect():
            return
        for directory in self._directories():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        open_to_daemons(self._options.run_dir)
        if self._trust is not None:
            self._trust = await asyncio.to_thread(self._give_to_user, self._trust)
        self._socket_path.unlink(missing_ok=True)
        self.note_disks()
        with self._log_path.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | ALLOCATOR,
                start_new_session=True,
            )
        deadline_s = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while not await self._connect():
            if process.returncode is not None or asyncio.get_running_loop().time() > deadline_s:
                raise Unavailable(
                    f"the storage daemon of {self._iaas_id} does not come up",
                    hint=f"its log is {self._log_path}",
                )
            await asyncio.sleep(POLL_S)

    def _give_to_user(self, trust: TrustCopies) -> TrustCopies | None:
        """Let the daemon's user have what it needs; None: it cannot get there, and root must do."""
        for path in (trust.directory, *self._directories()):
            if (closed := closed_to_others(path)) is not None:
                log.warning(
                    "daemon runs as root", iaas=self._iaas_id,
                    why=f"its user may not enter {closed}", help=f"chmod o+x {closed}",
                )  # fmt: skip
                return None
        trust.refresh()
        give(self._directories(), trust.user)
        return trust

    def _directories(self) -> list[Path]:
        options = self._options
        bases = [] if options.base is None else [options.base.path]
        roots = [disk.path for disk in options.disks] + bases
        return [root / self._iaas_id for root in roots]

    def _base(self, place: BasePlace) -> str:
        return f"{self._daemons_name(place.disk)}={place.path / self._iaas_id}"

    def _command(self) -> list[str]:
        options = self._options
        first, *others = options.disks
        more: list[str] = []
        for disk in others:
            more += ["--disk", f"{disk.name}={disk.path / self._iaas_id}"]
        if options.base is not None:
            more += ["--base", self._base(options.base)]
        for place in options.old_bases:
            more += ["--old-base", self._base(place)]
        for lost in options.lost_bases:
            more += ["--lost-base", str(lost / self._iaas_id)]
        trust = self._trust
        user = [] if trust is None else ["--uid", str(trust.user), "--gid", str(GROUP)]

        def seen(file: Path) -> str:
            return str(file if trust is None else trust.path(file))

        return [
            options.binary,
            "--dir", str(first.path / self._iaas_id),
            *more,
            *(["--all-disks"] if options.all_disks else []),
            "--control", str(self._socket_path),
            "--iscsi", self.portal,
            "--advertise", self.portal,
            "--portal-group", str(options.portal_group),
            "--replica", self.replica_address,
            "--clear-from", str(options.clear_from),
            "--tls-cert", seen(options.tls_cert),
            "--tls-key", seen(options.tls_key),
            "--tls-ca", seen(options.tls_ca),
            "--tls-crl", seen(options.tls_crl),
            *user,
            "--log-format", "json",
        ]  # fmt: skip

    async def _connect(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(
                str(self._socket_path), limit=ANSWER_BYTES_MAX
            )
        except OSError:
            return False
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader, writer))
        return True

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Give each answer to whoever asked; requests do not wait for one another."""
        try:
            while line := await reader.readline():
                document: Json = json.loads(line)
                waiting = self._waiting.get(int(str(document.get("id", 0))))
                if waiting is not None and not waiting.done():
                    waiting.set_result(document)
        except (OSError, ValueError) as error:
            log.warning("control connection broke off", iaas=self._iaas_id, error=str(error))
        finally:
            writer.close()
            if self._writer is writer:
                self._writer = None
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(
                        Unavailable(f"the storage daemon of {self._iaas_id} ended")
                    )

    async def find(self) -> bool:
        """Tell whether the process runs already; it is asked from then on."""
        return await self._connect()

    async def retire(self) -> None:
        """End the process, and remove its folders, which hold no copy, and its ports.

        Raises:
            Conflict: it keeps a copy.
            TimedOut: it does not end.
        """
        if (await self.seen()).volumes:
            raise Conflict(f"the storage daemon of {self._iaas_id} keeps copies")
        await self.stop()
        (self._directories()[0] / RECEIPTS_FILE).unlink(missing_ok=True)
        for directory in self._directories():
            for empty in (*directory.glob("*/"), directory):
                with contextlib.suppress(OSError):  # something lies there: it stays
                    empty.rmdir()
        if self._trust is not None:
            shutil.rmtree(self._trust.directory, ignore_errors=True)
        for kept in self._options.run_dir.glob(f"{self._iaas_id}.*"):
            kept.unlink()

    async def stop(self) -> None:
        """End the process in good order; what it keeps stays.

        Raises:
            TimedOut: it does not end.
        """
        if self._writer is None or self._reading is None:
            return
        os.kill(_peer_pid(self._writer), signal.SIGTERM)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await asyncio.shield(self._reading)
        except TimeoutError:
            raise TimedOut("the end of the storage daemon", after_s=ASK_TIMEOUT_S) from None

    @property
    def _disks_path(self) -> Path:
        return self._options.run_dir / f"{self._iaas_id}{DISKS_SUFFIX}"

    def knows_its_disks(self) -> bool:
        """Tell whether the process was started with all disks that it should have now."""
        try:
            return self._disks() <= set(self._disks_path.read_text().splitlines())
        except FileNotFoundError:
            return True  # an older agent's: nobody knows

    def note_disks(self) -> None:
        """Keep which disks the process is started with."""
        write_atomically(self._disks_path, "\n".join(sorted(self._disks())).encode())

    def _disks(self) -> set[str]:
        options = self._options
        disks = {f"disk {disk.name} {disk.serial}" for disk in options.disks}
        base = set() if options.base is None else {f"base {options.base.disk}"}
        return disks | base | {f"lost {path}" for path in options.lost_bases}

    async def disconnect(self) -> None:
        """Let go of the daemon; it goes on serving."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None

    async def _ask(self, op: str, timeout_s: float = ASK_TIMEOUT_S, **fields: object) -> Json:
        if self._writer is None and not await self._connect():
            raise Unavailable(f"the storage daemon of {self._iaas_id} does not answer")
        assert self._writer is not None
        number, self._next_id = self._next_id, self._next_id + 1
        waiting: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            self._writer.write(json.dumps({"id": number, "op": op, **fields}).encode() + b"\n")
            async with asyncio.timeout(timeout_s):
                document = await waiting
        except TimeoutError:
            raise TimedOut(f"{op} at the storage daemon", after_s=timeout_s) from None
        finally:
            del self._waiting[number]
        if "error" in document:
            raise _error(document["error"])
        result = document.get("ok", {})
        return result if isinstance(result, dict) else {"items": result}

    async def seen(self) -> DaemonSeen:
        """Return what the daemon keeps and serves."""
        if self._trust is not None:
            self._trust.refresh()
        bound_log(self._log_path)
        answer = msgspec.convert(await self._ask("list"), ListAnswer, strict=False)
        return DaemonSeen(
            volumes=tuple(v.seen(first_disk=self._options.disks[0].name) for v in answer.volumes),
            heads=tuple(
                HeadSeen(
                    volume_id=VolumeId(v.volume),
                    epoch=v.head.epoch,
                    portal=self.portal,
                    sequence=v.head.sequence,
                    mapped_bytes=v.head.mapped_bytes,
                    is_ready=v.head.state == HEAD_OPEN,
                    is_fenced=v.head.state == HEAD_FENCED,
                    is_lost=v.head.lost,
                    answering=Answering(v.head.answers),
                    copies=tuple(
                        CopySeen(
                            node_id=NodeId(copy.node),
                            is_connected=copy.connected,
                            is_live=copy.state == COPY_LIVE,
                            is_failed=copy.state == COPY_FAILED,
                            durable_sequence=copy.durable_sequence,
                            lag=copy.lag,
                            is_let_go=copy.let_go,
                            silent_since_s=copy.silent_since_s,
                            rebuild=copy.rebuild,
                        )
                        for copy in v.head.copies
                    ),
                    past=PastSeen(
                        kept_from_s=v.head.horizon_time_us / 1e6,
                        dropped_early_s=v.head.dropped_early_us / 1e6,
                        held_by_views_bytes=v.head.held_by_views_bytes,
                        is_full=v.head.history_full,
                    ),
                    failure=v.head.failure or "",
                    key_id=v.head.key_id or "",
                )
                for v in answer.volumes
                if v.head is not None
            ),
            key_id=answer.key_id or "",
            version=answer.version,
        )

    async def create(self, wish: ReplicaWish, disk: str = "") -> None:
        """Make an empty copy on a disk ("": the first)."""
        await self._ask(
            "create_replica",
            volume=wish.volume_id,
            size_bytes=wish.size_bytes,
            logical_block_bytes=wish.sector_bytes,
            uuid=uuid_of(wish.volume_id),
            retention=retention_of(wish.journal),
            encrypted=wish.encrypted,
            disk=self._daemons_name(disk),
            joins=wish.joins,
            epoch=wish.epoch,
        )

    async def clone(self, wish: ReplicaWish) -> None:
        """Make a copy that starts from another volume's past."""
        assert wish.origin is not None, "plan() clones only what has an origin"
        await self._ask(
            "clone",
            volume=wish.origin.volume_id,
            moment=moment_of(wish.origin.moment),
            clone=wish.volume_id,
            uuid=uuid_of(wish.volume_id),
            retention=retention_of(wish.journal),
            joins=wish.joins,
            epoch=wish.epoch,
        )

    async def set_key(self, *keys: str) -> None:
        """Give the daemon the data keys of its IaaS, the newest first."""
        await self._ask("set_key", key=keys[0], earlier=list(keys[1:]))

    async def forget_key(self) -> None:
        """Have the daemon wipe the data key."""
        await self._ask("forget_key")

    async def changed(self, view: str, since: int | None, after: int) -> ChangedRuns:
        """Return where a view differs from an earlier write's state."""
        return msgspec.convert(
            await self._ask("changed", view=view, since=since, after=after), ChangedRuns
        )

    async def read_view(self, view: str, offset: int, length: int) -> bytes:
        """Return a piece of a view."""
        answer = await self._ask("read_view", view=view, offset=offset, length=length)
        return bytes.fromhex(str(answer["data"]))

    async def write(self, volume_id: VolumeId, offset: int, data: bytes) -> None:
        """Write a piece through the head here."""
        await self._ask("write", volume=volume_id, offset=offset, data=data.hex())

    async def flush(self, volume_id: VolumeId) -> None:
        """Return when all that was written is durable."""
        await self._ask("flush", volume=volume_id)

    async def verify_chain(self, volume_id: VolumeId) -> VerifiedChain:
        """Check the chain of the copy here, and the digest of each payload; no key is needed.

        Raises:
            Unavailable: it does not hold; the message says where.
        """
        groups, after = 0, 0
        while True:
            answer = await self._ask("verify_chain", volume=volume_id, after=after)
            part = msgspec.convert(answer, ChainAnswer)
            groups += part.groups
            after = part.last_sequence
            if part.complete:
                return VerifiedChain(sequence=after, chain=part.chain, group_count=groups)

    async def scrub(self, volume_id: VolumeId) -> ScrubSeen:
        """Begin to read all of a copy kept here, to find damage."""
        return scrub_seen(await self._ask("scrub", volume=volume_id))

    async def scrubbed(self, volume_id: VolumeId) -> ScrubSeen:
        """Return how far a copy kept here is with that, and what was found."""
        told = (await self._ask("status", volume=volume_id)).get("scrub")
        return ScrubSeen() if told is None else scrub_seen(told)

    async def find_moment(self, ask: AskMoment) -> FoundMoment:
        """Return which write a moment is."""
        moment = ask.moment
        if moment is None:  # what is acknowledged may still be on its way to the index
            await self.flush(ask.volume_id)
            history = await self._ask("history", volume=ask.volume_id, count=1)
            moment = Moment(sequence=int(str(history["sequence"])))
        answer = await self._ask("resolve", volume=ask.volume_id, moment=moment_of(moment))
        return msgspec.convert(answer, FoundMoment)

    async def open_view(self, ask: AskView) -> OpenedView:
        """Show a past moment, read-only, to one initiator."""
        answer = await self._ask(
            "at",
            volume=ask.volume_id,
            moment=moment_of(ask.moment),
            iqn=ask.iqn,
            chap=[{"name": ask.user, "secret": ask.secret}],
            seconds=ask.seconds,
        )
        return msgspec.convert({**answer, "portal": self.portal}, OpenedView)

    async def views_of(self, volume_id: VolumeId) -> VolumeViews:
        """Return which views of a volume are open here."""
        return msgspec.convert(await self._ask("status", volume=volume_id), ViewsAnswer).told()

    async def close_view(self, ask: AskCloseView) -> None:
        """End a view."""
        await self._ask("close_at", view=ask.view)

    async def history(self, ask: AskHistory) -> VolumeHistory:
        """Return what a head's journal keeps."""
        answer = await self._ask(
            "history", volume=ask.volume_id, after=ask.after_sequence, count=ask.count
        )
        told = msgspec.convert(answer, HistoryAnswer)
        return VolumeHistory(
            horizon_sequence=told.horizon_sequence,
            sequence=told.sequence,
            history_bytes=told.history_bytes,
            kept_from_s=told.horizon_time_us / 1e6,
            dropped_early_s=told.dropped_early_us / 1e6,
            marks=tuple(
                JournalMark(
                    sequence=mark.sequence,
                    time_s=mark.time_us / 1e6,
                    name=mark.name,
                    kind=mark.kind,
                    mark_id=mark.id,
                )
                for mark in told.marks
            ),
            groups=tuple(
                JournalGroup(
                    first_sequence=group.first_sequence,
                    last_sequence=group.last_sequence,
                    time_s=group.time_us / 1e6,
                    epoch=group.epoch >> RESTART_BITS,
                    segment=group.segment,
                    blocks=group.blocks,
                )
                for group in told.groups
            ),
        )

    async def mark(self, ask: AskMark) -> Marked:
        """Write one mark into several journals at one instant."""
        answer = await self._ask("mark", volumes=list(ask.volume_ids), name=ask.name)
        return msgspec.convert(answer, Marked)

    async def rollback(self, ask: AskRollback) -> None:
        """Take a volume back to a moment."""
        await self._ask(
            "rollback", volume=ask.volume_id, moment=moment_of(ask.moment), force=ask.force
        )

    async def resize(self, volume_id: VolumeId, size_bytes: int) -> None:
        """Make a copy larger."""
        await self._ask("resize", volume=volume_id, size_bytes=size_bytes)

    async def set_journal(self, volume_id: VolumeId, journal: JournalRule) -> None:
        """Have the copy here keep so much of its past from now on."""
        await self._ask("set_retention", volume=volume_id, retention=retention_of(journal))

    async def open_head(self, wish: HeadWish) -> None:
        """Order the volume's writes under the wish's epoch."""
        await self._ask(
            "open_head",
            volume=wish.volume_id,
            epoch=wish.epoch,
            policy=wish.policy.value,
            replicas=[
                {"name": peer.node_id, "site": peer.site_id, "address": peer.address}
                for peer in wish.replicas
            ],
            **({"position": wish.position} if wish.replicas else {}),
            iqn=wish.iqn,
            chap=chap_of(wish.chap),
            chap_own=chap_own_of(wish),
            initiators=list(wish.initiators),
            ack="memory",
            limits=limits_of(wish.limits),
            lag_bound=lag_bound_of(wish),
            accepts_loss=wish.accepts_loss,
            **({} if wish.former is None else {"former": msgspec.to_builtins(wish.former)}),
        )

    async def set_share(self, disk: str, limits: Limits) -> Used:
        """Hold all heads here to a share of a disk; return what was taken of it until now."""
        answer = await self._ask(
            "set_share", disk=self._daemons_name(disk), limits=limits_of(limits)
        )
        return msgspec.convert(answer, Used)

    def _daemons_name(self, disk: str) -> str:
        """Return how the daemon calls a disk: that of its own directory has no name there."""
        return "" if disk == self._options.disks[0].name else disk

    async def set_terms(self, wish: HeadWish) -> None:
        """Hold a head here to the wish's limits, and its copies to the wish's RPO."""
        await self._ask("set_limits", volume=wish.volume_id, limits=limits_of(wish.limits))
        await self._ask("set_lag_bound", volume=wish.volume_id, lag_bound=lag_bound_of(wish))

    async def set_initiators(self, wish: HeadWish) -> None:
        """Let exactly the wish's initiators in, and tell them of their paths."""
        await self._ask(
            "set_chap", volume=wish.volume_id, chap=chap_of(wish.chap), chap_own=chap_own_of(wish),
            initiators=list(wish.initiators),
        )  # fmt: skip
        if wish.groups:
            own, groups = port_groups_of(wish.groups)
            await self._ask("set_port_groups", volume=wish.volume_id, own=own, groups=groups)

    async def stand_by(self, wish: PathWish) -> None:
        """Show a volume to a host while its head is elsewhere."""
        own, groups = port_groups_of(wish.groups)
        await self._ask(
            "stand_by", volume=wish.volume_id, iqn=wish.iqn, chap=chap_of(wish.chap),
            chap_own=chap_own_of(wish), initiators=list(wish.initiators), own=own, groups=groups,
        )  # fmt: skip

    async def end_standby(self, volume_id: VolumeId) -> None:
        """Show a volume no more to a host."""
        await self._ask("end_standby", volume=volume_id)

    async def fill(self, volume_id: VolumeId, image: Path) -> None:
        """Copy a raw image into a fresh volume; returns when all of it is durable."""
        # On a connection of its own: it takes as long as the image is large.
        reader, writer = await asyncio.open_unix_connection(
            str(self._socket_path), limit=ANSWER_BYTES_MAX
        )
        try:
            ask = {"id": 1, "op": "fill_from_image", "volume": volume_id, "path": str(image)}
            writer.write(json.dumps(ask).encode() + b"\n")
            while line := await reader.readline():
                document: Json = json.loads(line)
                if "error" in document:
                    raise _error(document["error"])
                if "ok" in document:
                    return
        finally:
            writer.close()
        raise Unavailable("the storage daemon ended while it copied an image")

    async def close_head(self, volume_id: VolumeId) -> None:
        """Stop ordering a volume's writes."""
        await self._ask("close_head", volume=volume_id)

    async def erase(self, volume_id: VolumeId) -> None:
        """Delete a copy for good."""
        await self._ask("delete_volume", volume=volume_id)

    async def past_receipts(self) -> tuple[DaemonReceipt, ...]:
        """Return the receipts it keeps, oldest first: of what lies here, and not taken in yet."""
        receipts: list[DaemonReceipt] = []
        async for receipt in self._receipts(0, follow=False):
            receipts.append(receipt)  # noqa: PERF401 - an async generator is no sync iterable
        return tuple(receipts)

    async def receipts_taken(self, number: int) -> None:
        """Tell that the site has all receipts up to `number`: those of what is gone may go."""
        with contextlib.suppress(InvalidRequest):  # a daemon of before does not know it
            await self._ask("receipts_taken", number=number)

    def follow_receipts(self, after: int) -> AsyncIterator[DaemonReceipt]:
        """Yield the receipts numbered above `after`, and each new one as it is noted."""
        return self._receipts(after, follow=True)

    async def _receipts(self, after: int, *, follow: bool) -> AsyncIterator[DaemonReceipt]:
        # On a connection of its own: what comes unasked is not an answer to anybody.
        try:
            reader, writer = await asyncio.open_unix_connection(
                str(self._socket_path), limit=ANSWER_BYTES_MAX
            )
        except OSError:
            raise Unavailable(f"the storage daemon of {self._iaas_id} does not answer") from None
        try:
            ask = {"id": 1, "op": "receipts", "after": after}
            writer.write(json.dumps(ask).encode() + b"\n")
            while line := await reader.readline():
                document: Json = json.loads(line)
                if "error" in document:
                    raise _error(document["error"])
                if "receipt" in document:
                    yield _receipt(msgspec.convert(document["receipt"], ReceiptAnswer))
                elif not follow:
                    return
        finally:
            writer.close()
        raise Unavailable(f"the storage daemon of {self._iaas_id} ended")


def bound_log(path: Path) -> None:
    """Begin a log anew once it is long, and keep what was in it beside it.

    Its writer has it open to append and goes on: a line that it writes in between is lost.
    """
    with contextlib.suppress(OSError):  # it is not there, or not for long
        if path.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)


def _receipt(noted: ReceiptAnswer) -> DaemonReceipt:
    return DaemonReceipt(
        number=noted.number,
        act=noted.act,
        volume_id=VolumeId(noted.volume),
        segment=noted.segment,
        first_sequence=noted.first_sequence,
        last_sequence=noted.last_sequence,
        chain=noted.chain,
        time_ms=noted.time_ns // 1_000_000,
        disk=noted.disk,
    )


def _error(document: object) -> NuageError:
    fields = document if isinstance(document, dict) else {}
    code, message = str(fields.get("code", "")), str(fields.get("message", document))
    match code:
        case "invalid_request":
            return InvalidRequest(message)
        case "not_found":
            missing = NotFound("volume", "")
            missing.message = message  # whole as the daemon says it
            return missing
        case "stale_epoch" | "fenced":
            return StaleEpoch(message, epoch=int(str(fields.get("epoch", 0))))
        case "locked":
            return Locked(message)
        case "lost":
            return Lost(message)
        case "conflict":
            return Conflict(message)
        case _:
            return Unavailable(message)


def _peer_pid(writer: asyncio.StreamWriter) -> int:
    """Return who listens at the other end of a Unix socket (``SO_PEERCRED``, unix(7))."""
    shape = struct.Struct("3i")
    other: socket.socket = writer.get_extra_info("socket")
    credentials = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, shape.size)
    pid: int = shape.unpack(credentials)[0]
    return pid
