"""Takes images in: what somebody uploads is checked, and made raw and sparse.

What comes in is untrusted. It is stored unread under a temporary name, `qemu-img info` looks at it
inside resource limits, and it is refused when it points to other files (backing file, external data
file), when its format is not among four, or when its virtual size is beyond the bound. Only then
`qemu-img convert` writes the raw image. What a refusal or a broken stream leaves is removed.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from nuage.errors import InvalidRequest, QuotaExceeded
from nuage.units import GIB

FORMATS: Final = ("raw", "qcow2", "vmdk", "vpc")
VIRTUAL_BYTES_MAX: Final = 256 * GIB
# Bounds for qemu-img on hostile input, after what OpenStack learned from CVE-2015-5162: an image
# of a few KiB could make it use all memory and hours of CPU.
TOOL_ADDRESS_BYTES: Final = 4 * GIB
INFO_CPU_S: Final = 10
CONVERT_CPU_S: Final = 3600
CONVERT_TIMEOUT_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenImage:
    """A raw image that was taken in, in a file that is the caller's to move or remove.

    `source_sha256` is of what was uploaded, as the image's owner knows it.
    """

    path: Path
    source_sha256: str
    size_bytes: int


class _InfoData(msgspec.Struct, kw_only=True):
    """The part of ``format-specific`` that can point elsewhere."""

    data_file: str | None = msgspec.field(name="data-file", default=None)
    extents: list[dict[str, str | int | bool]] | None = None


class _InfoSpecific(msgspec.Struct, kw_only=True):
    type: str = ""
    data: _InfoData | None = None


class _Info(msgspec.Struct, kw_only=True):
    """What `qemu-img info --output=json` says, as far as it decides."""

    format: str
    virtual_size: int = msgspec.field(name="virtual-size")
    backing_filename: str | None = msgspec.field(name="backing-filename", default=None)
    encrypted: bool = False
    format_specific: _InfoSpecific | None = msgspec.field(name="format-specific", default=None)


class ImageIntake:
    """Where a controller takes images in, below one folder; several may come at once."""

    def __init__(self, folder: Path, *, virtual_bytes_max: int = VIRTUAL_BYTES_MAX) -> None:
        self._folder = folder
        self._virtual_bytes_max = virtual_bytes_max
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in folder.iterdir():
            leftover.unlink()

    async def take(self, chunks: AsyncIterator[bytes], *, sha256: str = "") -> TakenImage:
        """Take in an image that arrives in chunks; `sha256` is what they have to have, if given.

        Raises:
            InvalidRequest: it may not be used, or is another; `field` is "image".
            QuotaExceeded: it is larger than an image may be.
        """
        name = os.urandom(8).hex()
        source, target = self._folder / f"{name}.source", self._folder / f"{name}.raw"
        try:
            await _store(source, chunks, self._virtual_bytes_max)
            if not source.stat().st_size:
                raise InvalidRequest("the image is empty", field="image")
            digest = await asyncio.to_thread(_digest, source)
            if sha256 and digest != sha256:
                raise InvalidRequest(
                    f"the image that came has SHA-256 {digest}, not {sha256}", field="image"
                )
            await _convert(source, target, await self._inspect(source))
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            source.unlink(missing_ok=True)
        target.chmod(0o444)
        return TakenImage(path=target, source_sha256=digest, size_bytes=target.stat().st_size)

    async def _inspect(self, source: Path) -> _Info:
        """Return what the image is.

        Raises:
            InvalidRequest: it may not be used; `field` is "image".
        """
        code, out, told = await _tool(
            "info", "--output=json", str(source), cpu_s=INFO_CPU_S, timeout_s=INFO_CPU_S * 3.0
        )
        if code != 0:
            raise InvalidRequest(f"the image cannot be read: {_short(told)}", field="image")
        try:
            info = msgspec.json.decode(out, type=_Info)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"the image cannot be read: {error}", field="image") from error
        reason = refusal_of(info, str(source), self._virtual_bytes_max)
        if reason:
            raise InvalidRequest(f"the image is refused: {reason}", field="image")
        return info


def refusal_of(info: _Info, path: str, virtual_bytes_max: int) -> str:
    """Return why the image at `path` may not be used, or "" when it may."""
    data = info.format_specific.data if info.format_specific is not None else None
    if info.format not in FORMATS:
        return f"its format is {info.format}; {', '.join(FORMATS)} can be used"
    if info.backing_filename:
        return "it needs a backing file, which would be a file of this node"
    if data is not None and data.data_file:
        return "its data lies in an external data file"
    extents = data.extents if data is not None and data.extents is not None else []
    if any(extent.get("filename") != path for extent in extents):
        return "its data lies in another file"
    if info.encrypted:
        return "it is encrypted"
    if info.virtual_size > virtual_bytes_max:
        return f"its disk has {info.virtual_size} bytes, {virtual_bytes_max} at most"
    return ""


def _short(told: bytes) -> str:
    return told.decode(errors="replace").strip()[-200:]


async def _store(source: Path, chunks: AsyncIterator[bytes], bytes_max: int) -> None:
    """Write chunks to a file, up to a bound."""
    done_bytes = 0
    with source.open("wb") as file:
        async for chunk in chunks:
            if done_bytes + len(chunk) > bytes_max:
                raise QuotaExceeded(
                    "image bytes", limit=bytes_max, used=done_bytes, asked=len(chunk)
                )
            done_bytes += len(chunk)
            await asyncio.to_thread(file.write, chunk)


def _digest(source: Path) -> str:
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _tool(*arguments: str, cpu_s: int, timeout_s: float) -> tuple[int, bytes, bytes]:
    """Run `qemu-img` inside its limits; return (exit code, output, complaints)."""
    limits = f"ulimit -v {TOOL_ADDRESS_BYTES // 1024}; ulimit -t {cpu_s}; ulimit -c 0; "
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", limits + 'exec qemu-img "$@"', "qemu-img", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            out, told = await process.communicate()
    except (TimeoutError, asyncio.CancelledError) as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            return 1, b"", b"qemu-img took too long"
        raise
    return process.returncode or 0, out, told


async def _convert(source: Path, target: Path, info: _Info) -> None:
    """Write the raw image; runs of zeros become holes.

    The format is named, never guessed: a raw image whose first bytes say otherwise stays raw.
    """
    code, _, told = await _tool(
        "convert", "-f", info.format, "-O", "raw", "-S", "4k", "-t", "writeback",
        str(source), str(target), cpu_s=CONVERT_CPU_S, timeout_s=CONVERT_TIMEOUT_S,
    )  # fmt: skip
    if code != 0:
        raise InvalidRequest(f"the image cannot be converted: {_short(told)}", field="image")
