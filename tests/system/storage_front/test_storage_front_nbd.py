"""The NBD door with libnbd, QEMU and fio."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.storage_front.storage_front_daemon import IQN, MIB, Daemon, need

pytestmark = pytest.mark.system


def serve(daemon: Daemon) -> str:
    """Open a volume at both doors; return its NBD URL."""
    daemon.ask("create_volume", volume="v", size_bytes=64 * MIB, logical_block_bytes=512)
    daemon.ask("open_head", volume="v", epoch=1, nbd="v", iqn=IQN, ack="memory")
    return f"nbd://127.0.0.1:{daemon.nbd}/v"


def run(*command: str) -> str:
    """Return what a program prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_libnbd_sees_what_the_door_offers(daemons: Callable[[str], Daemon]) -> None:
    need("nbdinfo")
    url = serve(daemons("one"))
    (export,) = json.loads(run("nbdinfo", "--json", url))["exports"]
    assert export["export-size"] == 64 * MIB
    assert export["block_size_minimum"] == 512
    for able in ("can_multi_conn", "can_trim", "can_zero", "can_flush", "can_fua", "can_cache"):
        assert export[able] is True, able
    assert "base:allocation" in export["contexts"]


def test_a_sparse_image_is_copied_in_and_out_and_keeps_its_holes(
    daemons: Callable[[str], Daemon], tmp_path: Path
) -> None:
    need("nbdcopy")
    url = serve(daemons("one"))
    image, back = tmp_path / "image", tmp_path / "back"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(5 * MIB)
        file.write(bytes(range(256)) * 4096)
    run("nbdcopy", str(image), url)
    run("nbdcopy", url, str(back))
    assert image.read_bytes() == back.read_bytes()
    extents = json.loads(run("nbdinfo", "--json", "--map", url))
    mapped = sum(extent["length"] for extent in extents if extent["type"] == 0)
    assert mapped == MIB


def test_what_one_door_writes_the_other_reads(daemons: Callable[[str], Daemon]) -> None:
    need("qemu-io")
    daemon = daemons("one")
    url = serve(daemon)
    run("qemu-io", "-f", "raw", url, "-c", "write -P 9 1M 64k", "-c", "flush")
    run("qemu-io", "-f", "raw", daemon.url(), "-c", "read -P 9 1M 64k")


@pytest.mark.parametrize("door", ["nbd", "iscsi"])
def test_qemus_differential_run_finds_no_difference(
    daemons: Callable[[str], Daemon], tmp_path: Path, door: str
) -> None:
    need("qemu-io")
    daemon = daemons("one")
    serve(daemon)
    reference = tmp_path / "reference"
    with reference.open("wb") as file:
        file.truncate(64 * MIB)
    test = {
        "nbd": f"test.driver=nbd,test.host=127.0.0.1,test.port={daemon.nbd},test.export=v",
        "iscsi": f"test.driver=iscsi,test.transport=tcp,test.portal=127.0.0.1:{daemon.iscsi[0]},"
        f"test.target={IQN},test.lun=0",
    }[door]
    options = f"driver=blkverify,{test},raw.driver=file,raw.filename={reference}"
    acts = ["write -P 1 0 1M", "write -P 2 512 3k", "flush"]
    acts += ["write -P 3 1023k 2k", "read 0 2M", "write -P 4 7M 512", "read 6M 2M"]
    run("qemu-io", "--image-opts", options, *(word for act in acts for word in ("-c", act)))


def test_fio_verifies_what_it_wrote_over_a_unix_socket(
    daemons: Callable[[str], Daemon], tmp_path: Path
) -> None:
    need("fio")
    daemon = daemons("one")
    serve(daemon)
    uri = f"nbd+unix:///v?socket={daemon.folder / 'nbd'}"
    run(
        "fio", "--name=v", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k",
        "--size=32M", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1",
        "--verify_backlog=1024", "--fsync=64", f"--aux-path={tmp_path}",
    )  # fmt: skip
