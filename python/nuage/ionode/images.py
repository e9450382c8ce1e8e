"""Images on an IO-node: brought in from anywhere, checked, made raw and sparse, kept by SHA-256.

What comes in is untrusted. It is stored unread under a temporary name, its SHA-256 is compared
with the one promised, `qemu-img info` looks at it inside resource limits, and it is refused when
it points to other files (backing file, external data file), when its format is not among four, or
when its virtual size is beyond the bound. Only then `qemu-img convert` writes the raw image, which
is synced and renamed into place: a name in the cache is always a whole image.

Layout of the cache::

    raw/<sha256 of the source>.raw     whole images, sparse, mode 0444
    raw/<sha256>.json                  what is known of each
    part/<name>                        downloads and conversions under way

A download by URL that was cut goes on where it was (HTTP range); one whose server cannot
do so begins anew.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from nuage.errors import UNREADABLE, InvalidRequest, NotFound, QuotaExceeded, Unavailable
from nuage.units import GIB, MIB

FORMATS: Final = ("raw", "qcow2", "vmdk", "vpc")
VIRTUAL_BYTES_MAX: Final = 256 * GIB
CHUNK_BYTES: Final = MIB
# Bounds for qemu-img on hostile input, after what OpenStack learned from CVE-2015-5162: an image
# of a few KiB could make it use all memory and hours of CPU.
TOOL_ADDRESS_BYTES: Final = 4 * GIB
INFO_CPU_S: Final = 10
CONVERT_CPU_S: Final = 3600
CONVERT_TIMEOUT_S: Final = 3600.0
DOWNLOAD_TIMEOUT_S: Final = 60.0  # between two chunks
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an import is. `step` is download, verify or convert; `total_bytes` 0 is unknown."""

    step: str
    done_bytes: int
    total_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedImage:
    """A whole raw image. `sha256` is the source's, as the image's owner knows it."""

    sha256: str
    path: Path
    size_bytes: int
    source_format: str
    allocated_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What the cache keeps beside each image."""

    sha256: str
    size_bytes: int
    source_format: str


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


Tell = Callable[[Progress], None]


def _tell_nobody(_progress: Progress) -> None:
    return


class ImageCache:
    """The images of one IO-node, below one folder."""

    def __init__(self, root: Path, *, virtual_bytes_max: int = VIRTUAL_BYTES_MAX) -> None:
        self._raw = root / "raw"
        self._part = root / "part"
        self._virtual_bytes_max = virtual_bytes_max
        self._locks: dict[str, asyncio.Lock] = {}
        for folder in (self._raw, self._part):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def find(self, sha256: str) -> CachedImage | None:
        """Return the image whose source had this SHA-256, or None."""
        _require_sha256(sha256)
        path = self._raw / f"{sha256}.raw"
        try:
            facts = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=_Facts)
            stat = path.stat()
        except (OSError, *UNREADABLE):
            return None
        return CachedImage(
            sha256=sha256,
            path=path,
            size_bytes=facts.size_bytes,
            source_format=facts.source_format,
            allocated_bytes=stat.st_blocks * 512,
        )

    def images(self) -> tuple[CachedImage, ...]:
        """Return all whole images, by SHA-256."""
        found = (self.find(path.stem) for path in sorted(self._raw.glob("*.raw")))
        return tuple(image for image in found if image is not None)

    async def import_file(
        self, source: Path, *, sha256: str = "", tell: Tell = _tell_nobody
    ) -> CachedImage:
        """Bring in an image file of this node; the file is left as it is.

        Raises:
            NotFound: there is no such file.
            InvalidRequest: it is not what was promised, or may not be used.
        """
        if not source.is_file():
            raise NotFound("image file", str(source))
        return await self.import_stream(_file_chunks(source), sha256=sha256, tell=tell,
                                        total_bytes=source.stat().st_size)  # fmt: skip

    async def import_stream(
        self, chunks: AsyncIterator[bytes], *, sha256: str = "", tell: Tell = _tell_nobody,
        total_bytes: int = 0,
    ) -> CachedImage:  # fmt: skip
        """Bring in an image that arrives in chunks, such as the body of an upload."""
        if sha256 and (known := self.find(sha256)) is not None:
            return known
        part = self._part / f"stream-{os.urandom(8).hex()}"
        try:
            await _append(part, chunks, self._virtual_bytes_max, tell, total_bytes)
            return await self._adopt(part, sha256, tell)
        finally:
            part.unlink(missing_ok=True)

    async def import_url(
        self, url: str, *, sha256: str, session: aiohttp.ClientSession, tell: Tell = _tell_nobody
    ) -> CachedImage:
        """Bring in an image from ``http(s)://``; a download that was cut goes on where it was.

        Raises:
            Unavailable: the server does not answer, or the connection was cut: try again.
            InvalidRequest: the bytes are not those promised.
        """
        _require_sha256(sha256)
        if not url.startswith(("http://", "https://")):
            raise InvalidRequest(f"{url!r} is not an http or https address", field="url")
        async with self._locks.setdefault(sha256, asyncio.Lock()):
            known = self.find(sha256)
            if known is not None:
                return known
            part = self._part / f"url-{sha256}"
            await self._download(url, part, session, tell)
            try:
                return await self._adopt(part, sha256, tell)
            finally:
                part.unlink(missing_ok=True)

    async def _download(
        self, url: str, part: Path, session: aiohttp.ClientSession, tell: Tell
    ) -> None:
        have_bytes = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={have_bytes}-"} if have_bytes else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=DOWNLOAD_TIMEOUT_S, sock_connect=10)
        try:
            async with session.get(url, headers=headers, timeout=timeout) as answer:
                if answer.status == 416:  # nothing is left to send
                    return
                if answer.status not in {200, 206}:
                    raise Unavailable(f"{url} answers {answer.status}", retry_after_s=30)
                if answer.status == 200:
                    part.unlink(missing_ok=True)
                    have_bytes = 0
                total = have_bytes + (answer.content_length or 0)
                chunks = answer.content.iter_chunked(CHUNK_BYTES)
                await _append(part, chunks, self._virtual_bytes_max, tell, total)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(
                f"the download of {url} was cut: {error}",
                hint="ask again: it goes on where it was",
            ) from error

    async def _adopt(self, part: Path, promised: str, tell: Tell) -> CachedImage:
        """Check a whole source file, make it raw, and put it in place."""
        found = await asyncio.to_thread(_digest, part, tell)
        if promised and found != promised:
            raise InvalidRequest(
                f"the image has SHA-256 {found}, promised was {promised}", field="sha256",
                hint="the source changed or was cut; check it and ask again",
            )  # fmt: skip
        known = self.find(found)
        if known is not None:
            return known
        info = await self._inspect(part)
        target = self._part / f"raw-{found}-{os.urandom(4).hex()}"
        try:
            await _convert(part, target, info, tell)
            size_bytes = target.stat().st_size
            target.chmod(0o444)
            facts = _Facts(sha256=found, size_bytes=size_bytes, source_format=info.format)
            await asyncio.to_thread(self._publish, target, facts)
        finally:
            target.unlink(missing_ok=True)
        image = self.find(found)
        if image is None:
            raise Unavailable(f"image {found} was collected while it was imported")
        return image

    def _publish(self, target: Path, facts: _Facts) -> None:
        """Sync and rename: the facts last, because an image without facts does not count."""
        _sync(target)
        final = self._raw / f"{facts.sha256}.raw"
        target.replace(final)
        note = self._part / f"facts-{os.urandom(4).hex()}"
        note.write_bytes(msgspec.json.encode(facts))
        _sync(note)
        note.replace(final.with_suffix(".json"))
        _sync(self._raw)

    async def _inspect(self, part: Path) -> _Info:
        """Return what the image is.

        Raises:
            InvalidRequest: it may not be used; `field` is "image".
        """
        code, out, told = await _tool(
            "info", "--output=json", str(part), cpu_s=INFO_CPU_S, timeout_s=INFO_CPU_S * 3.0
        )
        if code != 0:
            raise InvalidRequest(f"the image cannot be read: {_short(told)}", field="image")
        try:
            info = msgspec.json.decode(out, type=_Info)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"the image cannot be read: {error}", field="image") from error
        reason = refusal_of(info, str(part), self._virtual_bytes_max)
        if reason:
            raise InvalidRequest(f"the image is refused: {reason}", field="image")
        return info

    def collect(self, keep: frozenset[str]) -> tuple[str, ...]:
        """Remove images that are not in `keep`, and what cut imports left; return the removed.

        Only to be called while no import runs, or with every image being imported in `keep`.
        """
        removed = [image.sha256 for image in self.images() if image.sha256 not in keep]
        for sha256 in removed:
            (self._raw / f"{sha256}.json").unlink(missing_ok=True)
            (self._raw / f"{sha256}.raw").unlink(missing_ok=True)
        for part in self._part.iterdir():
            wanted = any(sha256 in part.name for sha256 in keep)
            if not wanted:
                part.unlink(missing_ok=True)
        return tuple(removed)


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


def _require_sha256(text: str) -> None:
    if _SHA256.fullmatch(text) is None:
        raise InvalidRequest(
            f"{text!r} is not a SHA-256 in 64 lower-case hexadecimal digits", field="sha256"
        )


def _short(told: bytes) -> str:
    return told.decode(errors="replace").strip()[-200:]


async def _file_chunks(source: Path) -> AsyncIterator[bytes]:
    with source.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


async def _append(
    part: Path, chunks: AsyncIterator[bytes], bytes_max: int, tell: Tell, total_bytes: int
) -> None:
    """Append chunks to a file, up to a bound."""
    done_bytes = part.stat().st_size if part.exists() else 0
    with part.open("ab") as file:
        async for chunk in chunks:
            done_bytes += len(chunk)
            if done_bytes > bytes_max:
                raise QuotaExceeded(
                    "image bytes", limit=bytes_max, used=done_bytes - len(chunk), asked=len(chunk)
                )
            await asyncio.to_thread(file.write, chunk)
            tell(Progress(step="download", done_bytes=done_bytes, total_bytes=total_bytes))


def _digest(part: Path, tell: Tell) -> str:
    total_bytes = part.stat().st_size
    digest = hashlib.sha256()
    done_bytes = 0
    with part.open("rb") as file:
        while chunk := file.read(4 * CHUNK_BYTES):
            digest.update(chunk)
            done_bytes += len(chunk)
            tell(Progress(step="verify", done_bytes=done_bytes, total_bytes=total_bytes))
    return digest.hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


async def _convert(part: Path, target: Path, info: _Info, tell: Tell) -> None:
    """Write the raw image; runs of zeros become holes.

    The format is named, never guessed: a raw image whose first bytes say otherwise stays raw.
    """
    tell(Progress(step="convert", done_bytes=0, total_bytes=info.virtual_size))
    code, _, told = await _tool(
        "convert", "-f", info.format, "-O", "raw", "-S", "4k", "-t", "writeback",
        str(part), str(target), cpu_s=CONVERT_CPU_S, timeout_s=CONVERT_TIMEOUT_S,
    )  # fmt: skip
    if code != 0:
        raise InvalidRequest(f"the image cannot be converted: {_short(told)}", field="image")
    tell(Progress(step="convert", done_bytes=info.virtual_size, total_bytes=info.virtual_size))
