"""One guest under QEMU: its folder, its process, its monitor.

The folder holds ``guest.json`` (what was started, with the process's mark and no secret), the
monitor's and the console's sockets, the console's log and QEMU's own complaints. From it alone
a restarted agent finds the guest again.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from nuage.errors import UNREADABLE, CorruptData, InvalidRequest, NuageError, Unavailable
from nuage.ids import IaasId, VmId, VolumeId
from nuage.model.vm import VmShape
from nuage.vnode import process
from nuage.vnode.arguments import disk_node, guest_uuid
from nuage.vnode.console import ConsoleLog
from nuage.vnode.doors import Door
from nuage.vnode.hypervisor import (
    Disk,
    FileDisk,
    GuestSeen,
    IscsiDisk,
    MigrationLimits,
    MigrationSeen,
    MigrationStatus,
    NbdDisk,
    RunState,
)
from nuage.vnode.qmp import Event, Json, QmpClient

ADOPT_TIMEOUT_S: Final = 3.0  # a living QEMU greets in ms; a held monitor never does
COMPLAINT_CHARS_MAX: Final = 400
LOOK_TIMEOUT_S: Final = 1.0  # a living QEMU answers in ms; one that waits for a disk, after it
LAST_STATE_TIMEOUT_S: Final = 0.2  # it takes ten times less

_RUN_STATES: Final = {
    "running": RunState.RUNNING,
    "paused": RunState.PAUSED,
    "prelaunch": RunState.PAUSED,
    "io-error": RunState.IO_ERROR,
    "inmigrate": RunState.INCOMING,
    "finish-migrate": RunState.SWITCHING,
    "postmigrate": RunState.HANDED_OVER,
    "shutdown": RunState.SHUT_DOWN,
    "suspended": RunState.RUNNING,
}
ERROR_QUIET_S: Final = 5.0  # a guest may read a lost block as often as it likes
DOWNTIME_FIRST_MS: Final = 15  # an idle guest's last state takes as long
_MIGRATION_STATES: Final = {
    "setup": MigrationStatus.ACTIVE,
    "active": MigrationStatus.ACTIVE,
    "wait-unplug": MigrationStatus.ACTIVE,
    "cancelling": MigrationStatus.ACTIVE,
    "pre-switchover": MigrationStatus.SWITCHING,
    "device": MigrationStatus.DEVICE,
    "completed": MigrationStatus.COMPLETED,
    "failed": MigrationStatus.FAILED,
    "cancelled": MigrationStatus.CANCELLED,
}


_UNDER_WAY: Final = frozenset(
    {MigrationStatus.ACTIVE, MigrationStatus.SWITCHING, MigrationStatus.DEVICE}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDisk:
    """A disk as written to guest.json: which volume, reached how; secrets left out."""

    iscsi: IscsiDisk | None = None
    nbd: NbdDisk | None = None
    file: FileDisk | None = None

    def disk(self) -> Disk | None:
        """Return the one that is set."""
        return self.iscsi or self.nbd or self.file


def stored(disk: Disk | None) -> StoredDisk:
    """Return `disk` for guest.json, without its secret."""
    match disk:
        case None:
            return StoredDisk()
        case IscsiDisk():
            return StoredDisk(iscsi=replace(disk, chap_secret=""))
        case NbdDisk():
            return StoredDisk(nbd=disk)
        case FileDisk():
            return StoredDisk(file=disk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repointing:
    """Tries to replace a slot's way since the last that succeeded.

    Each takes new names in QEMU. By `ways` lead those that may have got through: one that is under
    way, and those to which QEMU gave no answer.
    """

    tried: int = 0
    ways: tuple[StoredDisk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRecord:
    """What guest.json keeps. `generations` count how often a slot's way was replaced.

    `repointings` are by slot, each written before it begins: an agent that is restarted in one must
    not take the way before it for the one that the guest uses.
    """

    vm_id: VmId
    iaas_id: IaasId
    shape: VmShape
    mark: process.ProcessMark | None
    disks: tuple[StoredDisk, ...]
    generations: tuple[int, ...]
    repointings: dict[int, Repointing] = field(default_factory=dict)
    incoming_address: str = ""
    door: Door | None = None  # that only its source passes, while it waits
    ended: bool = False  # asked to end, or switched itself off; else a missing process crashed
    console_base_bytes: int = 0
    user: int = 0  # that its QEMU runs as; 0: root


Look: TypeAlias = tuple[RunState, str, MigrationSeen]  # the failure is "" where there is none


@dataclass(slots=True)
class Guest:
    """A guest this node has. `client` is None while its monitor is not connected."""

    folder: Path
    record: GuestRecord
    changed: Callable[[VmId], None]
    client: QmpClient | None = None
    console: ConsoleLog = field(init=False)
    launching: bool = False  # QEMU was started and has not greeted: nothing can be asked yet
    link: asyncio.Lock = field(default_factory=asyncio.Lock)  # a monitor serves one client
    failure: str = ""
    last_migration: MigrationSeen = field(default_factory=MigrationSeen)
    is_sent: bool = True  # it is, or may be, on its way to another node: a restarted agent asks
    sent: asyncio.Event = field(default_factory=asyncio.Event)  # the way has ended, well or not
    unplugged: Callable[[str], None] = field(default=lambda _device: None)
    leaves_soon: Callable[[VmId], None] = field(default=lambda _vm_id: None)
    stands_still: Callable[[VmId, float], None] = field(default=lambda _vm_id, _at_s: None)
    downtime_ms_max: int = MigrationLimits().downtime_ms_max  # of the move that it is in
    is_nearly_sent: bool = False  # what is left of its memory is what it has just written
    has_leave: bool = False  # it goes without another word, once all but its last state is sent
    switches: bool = False  # that was said: nothing takes it back
    is_quiet: bool = False  # it stands still, and goes: QEMU is asked nothing meanwhile
    stopped_at: VolumeId | None = None
    unreadable: dict[VolumeId, float] = field(default_factory=dict)
    _looking: asyncio.Task[Look] | None = None
    _seen_last: Look = (RunState.PAUSED, "QEMU does not answer", MigrationSeen())

    def __post_init__(self) -> None:
        log = self.folder / "console.log"
        self.console = ConsoleLog(log, base_bytes=self.record.console_base_bytes)

    @classmethod
    def load(cls, folder: Path, changed: Callable[[VmId], None]) -> "Guest":
        """Read a guest's folder.

        Raises:
            CorruptData: guest.json does not parse, or says what no guest can be.
        """
        path = folder / "guest.json"
        try:
            record = msgspec.json.decode(path.read_bytes(), type=GuestRecord)
        except (OSError, InvalidRequest, *UNREADABLE) as error:
            raise CorruptData(f"{path} does not parse: {error}", where=str(path)) from error
        return cls(folder, record, changed)

    def save(self, record: GuestRecord) -> None:
        """Keep `record` on disk, then in memory."""
        path = self.folder / "guest.json"
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self.record = record

    @property
    def alive(self) -> bool:
        """Tell whether the guest's process runs."""
        return self.record.mark is not None and process.is_alive(self.record.mark)

    async def connect(self, timeout_s: float) -> QmpClient:
        """Connect the monitor and make sure that it is this guest's.

        Raises:
            Unavailable: no QEMU answers, or another one does.
        """
        client = QmpClient(self._take_event)
        await client.connect(self.folder / "qmp.sock", timeout_s=timeout_s)
        try:
            match await client.execute("query-uuid"):
                case {"UUID": str(found)} if found == guest_uuid(self.record.vm_id):
                    self.client = client
                    # What was said on another connection may not have been heard.
                    self.has_leave = self.switches = self.is_quiet = False
                case other:
                    raise Unavailable(f"the monitor in {self.folder} is another guest's: {other!r}")
        except BaseException:
            await client.close()
            raise
        return client

    def _take_event(self, event: Event) -> None:
        if event.name == "MIGRATION":
            self._take_migration(_MIGRATION_STATES.get(str(event.data.get("status"))))
        elif event.name == "MIGRATION_PASS" and _number(event.data.get("pass")) > 1:
            if not self.is_nearly_sent:
                self.is_nearly_sent = True
                self.leaves_soon(self.record.vm_id)
            self._allow(downtime_ms(int(_number(event.data["pass"])), self.downtime_ms_max))
        elif event.name == "STOP" and self.is_nearly_sent:
            self.is_quiet = self.has_leave
            self.stands_still(self.record.vm_id, event.at_s)
        elif event.name == "BLOCK_IO_ERROR" and not self._take_disk_error(event):
            return
        elif event.name == "DEVICE_DELETED" and isinstance(device := event.data.get("device"), str):
            self.unplugged(device)
        if not self.is_quiet:
            self.changed(self.record.vm_id)

    def _take_disk_error(self, event: Event) -> bool:
        """Note at which volume a guest stopped, or of which it was told; False: it is no news."""
        disks = [entry.disk() for entry in self.record.disks]
        names = {disk_node(slot): disk for slot, disk in enumerate(disks)}
        disk = names.get(str(event.data.get("node-name")))
        if disk is None:
            return False
        if event.data.get("action") == "stop":
            self.stopped_at = disk.volume_id
            return True
        told_s = self.unreadable.get(disk.volume_id, 0.0)
        if told_s <= event.at_s < told_s + ERROR_QUIET_S:
            return False
        self.unreadable[disk.volume_id] = event.at_s
        return True

    def _allow(self, downtime_ms: int) -> None:
        """Let QEMU go over to the last state once what is left takes so long."""
        if self.client is not None and downtime_ms > DOWNTIME_FIRST_MS:
            told = self.client.begin("migrate-set-parameters", {"downtime-limit": downtime_ms})
            told.add_done_callback(_nobody_waits)

    def _take_migration(self, status: MigrationStatus | None) -> None:
        self.is_sent = True
        if status is MigrationStatus.SWITCHING and self.has_leave:
            self.go()
        elif status not in _UNDER_WAY:
            self.is_nearly_sent = self.is_quiet = False
            self.sent.set()

    def begin_to_send(self, downtime_ms_max: int) -> None:
        """Forget what was of an earlier attempt."""
        self.downtime_ms_max = downtime_ms_max
        self.last_migration = MigrationSeen()
        self.has_leave = self.switches = self.is_quiet = False
        self.sent.clear()

    def go(self) -> None:
        """Let QEMU send the last state; the guest stands still until it has."""
        if self.client is None or self.switches:
            return
        told = self.client.begin("migrate-continue", {"state": "pre-switchover"})
        told.add_done_callback(_nobody_waits)
        self.switches = self.is_quiet = True

    async def switched(self) -> None:
        """Wait until the last state is sent, while that may be soon."""
        try:
            async with asyncio.timeout(LAST_STATE_TIMEOUT_S):
                await self.sent.wait()
        except TimeoutError:
            self.is_quiet = False  # whoever waits longer is told as before

    async def execute(self, name: str, arguments: Mapping[str, Json] | None = None) -> Json:
        """Run a monitor command, connecting again when the connection was lost."""
        return await (await self._monitor()).execute(name, arguments)

    async def hand(self, name: str, descriptor: int) -> None:
        """Give QEMU a copy of an open descriptor, under a name."""
        await (await self._monitor()).execute("getfd", {"fdname": name}, descriptor=descriptor)

    async def _monitor(self) -> QmpClient:
        async with self.link:
            client = self.client
            if client is None or client.closed.is_set():
                if self.launching or not self.alive:
                    raise Unavailable(f"{self.record.vm_id} does not run", hint="start it first")
                client = await self.connect(ADOPT_TIMEOUT_S)
            return client

    def complaint(self) -> str:
        """Return what QEMU complained of last in its log."""
        path = self.folder / "qemu.log"
        return complaint_in(path.read_text(errors="replace")) if path.exists() else ""

    async def observe(self) -> GuestSeen:
        """Return what the guest does now, or did when its monitor spoke last; never raises."""
        state = RunState.SHUT_DOWN if self.record.ended else RunState.GONE
        migration = self.last_migration
        failure = self.failure
        if self.is_quiet:
            await self.switched()
        if self.alive:
            state, failure, migration = await self._look()
        if state is RunState.GONE:
            failure = failure or self.complaint() or "QEMU ended"
        disks = tuple(entry.disk() for entry in self.record.disks)
        return GuestSeen(
            vm_id=self.record.vm_id,
            state=state,
            shape=self.record.shape,
            volumes=tuple(VolumeId("") if d is None else d.volume_id for d in disks),
            disks=disks,
            incoming_address=self.record.incoming_address,
            migration=replace(migration, has_leave=self.has_leave),
            failure=failure,
            cpu_seconds=process.cpu_seconds(self.record.mark.pid) if self.record.mark else 0.0,
            console_bytes=self.console.total_bytes(),
            stopped_at=self.stopped_at,
            unreadable=tuple(self.unreadable.items()),
        )

    async def _look(self) -> Look:
        """Ask QEMU once at a time, and wait no longer for it than other guests can spare.

        Its monitor stands still while QEMU waits for a disk, for half a minute if need be.
        """
        if self._looking is None:
            self._looking = asyncio.create_task(self._ask())
        looking = self._looking
        await asyncio.wait({looking}, timeout=LOOK_TIMEOUT_S)
        if looking.done():
            if self._looking is looking:
                self._looking = None
            self._seen_last = looking.result()
        return self._seen_last

    async def _ask(self) -> Look:
        try:
            (state, failure), migration = await asyncio.gather(self._run_state(), self._migration())
        except NuageError as error:
            state = RunState.PAUSED if self.alive else RunState.GONE
            return state, error.message, self.last_migration
        return state, failure, migration

    async def _run_state(self) -> tuple[RunState, str]:
        match await self.execute("query-status"):
            case {"status": str(status)}:
                state = _RUN_STATES.get(status, RunState.PAUSED)
                known = status in _RUN_STATES
                return state, "" if known else f"QEMU says {status}"
            case other:
                raise Unavailable(f"QEMU answered {other!r} to query-status")

    async def _migration(self) -> MigrationSeen:
        if not self.is_sent:
            return self.last_migration
        answer = await self.execute("query-migrate")
        if isinstance(answer, Mapping) and not self.record.incoming_address:
            self.last_migration = parse_migration(answer)
        self.is_sent = self.last_migration.status in _UNDER_WAY
        return self.last_migration


def downtime_ms(pass_number: int, downtime_ms_max: int) -> int:
    """Return what a guest's standing still may take, which QEMU foretells by what is left to send.

    Little as long as another pass promises less; twice as much with each further one, for a guest
    that writes faster than that.
    """
    doublings = min(max(0, pass_number - 2), 16)
    return min(downtime_ms_max, DOWNTIME_FIRST_MS << doublings)


def _nobody_waits(told: asyncio.Future[Json]) -> None:
    """Take an answer's error off its future: what QEMU did is seen at the next look."""
    if not told.cancelled():
        told.exception()


def _number(value: Json) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def parse_migration(answer: Mapping[str, Json]) -> MigrationSeen:
    """Return what QEMU's answer to `query-migrate` tells.

    QEMU says "completed" a moment before it has the times: until they are there, the devices'
    state counts as on its way, so that no move is reported with a pause of 0 ms.
    """
    ram = answer.get("ram")
    counted = ram if isinstance(ram, Mapping) else {}
    transferred, remaining = _number(counted.get("transferred")), _number(counted.get("remaining"))
    seen = _MIGRATION_STATES.get(str(answer.get("status")), MigrationStatus.NONE)
    whole = transferred + remaining
    if seen is MigrationStatus.COMPLETED and not _number(answer.get("total-time")):
        seen = MigrationStatus.DEVICE
    failure = answer.get("error-desc")
    return MigrationSeen(
        status=seen,
        progress=1.0
        if seen is MigrationStatus.COMPLETED
        else transferred / whole
        if whole
        else 0.0,
        transferred_bytes=int(transferred),
        downtime_ms=_number(answer.get("downtime")),
        failure=failure if isinstance(failure, str) else "",
    )


def complaint_in(log: str) -> str:
    """Return the last complaint of QEMU's log, without the argument of ours that it repeats."""
    return log.strip().rpartition("}: ")[2][-COMPLAINT_CHARS_MAX:]
