"""Importing images: what is kept, what is refused, what goes on after a cut."""

import hashlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from nuage.errors import InvalidRequest, NotFound, QuotaExceeded, Unavailable
from nuage.ionode.images import ImageCache, Progress

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
pytestmark = needs_qemu_img
SIZE_BYTES = 8 << 20


def disk_bytes() -> bytes:
    return b"\xebboot" + bytes(1 << 20) + b"data" * 1024 + bytes(SIZE_BYTES - (1 << 20) - 4101)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(disk_bytes())
    return path


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache")


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, stdout=subprocess.DEVNULL)


def make(kind: str, source: Path, *options: str) -> Path:
    target = source.with_suffix(f".{kind}")
    qemu_img("convert", "-f", "raw", "-O", kind, *options, source, target)
    return target


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk"])
async def test_every_format_becomes_the_same_raw_disk(
    cache: ImageCache, raw: Path, kind: str
) -> None:
    source = raw if kind == "raw" else make(kind, raw)
    image = await cache.import_file(source, sha256=sha256(source))
    assert image.path.read_bytes() == disk_bytes()
    assert image.source_format == kind
    assert image.size_bytes == SIZE_BYTES
    assert image.allocated_bytes < SIZE_BYTES // 4  # sparse
    assert cache.find(sha256(source)) == image
    assert cache.images() == (image,)


async def test_progress_names_its_step_and_never_goes_back(cache: ImageCache, raw: Path) -> None:
    told: list[Progress] = []
    await cache.import_file(raw, tell=told.append)
    steps = [progress.step for progress in told]
    assert list(dict.fromkeys(steps)) == ["download", "verify", "convert"]
    for step in dict.fromkeys(steps):
        done = [progress.done_bytes for progress in told if progress.step == step]
        assert done == sorted(done)
        assert done[-1] == SIZE_BYTES


async def test_an_image_that_is_not_the_one_promised_is_refused(
    cache: ImageCache, raw: Path
) -> None:
    with pytest.raises(InvalidRequest, match="promised") as caught:
        await cache.import_file(raw, sha256="0" * 64)
    assert caught.value.field == "sha256"
    assert cache.images() == ()


async def test_an_image_with_a_backing_file_is_refused(cache: ImageCache, raw: Path) -> None:
    """Else a tenant could read any file of the node through the conversion."""
    evil = raw.with_name("evil.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", raw, "-F", "raw", evil)
    with pytest.raises(InvalidRequest, match="backing file"):
        await cache.import_file(evil)


async def test_an_image_with_an_external_data_file_is_refused(cache: ImageCache, raw: Path) -> None:
    evil = make("qcow2", raw, "-o", f"data_file={raw.with_name('outside')}")
    with pytest.raises(InvalidRequest, match="external data file"):
        await cache.import_file(evil)


async def test_a_vmdk_that_describes_another_file_is_refused(cache: ImageCache, raw: Path) -> None:
    evil = raw.with_name("evil.vmdk")
    evil.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 16384 FLAT "{raw}" 0\n'
    )
    with pytest.raises(InvalidRequest, match=r"refused|cannot be read"):
        await cache.import_file(evil)


async def test_an_image_larger_than_the_bound_is_refused(tmp_path: Path) -> None:
    small = ImageCache(tmp_path / "cache", virtual_bytes_max=1 << 20)
    huge = tmp_path / "huge.qcow2"
    qemu_img("create", "-f", "qcow2", huge, "2G")
    with pytest.raises(InvalidRequest, match="at most"):
        await small.import_file(huge)
    fat = tmp_path / "fat.raw"
    fat.write_bytes(bytes(2 << 20))
    with pytest.raises(QuotaExceeded):
        await small.import_file(fat)
    assert list((tmp_path / "cache/part").iterdir()) == []


async def test_a_missing_file_is_not_found(cache: ImageCache, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await cache.import_file(tmp_path / "none")


async def test_a_name_that_is_no_checksum_is_refused(cache: ImageCache) -> None:
    with pytest.raises(InvalidRequest):
        cache.find("../../etc/passwd")


async def test_a_stream_that_breaks_leaves_nothing(cache: ImageCache, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await cache.import_stream(broken())
    assert list((tmp_path / "cache/part").iterdir()) == []


async def test_collecting_keeps_what_is_used(cache: ImageCache, raw: Path) -> None:
    first = await cache.import_file(raw)
    second = await cache.import_file(make("qcow2", raw))
    assert cache.collect(frozenset({first.sha256})) == (second.sha256,)
    assert cache.images() == (first,)


async def test_a_download_that_was_cut_goes_on_where_it_was(cache: ImageCache, raw: Path) -> None:
    body = raw.read_bytes()
    asked: list[str] = []

    async def serve(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Range", ""))
        begin = request.http_range.start or 0
        answer = web.StreamResponse(status=206 if begin else 200)
        answer.content_length = len(body) - begin
        await answer.prepare(request)
        if begin:
            await answer.write(body[begin:])
            return answer
        await answer.write(body[: 3 << 20])
        assert request.transport is not None
        request.transport.close()
        return answer

    application = web.Application()
    application.router.add_get("/disk", serve)
    async with TestServer(application) as server, aiohttp.ClientSession() as session:
        url = str(server.make_url("/disk"))
        with pytest.raises(Unavailable, match="cut"):
            await cache.import_url(url, sha256=sha256(raw), session=session)
        image = await cache.import_url(url, sha256=sha256(raw), session=session)
        again = await cache.import_url(url, sha256=sha256(raw), session=session)
    assert image.path.read_bytes() == body
    assert again == image
    assert asked[0] == ""
    assert asked[1].startswith("bytes=")
    assert len(asked) == 2


async def test_only_web_addresses_are_fetched(cache: ImageCache) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(InvalidRequest, match="http"):
            await cache.import_url("file:///etc/passwd", sha256="0" * 64, session=session)
