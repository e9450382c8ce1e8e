"""Taking images in: what comes out, what is refused, and that nothing is left of a refusal."""

import asyncio
import hashlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nuage.daemon.image_intake import ImageIntake
from nuage.errors import InvalidRequest, QuotaExceeded

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
def intake(tmp_path: Path) -> ImageIntake:
    return ImageIntake(tmp_path / "incoming")


async def chunks(source: Path) -> AsyncIterator[bytes]:
    content = source.read_bytes()
    for begin in range(0, len(content), 1 << 20):
        yield content[begin : begin + (1 << 20)]


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, stdout=subprocess.DEVNULL)


def make(kind: str, source: Path, *options: str) -> Path:
    target = source.with_suffix(f".{kind}")
    qemu_img("convert", "-f", "raw", "-O", kind, *options, source, target)
    return target


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk"])
async def test_every_format_becomes_the_same_raw_disk(
    intake: ImageIntake, raw: Path, kind: str
) -> None:
    source = raw if kind == "raw" else make(kind, raw)
    image = await intake.take(chunks(source))
    assert image.path.read_bytes() == disk_bytes()
    assert image.source_sha256 == sha256(source)
    assert image.size_bytes == SIZE_BYTES
    assert image.path.stat().st_blocks * 512 < SIZE_BYTES // 4  # sparse


async def test_an_image_that_is_not_the_one_announced_is_refused(
    intake: ImageIntake, raw: Path, tmp_path: Path
) -> None:
    assert (await intake.take(chunks(raw), sha256=sha256(raw))).source_sha256 == sha256(raw)
    with pytest.raises(InvalidRequest, match=f"has SHA-256 {sha256(raw)}, not {'0' * 64}"):
        await intake.take(chunks(raw), sha256="0" * 64)
    raw.write_bytes(b"")
    with pytest.raises(InvalidRequest, match="empty"):
        await intake.take(chunks(raw))
    assert len(list((tmp_path / "incoming").iterdir())) == 1  # the one that was taken in


async def test_images_that_come_at_once_do_not_meet(
    intake: ImageIntake, raw: Path, tmp_path: Path
) -> None:
    """One that ends, well or refused, takes nothing away from one that is still on its way."""
    evil = raw.with_name("evil.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", raw, "-F", "raw", evil)
    others_are_done = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        content = raw.read_bytes()
        yield content[: SIZE_BYTES // 2]
        await others_are_done.wait()
        yield content[SIZE_BYTES // 2 :]

    last = asyncio.create_task(intake.take(slow()))
    first = await intake.take(chunks(raw))
    with pytest.raises(InvalidRequest):
        await intake.take(chunks(evil))
    others_are_done.set()
    assert (await last).path.read_bytes() == first.path.read_bytes() == disk_bytes()
    assert set((tmp_path / "incoming").iterdir()) == {first.path, (await last).path}


async def test_an_image_with_a_backing_file_is_refused(intake: ImageIntake, raw: Path) -> None:
    """Else a tenant could read any file of the node through the conversion."""
    evil = raw.with_name("evil.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", raw, "-F", "raw", evil)
    with pytest.raises(InvalidRequest, match="backing file"):
        await intake.take(chunks(evil))


async def test_an_image_with_an_external_data_file_is_refused(
    intake: ImageIntake, raw: Path
) -> None:
    evil = make("qcow2", raw, "-o", f"data_file={raw.with_name('outside')}")
    with pytest.raises(InvalidRequest, match="external data file"):
        await intake.take(chunks(evil))


async def test_a_vmdk_that_describes_another_file_is_refused(
    intake: ImageIntake, raw: Path
) -> None:
    evil = raw.with_name("evil.vmdk")
    evil.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 16384 FLAT "{raw}" 0\n'
    )
    with pytest.raises(InvalidRequest, match=r"refused|cannot be read"):
        await intake.take(chunks(evil))


async def test_an_image_larger_than_the_bound_is_refused(tmp_path: Path) -> None:
    small = ImageIntake(tmp_path / "incoming", virtual_bytes_max=1 << 20)
    huge = tmp_path / "huge.qcow2"
    qemu_img("create", "-f", "qcow2", huge, "2G")
    with pytest.raises(InvalidRequest, match="at most"):
        await small.take(chunks(huge))
    fat = tmp_path / "fat.raw"
    fat.write_bytes(bytes(2 << 20))
    with pytest.raises(QuotaExceeded):
        await small.take(chunks(fat))
    assert list((tmp_path / "incoming").iterdir()) == []


async def test_a_stream_that_breaks_leaves_nothing(intake: ImageIntake, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await intake.take(broken())
    assert list((tmp_path / "incoming").iterdir()) == []
