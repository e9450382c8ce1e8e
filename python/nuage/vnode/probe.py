"""Which accelerator truly boots a guest here: a boot sector of five bytes tells.

`/dev/kvm` that opens proves little: nested or restricted hosts accept the ioctls and then run a
guest in slow motion or not at all. So a guest is booted, whose boot sector writes to QEMU's
debug-exit port, under both accelerators; KVM is taken when its guest ends rightly and not later
than TCG's by more than a fixed allowance.
"""

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from nuage.clock import Clock
from nuage.vnode.arguments import QEMU_BINARY

PROBE_TIMEOUT_S: Final = 5.0
KVM_ALLOWANCE_S: Final = 1.0  # real KVM needs 0.1 s; emulated below us it was seen to need 4 s
GUEST_EXIT_CODE: Final = 33  # isa-debug-exit answers (value << 1) | 1, and we write 0x10
# mov al, 0x10 / out 0xf4, al / hlt
BOOT_SECTOR: Final = bytes.fromhex("b010e6f4f4").ljust(510, b"\0") + b"\x55\xaa"
DISK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One accelerator's try. `seconds` is 0 when the guest did not end in time."""

    accelerator: str
    booted: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The accelerator to use, and why."""

    accelerator: str
    reason: str
    key: str = ""


def judge(kvm: Trial, tcg: Trial) -> Verdict:
    """Return which accelerator to use, from both trials."""
    if not kvm.booted:
        return Verdict(accelerator="tcg", reason="no guest boots under KVM here")
    if tcg.booted and kvm.seconds > tcg.seconds + KVM_ALLOWANCE_S:
        return Verdict(
            accelerator="tcg",
            reason=f"a guest under KVM took {kvm.seconds:.1f} s, under TCG {tcg.seconds:.1f} s",
        )
    return Verdict(accelerator="kvm", reason=f"a guest booted under KVM in {kvm.seconds:.1f} s")


def _machine_key() -> str:
    """Return what the verdict depends on: this boot of this machine, this QEMU."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for folder in (Path("/usr/bin"), Path("/usr/local/bin")):
        binary = folder / QEMU_BINARY
        if binary.exists():
            return f"{boot_id} {int(binary.stat().st_mtime)}"
    return boot_id


async def probe_accelerator(cache: Path, clock: Clock) -> Verdict:
    """Return the accelerator to use, from `cache` when this machine's present boot wrote it."""
    key = _machine_key()
    known = _cached(cache)
    if known is not None and known.key == key:
        return known
    verdict = replace(judge(await _try("kvm", clock), await _try("tcg", clock)), key=key)
    _keep(cache, verdict)
    return verdict


def _cached(cache: Path) -> Verdict | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(cache.read_bytes(), type=Verdict)
    return None


def _keep(cache: Path, verdict: Verdict) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_bytes(msgspec.json.encode(verdict))


async def _try(accelerator: str, clock: Clock) -> Trial:
    with tempfile.NamedTemporaryFile(suffix=".img") as disk:
        disk.write(BOOT_SECTOR.ljust(DISK_BYTES, b"\0"))
        disk.flush()
        started_s = clock.monotonic_s()
        process = await asyncio.create_subprocess_exec(
            QEMU_BINARY, "-accel", accelerator,
            "-cpu", "host" if accelerator == "kvm" else "max", "-machine", "pc", "-m", "64",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
            "-drive", f"if=ide,format=raw,readonly=off,file={disk.name}",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            return Trial(accelerator=accelerator, booted=False, seconds=0.0)
        seconds = clock.monotonic_s() - started_s
        return Trial(accelerator=accelerator, booted=code == GUEST_EXIT_CODE, seconds=seconds)
