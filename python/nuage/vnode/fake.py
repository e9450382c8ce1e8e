"""A hypervisor without guests: the port's meaning in memory, for tests and the simulation.

Acts take effect at once. What happens to guests from outside (a crash, a lost disk, a button
that is answered or not) is done to it by the test. Fakes that share a `FakeFabric` can
migrate to each other; the fabric can be cut at any phase.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from nuage.errors import Conflict, NotFound, Unavailable
from nuage.ids import VmId, VolumeId
from nuage.vnode.hypervisor import (
    Disk,
    FileDisk,
    GuestSeen,
    GuestSpec,
    MigrationLimits,
    MigrationSeen,
    MigrationStatus,
    RunState,
    require_secret,
)

_ENDED = frozenset({RunState.SHUT_DOWN, RunState.GONE})
MEMORY_SENT_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class FakeFabric:
    """The network between fakes: who listens where, and whether it carries anything."""

    listeners: dict[str, tuple["FakeHypervisor", VmId]] = field(default_factory=dict)
    is_cut: bool = False
    swallows: bool = False  # takes the last state for sent, and loses it
    port_last: int = 49151


@dataclass(slots=True)
class _FakeGuest:
    seen: GuestSeen
    console: bytes = b""
    target: str = ""
    secret: str = ""  # under which its memory comes
    has_leave: bool = False


class FakeHypervisor:
    """Guests that are records. `acts` lists every act asked of it, as (name, vm)."""

    def __init__(self, fabric: FakeFabric | None = None, *, answers_power: bool = True) -> None:
        self._fabric = fabric or FakeFabric()
        self._guests: dict[VmId, _FakeGuest] = {}
        self._listeners: list[Callable[[VmId], None]] = []
        self.answers_power = answers_power
        self.refuses_to_start = ""
        self.sends_slowly = False
        self.acts: list[tuple[str, VmId]] = []
        self.unreadable: tuple[VmId, ...] = ()

    @property
    def accelerator(self) -> str:
        """Return ``fake``."""
        return "fake"

    def subscribe(self, changed: Callable[[VmId], None]) -> None:
        """Call `changed` whenever a guest's state may have changed."""
        self._listeners.append(changed)

    def _set(self, vm_id: VmId, seen: GuestSeen) -> None:
        self._guests[vm_id].seen = seen
        for listener in self._listeners:
            listener(vm_id)

    def _require(self, vm_id: VmId) -> _FakeGuest:
        guest = self._guests.get(vm_id)
        if guest is None:
            raise NotFound("guest", vm_id)
        return guest

    def _require_alive(self, vm_id: VmId) -> _FakeGuest:
        guest = self._require(vm_id)
        if guest.seen.state in _ENDED:
            raise Unavailable(f"{vm_id} does not run", hint="start it first")
        return guest

    def _move(self, vm_id: VmId, state: RunState, failure: str = "") -> None:
        if state in _ENDED:  # nobody listens for its memory any more
            for address, listener in tuple(self._fabric.listeners.items()):
                if listener == (self, vm_id):
                    del self._fabric.listeners[address]
        self._set(vm_id, replace(self._guests[vm_id].seen, state=state, failure=failure))

    async def seen(self) -> tuple[GuestSeen, ...]:
        """Return every guest this node has, running or not, by id."""
        return tuple(
            replace(guest.seen, console_bytes=len(guest.console))
            for _, guest in sorted(self._guests.items())
        )

    async def start(self, spec: GuestSpec) -> None:
        """Start a guest; it prints one line on its console."""
        self.acts.append(("start", spec.vm_id))
        self._begin(spec, RunState.RUNNING)
        self._guests[spec.vm_id].console += f"nuage-guest {spec.name} ready\n".encode()

    def _begin(self, spec: GuestSpec, state: RunState, address: str = "") -> None:
        known = self._guests.get(spec.vm_id)
        if known is not None and known.seen.state not in _ENDED:
            raise Conflict(f"{spec.vm_id} runs already on this node")
        seen = GuestSeen(
            vm_id=spec.vm_id,
            state=state,
            shape=spec.shape,
            volumes=tuple(VolumeId("") if d is None else d.volume_id for d in spec.disks),
            disks=spec.disks,
            incoming_address=address,
        )
        self._guests[spec.vm_id] = _FakeGuest(seen, console=known.console if known else b"")
        if self.refuses_to_start:
            self._move(spec.vm_id, RunState.GONE, self.refuses_to_start)
            raise Unavailable(self.refuses_to_start)
        self._set(spec.vm_id, seen)

    async def start_incoming(
        self,
        spec: GuestSpec,
        listen_host: str,
        secret: str,
        *,
        source_host: str = "",  # noqa: ARG002 - nobody else knocks here
    ) -> None:
        """Start a guest that waits for its memory; `seen` tells the address."""
        self.acts.append(("start_incoming", spec.vm_id))
        require_secret(secret)
        self._fabric.port_last += 1
        address = f"{listen_host}:{self._fabric.port_last}"
        self._begin(spec, RunState.INCOMING, address)
        self._guests[spec.vm_id].secret = secret
        self._fabric.listeners[address] = (self, spec.vm_id)

    async def press_power(self, vm_id: VmId) -> None:
        """Press the power button: the guest switches itself off when `answers_power`."""
        self.acts.append(("press_power", vm_id))
        self._require_alive(vm_id)
        if self.answers_power:
            self._move(vm_id, RunState.SHUT_DOWN)

    async def kill(self, vm_id: VmId) -> None:
        """End the guest now."""
        self.acts.append(("kill", vm_id))
        self._require(vm_id)
        self._move(vm_id, RunState.SHUT_DOWN)

    async def forget(self, vm_id: VmId) -> None:
        """Remove what is left of a guest that is not running."""
        self.acts.append(("forget", vm_id))
        if self._require(vm_id).seen.state not in _ENDED:
            raise Conflict(f"{vm_id} still runs", hint="stop it first")
        del self._guests[vm_id]

    async def pause(self, vm_id: VmId) -> None:
        """Stop the guest's CPUs."""
        self.acts.append(("pause", vm_id))
        self._require_alive(vm_id)
        self._move(vm_id, RunState.PAUSED)

    async def resume(self, vm_id: VmId) -> None:
        """Let the CPUs go on."""
        self.acts.append(("resume", vm_id))
        self._require_alive(vm_id)
        self._move(vm_id, RunState.RUNNING)

    async def attach_disk(self, vm_id: VmId, slot: int, disk: Disk) -> None:
        """Plug a disk into a free slot of a running guest."""
        self.acts.append(("attach_disk", vm_id))
        disks = self._require_alive(vm_id).seen.disks
        if slot < len(disks) and disks[slot] is not None:
            raise Conflict(f"slot {slot} of {vm_id} is taken")
        self._set_slot(vm_id, slot, disk)

    async def detach_disk(self, vm_id: VmId, slot: int) -> None:
        """Unplug a disk."""
        self.acts.append(("detach_disk", vm_id))
        disks = self._require_alive(vm_id).seen.disks
        if slot >= len(disks) or disks[slot] is None:
            raise NotFound("disk in slot", str(slot))
        self._set_slot(vm_id, slot, None)

    async def repoint_disk(self, vm_id: VmId, slot: int, disk: Disk) -> None:
        """Reach the same volume by another way."""
        self.acts.append(("repoint_disk", vm_id))
        self._require_alive(vm_id)
        if isinstance(disk, FileDisk) and not Path(disk.path).exists():
            raise NotFound("file", disk.path)
        self._set_slot(vm_id, slot, disk)

    async def follow_disk(self, vm_id: VmId, _slot: int, _disk: Disk) -> None:
        """Note it: a repointing here waits for nothing."""
        self.acts.append(("follow_disk", vm_id))

    def _set_slot(self, vm_id: VmId, slot: int, disk: Disk | None) -> None:
        seen = self._guests[vm_id].seen
        width = max(len(seen.disks), slot + 1)
        disks = [*seen.disks, *(None for _ in range(width))][:width]
        disks[slot] = disk
        volumes = tuple(VolumeId("") if d is None else d.volume_id for d in disks)
        self._set(vm_id, replace(seen, disks=tuple(disks), volumes=volumes))

    async def set_balloon(self, vm_id: VmId, memory_mib: int) -> None:
        """Note what the guest shall make do with."""
        self.acts.append(("set_balloon", vm_id))
        seen = self._require_alive(vm_id).seen
        self._set(vm_id, replace(seen, balloon_mib=memory_mib))

    async def migrate(
        self,
        vm_id: VmId,
        address: str,
        limits: MigrationLimits,  # noqa: ARG002
        secret: str,
    ) -> None:
        """Send all memory and halt at SWITCHING; fail when nobody is reached.

        At once, or, with `sends_slowly`, once `all_sent` says so.
        """
        self.acts.append(("migrate", vm_id))
        require_secret(secret)
        guest = self._require_alive(vm_id)
        guest.has_leave = False
        if self._fabric.is_cut or address not in self._fabric.listeners:
            told = MigrationSeen(status=MigrationStatus.FAILED, failure="connection refused")
            self._set(vm_id, replace(guest.seen, migration=told))
            return
        there, there_vm = self._fabric.listeners[address]
        if there._guests[there_vm].secret != secret:
            told = MigrationSeen(status=MigrationStatus.FAILED, failure="TLS handshake failed")
            self._set(vm_id, replace(guest.seen, migration=told))
            return
        guest.target = address
        active = MigrationSeen(
            status=MigrationStatus.ACTIVE, progress=0.5, transferred_bytes=MEMORY_SENT_BYTES
        )
        self._set(vm_id, replace(guest.seen, migration=active))
        if not self.sends_slowly:
            self.all_sent(vm_id)

    def all_sent(self, vm_id: VmId) -> None:
        """Let all of a guest's memory be sent: it halts, or goes if it has leave."""
        guest = self._require(vm_id)
        if guest.seen.migration.status is not MigrationStatus.ACTIVE:
            return
        if self._fabric.is_cut or guest.target not in self._fabric.listeners:
            self.end_migration(vm_id, MigrationStatus.FAILED, "connection reset")
            return
        sent = replace(guest.seen.migration, status=MigrationStatus.SWITCHING, progress=0.99)
        self._set(vm_id, replace(guest.seen, state=RunState.SWITCHING, migration=sent))
        if guest.has_leave:
            self._hand_over(vm_id)

    def forget_leave(self, vm_id: VmId) -> None:
        """Be as an agent's new driver, which knows of no leave."""
        guest = self._require(vm_id)
        guest.has_leave = False
        told = replace(guest.seen.migration, has_leave=False)
        self._set(vm_id, replace(guest.seen, migration=told))

    async def migrate_continue(self, vm_id: VmId) -> None:
        """Let the guest go now, or once all its memory is sent."""
        self.acts.append(("migrate_continue", vm_id))
        guest = self._require_alive(vm_id)
        if guest.seen.migration.status not in {MigrationStatus.ACTIVE, MigrationStatus.SWITCHING}:
            raise Conflict(f"{vm_id} does not wait for leave to switch")
        guest.has_leave = True
        told = replace(guest.seen.migration, has_leave=True)
        self._set(vm_id, replace(guest.seen, migration=told))
        if guest.seen.state is RunState.SWITCHING:
            self._hand_over(vm_id)

    def _hand_over(self, vm_id: VmId) -> None:
        """Hand over: all state arrives, or, over a cut fabric, none does."""
        guest = self._guests[vm_id]
        target, target_vm = self._fabric.listeners.pop(guest.target, (self, VmId("")))
        if self._fabric.is_cut or not target_vm:
            self.end_migration(vm_id, MigrationStatus.FAILED, "connection reset")
            if target_vm:
                target.crash(target_vm, "the stream broke")
            return
        done = MigrationSeen(status=MigrationStatus.COMPLETED, progress=1.0, downtime_ms=20.0)
        self._set(vm_id, replace(guest.seen, state=RunState.HANDED_OVER, migration=done))
        if self._fabric.swallows:
            target.crash(target_vm, "the stream broke")
        else:
            target.arrive(target_vm)

    async def migrate_cancel(self, vm_id: VmId) -> None:
        """Give up an outgoing migration; the guest goes on here."""
        self.acts.append(("migrate_cancel", vm_id))
        guest = self._require_alive(vm_id)
        if guest.seen.migration.status not in {MigrationStatus.ACTIVE, MigrationStatus.SWITCHING}:
            return
        self.end_migration(vm_id, MigrationStatus.CANCELLED, "")
        target, target_vm = self._fabric.listeners.pop(guest.target, (self, VmId("")))
        if target_vm:
            target.crash(target_vm, "the stream broke")

    async def console_log(self, vm_id: VmId, offset_bytes: int, size_bytes_max: int) -> bytes:
        """Return what the guest wrote from `offset_bytes` on."""
        return self._require(vm_id).console[offset_bytes : offset_bytes + size_bytes_max]

    def console_socket(self, vm_id: VmId) -> Path:
        """Return a path where nobody listens."""
        self._require(vm_id)
        return Path("/nonexistent") / vm_id / "console.sock"

    async def close(self) -> None:
        """Let go of all guests; they run on."""
        self._listeners.clear()

    # What the world does to guests.

    def crash(self, vm_id: VmId, failure: str = "killed") -> None:
        """End the guest's process without being asked."""
        self._move(vm_id, RunState.GONE, failure)

    def switch_off(self, vm_id: VmId) -> None:
        """Let the guest switch itself off."""
        self._move(vm_id, RunState.SHUT_DOWN)

    def lose_disk(self, vm_id: VmId) -> None:
        """Stop the guest at a disk error."""
        self._move(vm_id, RunState.IO_ERROR)

    def tell_unreadable(self, vm_id: VmId, volume_id: VolumeId, at_s: float) -> None:
        """Tell the guest that a block cannot be read."""
        seen = self._guests[vm_id].seen
        self._set(vm_id, replace(seen, unreadable=((volume_id, at_s),)))

    def arrive(self, vm_id: VmId) -> None:
        """Let all of an incoming guest's state arrive."""
        self._move(vm_id, RunState.RUNNING)

    def end_migration(self, vm_id: VmId, status: MigrationStatus, failure: str) -> None:
        """End an outgoing migration unfinished; the guest goes on, as QEMU's does."""
        seen = self._guests[vm_id].seen
        ended = replace(seen.migration, status=status, failure=failure)
        self._set(vm_id, replace(seen, state=RunState.RUNNING, migration=ended))
