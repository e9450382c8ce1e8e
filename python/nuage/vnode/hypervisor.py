"""The hypervisor port: what the V-node agent needs of whatever runs its guests.

Two drivers stand behind it, `fake.FakeHypervisor` and `qemu.QemuHypervisor`; one contract suite
runs on both (tests/contract/vnode). A driver acts and observes; it decides nothing: it never
restarts, fences or forgets a guest on its own.

Run states and what leads from one to the other::

    start ──► RUNNING ⇄ PAUSED            pause, resume
                │  ▲
                │  └─ IO_ERROR            a disk was lost; resume tries the request again
                ├──► SHUT_DOWN            the guest switched itself off (or was asked to)
                └──► GONE                 the process ended without being asked: a crash
    start_incoming ──► INCOMING ──► RUNNING (all state arrived) | GONE (the stream broke)
    migrate ──► RUNNING … ──► SWITCHING (paused, unless migrate_continue was said before)
                              ──► HANDED_OVER (all state left; never runs again by itself)
                              ──► RUNNING (cancelled or failed: the guest is still ours)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeAlias

from nuage.errors import Unavailable
from nuage.ids import IaasId, VmId, VolumeId
from nuage.model.contract import QosClass
from nuage.model.vm import VmShape
from nuage.units import SECTOR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class IscsiDisk:
    """A disk behind an iSCSI target. The secret never reaches an argument or a log.

    `chap_generation` changes when secrets are replaced under a running guest. `far_node` serves it
    at another site ("": it is at ours), and is reached over TLS.
    """

    volume_id: VolumeId
    portal: str
    iqn: str
    chap_user: str = ""
    chap_secret: str = field(default="", repr=False)
    lun: int = 0
    chap_generation: int = 0
    far_node: str = ""
    sector_bytes: int = SECTOR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdDisk:
    """A disk behind an NBD server on a Unix socket."""

    volume_id: VolumeId
    socket_path: str
    export: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDisk:
    """A raw file on this node; for tests and trials, no volume lies here."""

    volume_id: VolumeId
    path: str


Disk: TypeAlias = IscsiDisk | NbdDisk | FileDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A network card and the tap it is plugged into ("" leaves the cable out)."""

    port_id: str
    mac: str
    tap: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSpec:
    """All that starts a guest. `disks` by slot, None where a slot is free.

    `seed` is the config drive's ISO image. The same spec on two nodes gives the same machine,
    which live migration needs.
    """

    vm_id: VmId
    iaas_id: IaasId
    name: str
    shape: VmShape
    qos_class: QosClass
    disks: tuple[Disk | None, ...]
    nics: tuple[Nic, ...]
    seed: bytes = field(repr=False)


class RunState(Enum):
    """What a guest is seen to do."""

    RUNNING = "running"
    PAUSED = "paused"
    IO_ERROR = "io-error"
    INCOMING = "incoming"
    SWITCHING = "switching"
    HANDED_OVER = "handed-over"
    SHUT_DOWN = "shut-down"
    GONE = "gone"


class MigrationStatus(Enum):
    """What an outgoing migration is seen to do."""

    NONE = "none"
    ACTIVE = "active"
    SWITCHING = "switching"  # guest paused, waiting for leave to go on
    DEVICE = "device"  # leave was given; the last state is on its way
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationSeen:
    """An outgoing migration; `progress` is 0 to 1, `downtime_ms` the hypervisor's own figure.

    `has_leave`: the driver lets it go by itself (`Hypervisor.migrate_continue`).
    """

    status: MigrationStatus = MigrationStatus.NONE
    progress: float = 0.0
    transferred_bytes: int = 0
    downtime_ms: float = 0.0
    failure: str = ""
    has_leave: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSeen:
    """One guest as the hypervisor shows it now. `volumes` by slot, "" where free.

    `stopped_at` is the volume at which it stopped last. `unreadable` are those of which it was told
    that blocks cannot be read, and when last, by the host's clock.
    """

    vm_id: VmId
    state: RunState
    shape: VmShape
    volumes: tuple[VolumeId, ...] = ()
    disks: tuple[Disk | None, ...] = field(default=(), repr=False)
    incoming_address: str = ""
    migration: MigrationSeen = MigrationSeen()
    failure: str = ""
    cpu_seconds: float = 0.0
    console_bytes: int = 0
    balloon_mib: int = 0
    stopped_at: VolumeId | None = None
    unreadable: tuple[tuple[VolumeId, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationLimits:
    """How a migration may burden the guest and the link; 0 bandwidth is no limit."""

    downtime_ms_max: int = 100
    bandwidth_bytes_per_s_max: int = 0


def require_secret(secret: str) -> None:
    """Raise Unavailable where no secret was given: no memory goes in clear."""
    if not secret:
        raise Unavailable(
            "no secret came for this move", hint="its controller is of an older version: upgrade it"
        )


class Hypervisor(Protocol):
    """The port. Each act raises NotFound for a guest it has not, Unavailable when it is gone."""

    @property
    def accelerator(self) -> str:
        """Return ``kvm`` or ``tcg`` (``fake`` for the fake)."""
        ...

    @property
    def unreadable(self) -> tuple[VmId, ...]:
        """Return of which guests there is a folder that says nothing; nobody looks after those."""
        ...

    def subscribe(self, changed: Callable[[VmId], None]) -> None:
        """Call `changed` whenever a guest's state may have changed."""
        ...

    async def seen(self) -> tuple[GuestSeen, ...]:
        """Return every guest this node has, running or not, by id."""
        ...

    async def start(self, spec: GuestSpec) -> None:
        """Start a guest; Conflict when it has one of that id that is not GONE or SHUT_DOWN."""
        ...

    async def start_incoming(
        self, spec: GuestSpec, listen_host: str, secret: str, *, source_host: str = ""
    ) -> None:
        """Start a guest that waits for its memory; `seen` tells the address.

        The memory comes encrypted, from whoever knows `secret` (hexadecimal) and from nobody else.
        Where `source_host` is known, only that address reaches the port.

        Raises:
            Unavailable: there is no secret, or QEMU gives up.
        """
        ...

    async def press_power(self, vm_id: VmId) -> None:
        """Press the power button: the guest may switch itself off."""
        ...

    async def kill(self, vm_id: VmId) -> None:
        """End the guest now. It is SHUT_DOWN afterwards, whatever it was."""
        ...

    async def forget(self, vm_id: VmId) -> None:
        """Remove what is left of a guest that is not running: logs, sockets, secrets."""
        ...

    async def pause(self, vm_id: VmId) -> None:
        """Stop the guest's CPUs."""
        ...

    async def resume(self, vm_id: VmId) -> None:
        """Let the CPUs go on, after a pause, a lost disk, or a hand-over taken back."""
        ...

    async def attach_disk(self, vm_id: VmId, slot: int, disk: Disk) -> None:
        """Plug a disk into a free slot of a running guest."""
        ...

    async def detach_disk(self, vm_id: VmId, slot: int) -> None:
        """Unplug a disk; the guest is asked, and it is free when `seen` shows it so."""
        ...

    async def repoint_disk(self, vm_id: VmId, slot: int, disk: Disk) -> None:
        """Reach the same volume by another way, without the guest seeing it."""
        ...

    async def follow_disk(self, vm_id: VmId, slot: int, disk: Disk) -> None:
        """Say, while `repoint_disk` runs, that the volume moved again; else nothing happens.

        What waits for the first move's end would be led for ever to where the volume is no more.
        """
        ...

    async def set_balloon(self, vm_id: VmId, memory_mib: int) -> None:
        """Ask the guest to make do with `memory_mib`, at most what it was started with."""
        ...

    async def migrate(
        self, vm_id: VmId, address: str, limits: MigrationLimits, secret: str
    ) -> None:
        """Begin to send the guest's memory to `address`; it halts at SWITCHING.

        It goes encrypted, and only to who knows `secret`: to another the migration fails.

        Raises:
            Unavailable: there is no secret.
        """
        ...

    async def migrate_continue(self, vm_id: VmId) -> None:
        """Give leave to send the last state: now, or without a halt once all else is sent."""
        ...

    async def migrate_cancel(self, vm_id: VmId) -> None:
        """Give up an outgoing migration; the guest goes on here. Too late once it switches."""
        ...

    async def console_log(self, vm_id: VmId, offset_bytes: int, size_bytes_max: int) -> bytes:
        """Return what the guest wrote on its serial console from `offset_bytes` on."""
        ...

    def console_socket(self, vm_id: VmId) -> Path:
        """Return the Unix socket of the serial console, for one client at a time."""
        ...

    async def close(self) -> None:
        """Let go of all guests; they run on."""
        ...
