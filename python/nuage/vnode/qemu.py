"""The QEMU driver of the hypervisor port (tested with QEMU 7.2).

Each guest's QEMU runs in a session of its own and outlives the agent. It gets its sockets and taps
as open descriptors, its secrets from files that are removed once read, a seccomp sandbox, and,
where `run_as` names one, a user without rights. Sites' storage does the fencing; this driver only
keeps the promise that a guest it reports SHUT_DOWN or GONE has no process.
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import socket
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nuage.errors import Conflict, CorruptData, NotFound, NuageError, Unavailable
from nuage.ids import VmId
from nuage.vnode import process
from nuage.vnode.arguments import (
    DISKS_MAX,
    Launch,
    command_line,
    disk_device,
    disk_node,
    disk_options,
    secret_id,
    transport_node,
    transport_options,
)
from nuage.vnode.cgroup import CgroupTree
from nuage.vnode.doors import Door, Doors
from nuage.vnode.guest import (
    ADOPT_TIMEOUT_S,
    Guest,
    GuestRecord,
    Repointing,
    StoredDisk,
    downtime_ms,
    stored,
)
from nuage.vnode.hypervisor import (
    Disk,
    GuestSeen,
    GuestSpec,
    IscsiDisk,
    MigrationLimits,
    RunState,
    require_secret,
)
from nuage.vnode.qmp import Json, QmpError
from nuage.vnode.relay import Relay, RelayOptions
from nuage.vnode.rerouting import Rerouting
from nuage.vnode.tap import open_tap

START_TIMEOUT_S: Final = 30.0  # QEMU opens its iSCSI disks before it greets
QUIT_TIMEOUT_S: Final = 2.0
KILL_TIMEOUT_S: Final = 10.0  # SIGKILL waits for disk requests inside the kernel at most
BANDWIDTH_UNBOUNDED: Final = 1 << 40
MIGRATION_CAPABILITIES: Final = ("events", "pause-before-switchover", "auto-converge")
USER_FIRST: Final = 410_000  # below the storage daemons' (`ionode.owner`), as free as those
LINE: Final = "move"
CONNECT_TIMEOUT_S: Final = 5.0
PSK_USER: Final = "nuage"  # TLS wants a name with the key; one guest has one key


# An attempt to connect is given up after some seconds, not minutes: one SYN more than the kernel
# repeats at an even pace (`tcp_syn_linear_timeouts`). The initiator then begins another.
INITIATOR: Final = {"LIBISCSI_TCP_SYNCNT": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuOptions:
    """How this node runs QEMU. `own_users`, which takes root: each guest is a user of its own.

    `address` is the node's own, from which it sends guests: targets hear no other.
    Without a `relay` no disk at another site is reached.
    """

    root: Path
    accelerator: str
    address: str = ""
    own_users: bool = False
    cgroup_root: Path | None = None
    relay: RelayOptions | None = None


class QemuHypervisor:
    """Guests under QEMU in the folders ``<root>/<vm id>``."""

    def __init__(self, options: QemuOptions) -> None:
        self._options = options
        self._cgroups = CgroupTree(options.cgroup_root)
        self._guests: dict[VmId, Guest] = {}
        self._unreadable: list[VmId] = []
        self._children: set[int] = set()
        self._listeners: list[Callable[[VmId], None]] = []
        self._chores: set[asyncio.Task[None]] = set()
        self._leaving: tuple[Callable[[VmId], None], Callable[[VmId, float], None]] | None = None
        self._relay = None if options.relay is None else Relay(options.relay)
        self._rerouting = Rerouting(self._relay)
        self._doors = Doors()
        self._goals: dict[tuple[VmId, int], Disk] = {}  # where what waits is led, while it changes

    @property
    def accelerator(self) -> str:
        """Return ``kvm`` or ``tcg``."""
        return self._options.accelerator

    @property
    def unreadable(self) -> tuple[VmId, ...]:
        """Return of which guests there is a folder whose ``guest.json`` cannot be."""
        return tuple(
            vm_id
            for vm_id in self._unreadable
            if vm_id not in self._guests and (self._options.root / vm_id).exists()
        )

    def subscribe(self, changed: Callable[[VmId], None]) -> None:
        """Call `changed` whenever a guest's state may have changed."""
        self._listeners.append(changed)

    def subscribe_leaving(
        self, soon: Callable[[VmId], None], still: Callable[[VmId, float], None]
    ) -> None:
        """Tell when a guest may stop at any moment to go elsewhere, and that, and when, it did.

        At once, from QEMU's own events: what is on its way to the guest is lost otherwise.
        """
        self._leaving = (soon, still)

    def _changed(self, vm_id: VmId) -> None:
        for listener in self._listeners:
            listener(vm_id)

    async def open(self) -> None:
        """Find the guests that an earlier agent left running."""
        self._options.root.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._options.root.glob("*/guest.json")):
            try:
                guest = Guest.load(path.parent, self._changed)
            except CorruptData:
                self._unreadable.append(VmId(path.parent.name))
                continue  # left as it is, and told: nobody deletes it
            self._take(guest)
            if guest.alive:
                with contextlib.suppress(NuageError):
                    await guest.connect(ADOPT_TIMEOUT_S)
        self._rerouting.learn(self._ways_in_use())  # their rules stand, and must not go

    def _take(self, guest: Guest) -> None:
        self._guests[guest.record.vm_id] = guest
        if self._leaving is not None:
            guest.leaves_soon, guest.stands_still = self._leaving
        guest.unplugged = lambda device: self._later(self._finish_detach(guest, device))

    def _later(self, chore: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def _require(self, vm_id: VmId) -> Guest:
        guest = self._guests.get(vm_id)
        if guest is None:
            raise NotFound("guest", vm_id)
        return guest

    async def seen(self) -> tuple[GuestSeen, ...]:
        """Return every guest this node has, running or not, by id."""
        guests = [self._guests[vm_id] for vm_id in sorted(self._guests)]
        asked = [guest for guest in guests if not guest.launching]
        observed = await asyncio.gather(*(guest.observe() for guest in asked))
        result = []
        for guest, seen in zip(asked, observed, strict=True):
            if self._guests.get(seen.vm_id) is not guest:
                continue  # forgotten, or begun anew, meanwhile
            if seen.state is RunState.SHUT_DOWN and guest.alive:
                await self._end(guest, politely=True)
            self._reap()
            if guest.console.rotate():
                guest.save(replace(guest.record, console_base_bytes=guest.console.base_bytes))
            result.append(_as_known(guest, seen))
        ways = self._ways_in_use()
        self._rerouting.learn(ways)
        await self._rerouting.hold(_portals(ways))
        await self._keep_doors({seen.vm_id for seen in result if seen.state is RunState.RUNNING})
        return tuple(result)

    async def _keep_doors(self, arrived: Collection[VmId] = ()) -> None:
        """Let only its source connect to each guest that waits; `arrived` do not any more."""
        guests = [g for g in self._guests.values() if g.alive and g.record.vm_id not in arrived]
        await self._doors.keep(g.record.door for g in guests if g.record.door is not None)

    def _ways_in_use(self) -> list[Disk]:
        """Return the ways to disks by which guests that run may be connecting again."""
        running = [g for g in self._guests.values() if g.alive and not g.launching]
        return [
            way for guest in running for slot, _ in enumerate(guest.record.disks)
            for way in self._ways(guest, slot)
        ]  # fmt: skip

    def _reap(self) -> None:
        self._children -= {pid for pid in self._children if process.reap(pid)}

    async def start(self, spec: GuestSpec) -> None:
        """Start a guest; Conflict when it runs already, Unavailable when QEMU gives up."""
        await self._start(spec, incoming=False)

    async def start_incoming(
        self, spec: GuestSpec, listen_host: str, secret: str, *, source_host: str = ""
    ) -> None:
        """Start a guest that waits for its memory on a free port of `listen_host`."""
        require_secret(secret)
        guest = await self._start(spec, incoming=True)
        try:
            await self._set_migration(guest, MigrationLimits(), secret, endpoint="server")
            host = f"[{listen_host}]" if ":" in listen_host else listen_host
            port = _free_port(listen_host)
            if source_host:
                guest.save(replace(guest.record, door=Door(port=port, source=source_host)))
                await self._keep_doors()
            await guest.execute("migrate-incoming", {"uri": f"tcp:{host}:{port}"})
            guest.save(replace(guest.record, incoming_address=f"{host}:{port}"))
        except NuageError:
            await self.kill(spec.vm_id)
            raise
        self._changed(spec.vm_id)

    async def _start(self, spec: GuestSpec, *, incoming: bool) -> Guest:
        known = self._guests.get(spec.vm_id)
        if known is not None and known.alive:
            raise Conflict(f"{spec.vm_id} runs already on this node")
        folder = self._options.root / spec.vm_id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "qemu.log").unlink(missing_ok=True)
        _write_private(folder / "seed.iso", spec.seed)
        secret_files = {}
        for slot, disk in enumerate(spec.disks):
            if isinstance(disk, IscsiDisk) and disk.chap_secret:
                secret_files[slot] = f"secret{slot}"
                _write_private(folder / secret_files[slot], disk.chap_secret.encode())
        guest = Guest(
            folder,
            GuestRecord(
                vm_id=spec.vm_id,
                iaas_id=spec.iaas_id,
                shape=spec.shape,
                mark=None,
                disks=tuple(stored(disk) for disk in spec.disks),
                generations=tuple(0 for _ in spec.disks),
                console_base_bytes=known.console.base_bytes if known else 0,
                user=self._free_user() if self._options.own_users else 0,
            ),
            self._changed,
        )
        guest.launching = True
        self._take(guest)
        try:
            self._rerouting.learn(spec.disks)
            async with self._rerouting.refusable(_portals(spec.disks)):
                await self._launch(guest, spec, secret_files, incoming=incoming)
        finally:
            guest.launching = False
            for name in secret_files.values():
                (folder / name).unlink(missing_ok=True)
        return guest

    def _free_user(self) -> int:
        """Return a user that no guest of this node has."""
        taken = {guest.record.user for guest in self._guests.values()}
        return next(user for user in itertools.count(USER_FIRST) if user not in taken)

    async def _launch(
        self, guest: Guest, spec: GuestSpec, secret_files: dict[int, str], *, incoming: bool
    ) -> None:
        folder, user = guest.folder, guest.record.user
        taps: dict[str, int] = {}
        qmp = process.listen_unix(folder / "qmp.sock", user)
        console = process.listen_unix(folder / "console.sock", user)
        try:
            for nic in spec.nics:
                if nic.tap:
                    taps[nic.port_id] = open_tap(nic.tap)
            if user:
                for path in (folder, *folder.iterdir()):
                    os.chown(path, user, user)
            launch = Launch(
                accelerator=self.accelerator, qmp_fd=qmp.fileno(), console_fd=console.fileno(),
                tap_fds=taps, secret_files=secret_files, incoming=incoming,
            )  # fmt: skip
            pid = process.launch(
                command_line(spec, launch), folder=folder, log=folder / "qemu.log", user=user,
                groups=_kvm_groups(self.accelerator), environment=INITIATOR,
                pass_fds=(qmp.fileno(), console.fileno(), *taps.values()),
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(f"{spec.vm_id} cannot be started: {error}") from error
        finally:
            qmp.close()
            console.close()
            for fd in taps.values():
                os.close(fd)
        self._children.add(pid)
        guest.save(replace(guest.record, mark=process.mark_of(pid)))
        self._cgroups.place(spec.vm_id, pid, spec.qos_class, spec.shape.memory_mib)
        try:
            await guest.connect(START_TIMEOUT_S)
        except NuageError as error:
            await self._end(guest, politely=False)
            told = guest.complaint() or error.message
            guest.save(replace(guest.record, ended=False))
            raise Unavailable(f"QEMU would not start {spec.vm_id}: {told}") from error

    async def press_power(self, vm_id: VmId) -> None:
        """Press the power button: the guest may switch itself off."""
        await self._require(vm_id).execute("system_powerdown")

    async def kill(self, vm_id: VmId) -> None:
        """End the guest now, as a loss of power would."""
        await self._end(self._require(vm_id), politely=False)
        self._changed(vm_id)

    async def _end(self, guest: Guest, *, politely: bool) -> None:
        """End a guest's process and note that it was meant."""
        guest.save(replace(guest.record, ended=True))
        mark = guest.record.mark
        if mark is not None and process.is_alive(mark):
            if politely:
                with contextlib.suppress(NuageError):
                    await guest.execute("quit")
            if not (politely and await process.wait_gone(mark, QUIT_TIMEOUT_S)):
                process.kill(mark)
                if not await process.wait_gone(mark, KILL_TIMEOUT_S):
                    raise Unavailable(f"QEMU of {guest.record.vm_id} does not die", retry_after_s=5)
        self._reap()
        if guest.client is not None:
            await guest.client.close()
            guest.client = None
        self._cgroups.remove(guest.record.vm_id)

    async def forget(self, vm_id: VmId) -> None:
        """Remove what is left of a guest that is not running."""
        guest = self._require(vm_id)
        if guest.alive:
            raise Conflict(f"{vm_id} still runs", hint="stop it first")
        del self._guests[vm_id]
        shutil.rmtree(guest.folder)

    async def pause(self, vm_id: VmId) -> None:
        """Stop the guest's CPUs."""
        await self._require(vm_id).execute("stop")

    async def resume(self, vm_id: VmId) -> None:
        """Let the CPUs go on, after a pause, a lost disk, or a hand-over taken back."""
        await self._require(vm_id).execute("cont")

    async def attach_disk(self, vm_id: VmId, slot: int, disk: Disk) -> None:
        """Plug a disk into a free slot of a running guest."""
        guest = self._require(vm_id)
        if not 0 <= slot < DISKS_MAX:
            raise Conflict(f"{vm_id} has slots 0 to {DISKS_MAX - 1}, not {slot}")
        if slot < len(guest.record.disks) and guest.record.disks[slot].disk() is not None:
            raise Conflict(f"slot {slot} of {vm_id} is taken")
        generation = self._generation(guest, slot) + 1
        await self._drop_disk(guest, slot, generation)  # what an agent that ended in here has left
        try:
            await self._add_transport(guest, slot, disk, generation)
            await guest.execute("blockdev-add", disk_options(slot, generation=generation))
            await guest.execute("device_add", disk_device(slot, disk))
        except NuageError:
            await self._drop_disk(guest, slot, generation)
            raise
        self._set_slot(guest, slot, stored(disk), generation)
        self._changed(vm_id)

    async def detach_disk(self, vm_id: VmId, slot: int) -> None:
        """Ask the guest to let go of a disk; it is free when `seen` shows it so."""
        try:
            await self._require(vm_id).execute("device_del", {"id": f"dev{slot}"})
        except QmpError as error:
            if error.kind == "DeviceNotFound":
                raise NotFound("disk in slot", str(slot)) from error
            # Else it was asked before, and the guest still thinks about it.

    async def repoint_disk(self, vm_id: VmId, slot: int, disk: Disk) -> None:
        """Reach the same volume by another way, without the guest seeing it."""
        guest = self._require(vm_id)
        before = self._generation(guest, slot)
        known = guest.record.repointings.get(slot, Repointing())
        fresh = before + 1 + known.tried  # one that broke off may have got through, with its names
        ways = self._ways(guest, slot)
        self._goals[vm_id, slot] = disk
        self._rerouting.learn([*ways, disk])
        async with contextlib.AsyncExitStack() as led:
            led.callback(self._goals.pop, (vm_id, slot))
            for there in ways:
                await led.enter_async_context(self._led(there, disk, is_again=known.tried > 0))
            begun = Repointing(tried=known.tried + 1, ways=(*known.ways, stored(disk)))
            self._note(guest, slot, begun)
            try:
                await self._add_transport(guest, slot, disk, fresh)
                options = disk_options(slot, generation=fresh)
                await guest.execute("blockdev-reopen", {"options": [options]})
            except QmpError:  # refused: nothing uses what was added
                self._note(guest, slot, replace(begun, ways=known.ways))
                await self._drop_transport(guest, slot, fresh)
                raise
            self._set_slot(guest, slot, stored(disk), fresh)
            for generation in range(before, fresh):  # QEMU logs out, and waits for the answer
                await self._drop_transport(guest, slot, generation)

    def _note(self, guest: Guest, slot: int, repointing: Repointing) -> None:
        repointings = {**guest.record.repointings, slot: repointing}
        guest.save(replace(guest.record, repointings=repointings))

    async def follow_disk(self, vm_id: VmId, slot: int, disk: Disk) -> None:
        """Lead on what waits in a `repoint_disk` that runs: the volume has moved again."""
        match self._goals.get((vm_id, slot)), disk:
            case IscsiDisk(portal=left), IscsiDisk(portal=new) if left != new:
                self._goals[vm_id, slot] = disk
                self._rerouting.learn([disk])
                await self._rerouting.turn(left, new)

    def _ways(self, guest: Guest, slot: int) -> list[Disk]:
        """Return each way by which something may be in flight to a slot's volume."""
        entries = [*guest.record.disks[slot : slot + 1]]
        entries += guest.record.repointings.get(slot, Repointing()).ways
        ways = [entry.disk() for entry in entries]
        return [
            way for number, way in enumerate(ways) if way is not None and way not in ways[:number]
        ]

    def _led(
        self, there: Disk, disk: Disk, *, is_again: bool
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Lead what is in flight to a moved volume's new portal."""
        match there, disk:
            case IscsiDisk(portal=old), IscsiDisk(portal=new) if old != new:
                return self._rerouting.led(old, new, is_again=is_again)
            case _:
                return contextlib.nullcontext()

    def _generation(self, guest: Guest, slot: int) -> int:
        known = guest.record.generations
        return known[slot] if slot < len(known) else 0

    def _set_slot(self, guest: Guest, slot: int, disk: StoredDisk, generation: int) -> None:
        width = max(len(guest.record.disks), slot + 1)
        disks = [*guest.record.disks, *(StoredDisk() for _ in range(width))][:width]
        generations = [*guest.record.generations, *(0 for _ in range(width))][:width]
        disks[slot], generations[slot] = disk, generation
        repointings = {k: tries for k, tries in guest.record.repointings.items() if k != slot}
        guest.save(
            replace(
                guest.record,
                disks=tuple(disks),
                generations=tuple(generations),
                repointings=repointings,
            )
        )

    async def _add_transport(self, guest: Guest, slot: int, disk: Disk, generation: int) -> None:
        secret = f"{secret_id(slot)}-{generation}"
        if isinstance(disk, IscsiDisk) and disk.chap_secret:
            await guest.execute(
                "object-add", {"qom-type": "secret", "id": secret, "data": disk.chap_secret}
            )
        options = transport_options(
            guest.record.vm_id, slot, disk, generation=generation, secret=secret
        )
        self._rerouting.learn([disk])
        async with self._rerouting.refusable(_portals([disk])):
            await guest.execute("blockdev-add", options)

    async def _drop_disk(self, guest: Guest, slot: int, generation: int) -> None:
        with contextlib.suppress(NuageError):
            await guest.execute("blockdev-del", {"node-name": disk_node(slot)})
        await self._drop_transport(guest, slot, generation)

    async def _drop_transport(self, guest: Guest, slot: int, generation: int) -> None:
        with contextlib.suppress(NuageError):
            await guest.execute("blockdev-del", {"node-name": transport_node(slot, generation)})
        for secret in (f"{secret_id(slot)}-{generation}", secret_id(slot)):
            with contextlib.suppress(NuageError):
                await guest.execute("object-del", {"id": secret})

    async def _finish_detach(self, guest: Guest, device: str) -> None:
        """Close a disk's block nodes once the guest has let go of the device."""
        if not device.startswith("dev") or not device[3:].isdecimal():
            return
        slot = int(device[3:])
        generation = self._generation(guest, slot)
        await self._drop_disk(guest, slot, generation)
        self._set_slot(guest, slot, StoredDisk(), generation)
        self._changed(guest.record.vm_id)

    async def set_balloon(self, vm_id: VmId, memory_mib: int) -> None:
        """Ask the guest to make do with `memory_mib`."""
        guest = self._require(vm_id)
        await guest.execute("balloon", {"value": memory_mib * 1024 * 1024})

    async def migrate(
        self, vm_id: VmId, address: str, limits: MigrationLimits, secret: str
    ) -> None:
        """Begin to send the guest's memory to `address`; it halts at SWITCHING.

        QEMU gets a connection that does not block: of one that it makes itself it would wait for
        the other end's first words of TLS, and the guest with it, for as long as none come.

        Raises:
            Unavailable: nobody answers at `address`.
        """
        require_secret(secret)
        guest = self._require(vm_id)
        with await _connected(address, self._options.address) as line:
            await guest.hand(LINE, line.fileno())
            guest.begin_to_send(limits.downtime_ms_max)
            if guest.record.incoming_address:
                guest.save(replace(guest.record, incoming_address="", door=None))
            await self._set_migration(guest, limits, secret, endpoint="client")
            os.set_blocking(line.fileno(), False)  # QEMU has it block again when it gets it
            await guest.execute("migrate", {"uri": f"fd:{LINE}"})
        guest.is_sent = True
        self._changed(vm_id)

    async def _set_migration(
        self, guest: Guest, limits: MigrationLimits, secret: str, *, endpoint: str
    ) -> None:
        capabilities: list[Json] = [
            {"capability": name, "state": True} for name in MIGRATION_CAPABILITIES
        ]
        await guest.execute("migrate-set-capabilities", {"capabilities": capabilities})
        parameters: dict[str, Json] = {
            "downtime-limit": downtime_ms(1, limits.downtime_ms_max),
            "max-bandwidth": limits.bandwidth_bytes_per_s_max or BANDWIDTH_UNBOUNDED,
            "tls-creds": await self._credentials(guest, secret, endpoint),
            "tls-hostname": PSK_USER,  # which QEMU wants, and which no key has
        }
        await guest.execute("migrate-set-parameters", parameters)

    async def _credentials(self, guest: Guest, secret: str, endpoint: str) -> str:
        """Give QEMU the secret of a move as a TLS key (PSK), and return what it calls it."""
        folder = guest.folder / "psk"
        folder.mkdir(mode=0o700, exist_ok=True)
        _write_private(folder / "keys.psk", f"{PSK_USER}:{secret}\n".encode())
        if guest.record.user:
            for path in (folder, folder / "keys.psk"):
                os.chown(path, guest.record.user, guest.record.user)
        name = f"tls-{endpoint}"
        with contextlib.suppress(QmpError):  # there is one when it has moved, or tried to, before
            await guest.execute("object-del", {"id": name})
        credentials: dict[str, Json] = {
            "qom-type": "tls-creds-psk", "id": name, "endpoint": endpoint,
            "dir": folder.name,  # QEMU works in the guest's folder, and may not pass those above
        }  # fmt: skip
        if endpoint == "client":
            credentials["username"] = PSK_USER
        await guest.execute("object-add", credentials)
        return name

    async def migrate_continue(self, vm_id: VmId) -> None:
        """Give leave to send the last state: now, or at once when QEMU says that all else is sent.

        The guest stands still then: no question to QEMU comes between.
        """
        guest = self._require(vm_id)
        guest.has_leave = True
        match await guest.execute("query-migrate"):
            case {"status": "pre-switchover"}:  # its event came before, or to an earlier agent
                guest.go()
                await guest.switched()

    async def migrate_cancel(self, vm_id: VmId) -> None:
        """Give up an outgoing migration; the guest goes on here, unless it switches already."""
        guest = self._require(vm_id)
        guest.has_leave = False
        if guest.switches:
            return
        match await guest.execute("query-migrate"):
            case {"status": "device"}:  # an earlier agent let it go
                return
        await guest.execute("migrate_cancel")

    async def console_log(self, vm_id: VmId, offset_bytes: int, size_bytes_max: int) -> bytes:
        """Return what the guest wrote on its serial console from `offset_bytes` on."""
        return self._require(vm_id).console.read(offset_bytes, size_bytes_max)

    def console_socket(self, vm_id: VmId) -> Path:
        """Return the Unix socket of the serial console, for one client at a time."""
        return self._require(vm_id).folder / "console.sock"

    async def close(self) -> None:
        """Let go of all guests and of the relay; they run on."""
        if self._relay is not None:
            await self._relay.close()
        for chore in list(self._chores):
            chore.cancel()
        for guest in self._guests.values():
            if guest.client is not None:
                await guest.client.close()
                guest.client = None


def _as_known(guest: Guest, seen: GuestSeen) -> GuestSeen:
    """Show no portal of a disk whose repointing broke off: which way it uses is not known."""
    unsure = {slot for slot, tries in guest.record.repointings.items() if tries.ways}
    disks = tuple(
        replace(disk, portal="") if isinstance(disk, IscsiDisk) and slot in unsure else disk
        for slot, disk in enumerate(seen.disks)
    )
    return replace(seen, disks=disks)


def _portals(disks: Iterable[Disk | None]) -> frozenset[str]:
    return frozenset(disk.portal for disk in disks if isinstance(disk, IscsiDisk))


def _free_port(host: str) -> int:
    """Return a port of `host` that nobody has now.

    Raises:
        Unavailable: no address of this node is `host`.
    """
    with socket.socket(_family(host)) as taken:
        try:
            taken.bind((host, 0))
        except OSError as error:
            raise Unavailable(f"no port of {host}: {error}") from error
        return int(taken.getsockname()[1])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


async def _connected(address: str, here: str) -> socket.socket:
    """Return a connection from `here` to ``host:port`` that does not block."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    host = host.strip("[]")
    line = socket.socket(_family(host))
    line.settimeout(0)
    try:
        if here:
            line.bind((here, 0))
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await loop.sock_connect(line, (host, int(port)))
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, TimeoutError) as error:
        line.close()
        raise Unavailable(f"nobody answers at {address}: {error}") from error
    return line


def _kvm_groups(accelerator: str) -> tuple[int, ...]:
    """Return the groups that a guest's user needs beside its own."""
    return (Path("/dev/kvm").stat().st_gid,) if accelerator == "kvm" else ()


def _write_private(path: Path, data: bytes) -> None:
    """Write a file that no other user can read, not even for a moment."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
