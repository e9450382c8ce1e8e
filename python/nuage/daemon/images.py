"""Images on disk: a controller's store, and how their bytes travel inside the product.

An image is a raw file named by its SHA-256. A controller takes it in from an API client; an
IO-node that fills a volume fetches it from its controller, which fetches it from the site that has
it. Holes are not sent. What arrives is believed only once its hash is right.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nuage.api.dispatch import Caller, Dispatcher
from nuage.channel import Handlers, Peer
from nuage.daemon.image_intake import ImageIntake
from nuage.errors import Conflict, CorruptData, InvalidRequest, NotFound, NuageError, Unavailable
from nuage.iaas.images import NameImage, fail_image, finish_image, image_scope
from nuage.iaas.operations import Shown
from nuage.iaas.site import Site
from nuage.ids import SiteId
from nuage.model.image import Image, ImageState
from nuage.model.infrastructure import NodeRole
from nuage.trust.files import sync_directory

IMAGE_STREAM: Final = "image.read"
CHUNK_BYTES: Final = 256 * 1024
log = structlog.get_logger("images")


class ReadImage(msgspec.Struct, frozen=True):
    """Asks for an image's bytes."""

    sha256: str


class ImageChunk(msgspec.Struct, frozen=True, array_like=True):
    """Bytes at an offset. The last chunk is empty and its offset is the image's size."""

    offset: int
    data: bytes


Fetch = Callable[[ReadImage], AsyncIterator[ImageChunk]]


class ImageFolder:
    """Raw images by SHA-256 in a directory; a file stands there only whole and right."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._coming: dict[str, asyncio.Task[Path]] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob("*.part"):
            leftover.unlink()

    def path(self, sha256: str) -> Path:
        """Return where an image is, or would be."""
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise InvalidRequest("an image is named by 64 hexadecimal digits", field="sha256")
        return self.directory / f"{sha256}.raw"

    async def require(self, sha256: str, fetch: Fetch) -> Path:
        """Return the image's file, fetching it first when it is not here.

        Raises:
            Unavailable: whoever has it cannot be reached.
            CorruptData: what arrived has another hash.
        """
        path = self.path(sha256)
        if path.exists():
            return path
        task = self._coming.get(sha256)
        if task is None:
            task = asyncio.create_task(self._fetch(path, sha256, fetch))
            self._coming[sha256] = task
            task.add_done_callback(lambda _task: self._coming.pop(sha256, None))
        return await asyncio.shield(task)

    async def _fetch(self, path: Path, sha256: str, fetch: Fetch) -> Path:
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                async for chunk in fetch(ReadImage(sha256)):
                    if chunk.data:
                        file.seek(chunk.offset)
                        file.write(chunk.data)
                    else:
                        file.truncate(chunk.offset)
            found = await asyncio.to_thread(_hash_of, part)
            if found != sha256:
                raise CorruptData(f"the image arrived as {found}", where=str(path))
            await asyncio.to_thread(_settle, part, path)
        finally:
            part.unlink(missing_ok=True)
        return path

    async def read(self, sha256: str) -> AsyncIterator[ImageChunk]:
        """Yield an image's data, holes left out, and its size last.

        Raises:
            NotFound: it is not in this folder.
        """
        path = self.path(sha256)
        if not path.exists():
            raise NotFound("image", sha256)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            offset = 0
            while (data := _next_data(descriptor, offset, size)) is not None:
                offset, end = data
                while offset < end:
                    length = min(CHUNK_BYTES, end - offset)
                    chunk = await asyncio.to_thread(os.pread, descriptor, length, offset)
                    yield ImageChunk(offset, chunk)
                    offset += len(chunk)
            yield ImageChunk(size, b"")
        finally:
            os.close(descriptor)


def _next_data(descriptor: int, offset: int, size: int) -> tuple[int, int] | None:
    if offset >= size:
        return None
    try:
        start = os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError:
        return None  # only a hole is left
    return start, os.lseek(descriptor, start, os.SEEK_HOLE)


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settle(part: Path, path: Path) -> None:
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.rename(path)
    sync_directory(path.parent)


class ControllerImages:
    """The image store of a controller (`api.http.ImageSink`)."""

    def __init__(
        self,
        folder: ImageFolder,
        site: Site,
        dispatcher: Dispatcher,
        fetch_from: Callable[[SiteId, ReadImage], AsyncIterator[ImageChunk]],
    ) -> None:
        self._folder = folder
        self._intake = ImageIntake(folder.directory / "incoming")
        self._site = site
        self._dispatcher = dispatcher
        self._fetch_from = fetch_from

    async def receive(
        self, caller: Caller, image_id: str, chunks: AsyncIterator[bytes]
    ) -> Shown[Image]:
        """Take the bytes of an announced image in; qcow2, vmdk or raw, told by its content."""
        image = self._site.index.value(Image, image_id)
        scope = image_scope(self._site, NameImage(image_id, image.iaas_id or ""))
        self._dispatcher.require(caller, "image.write", scope)
        home = self._site.index.home("image", image_id)
        if home != self._site.site_id:
            raise Conflict(f"image {image.name} is taken in at {home}", hint="send it there")
        if image.state is ImageState.READY:
            raise Conflict(f"image {image.name} is complete already")
        try:
            taken = await self._intake.take(chunks, sha256=image.source_sha256)
            sha256 = await asyncio.to_thread(_hash_of, taken.path)
            await asyncio.to_thread(_settle, taken.path, self._folder.path(sha256))
        except NuageError as error:
            await fail_image(self._site, image.image_id, error.message)
            raise
        except OSError as error:  # who sends it is gone, or the disk is full
            await fail_image(self._site, image.image_id, f"its upload broke off: {error}")
            raise
        return await finish_image(
            self._site,
            image.image_id,
            sha256=sha256,
            source_sha256=taken.source_sha256,
            size_bytes=taken.size_bytes,
        )

    def register(self, handlers: Handlers) -> None:
        """Serve images to this site's IO-nodes and to other controllers."""

        @handlers.stream(IMAGE_STREAM, ReadImage, roles={NodeRole.IONODE, NodeRole.CONTROLLER})
        async def read(peer: Peer, ask: ReadImage) -> AsyncIterator[ImageChunk]:
            if peer.identity.role is NodeRole.IONODE:
                await self._folder.require(ask.sha256, self._fetch)
            async for chunk in self._folder.read(ask.sha256):
                yield chunk

    async def _fetch(self, ask: ReadImage) -> AsyncIterator[ImageChunk]:
        sites = [
            site_id
            for image in self._site.index.values(Image)
            if image.sha256 == ask.sha256
            for site_id in image.sites
            if site_id != self._site.site_id
        ]
        for site_id in sites:
            log.info("fetching image", sha256=ask.sha256, peer=site_id)
            async for chunk in self._fetch_from(site_id, ask):
                yield chunk
            return
        raise Unavailable(f"no site has image {ask.sha256}", retry_after_s=5.0)
