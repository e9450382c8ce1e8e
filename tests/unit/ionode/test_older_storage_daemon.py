"""A storage daemon that is older than its agent: they are restarted one after another."""

import asyncio
import json
from pathlib import Path

from nuage.ids import IaasId, VolumeId
from nuage.ionode.disks import DiskPlace
from nuage.ionode.plan import plan
from nuage.ionode.ports import DaemonPorts
from nuage.ionode.storaged import LOG_BYTES_MAX, StoragedDaemon, StoragedOptions, bound_log
from nuage.model.contract import DiskClass, JournalRule
from nuage.model.desired import DaemonWish, ReplicaWish
from nuage.units import MIB

IAAS = IaasId("iaas-1")
VOLUME = VolumeId("vol-1")
WISH = DaemonWish(
    iaas_id=IAAS, label=5, heads=(),
    replicas=(
        ReplicaWish(
            volume_id=VOLUME, iaas_id=IAAS, size_bytes=8 * MIB, journal=JournalRule(window_s=60)
        ),
    ),
)  # fmt: skip


async def answer_as_before(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer `list` as a daemon that knows no `set_retention`."""
    while line := await reader.readline():
        volume = {"volume": VOLUME, "size_bytes": 8 * MIB, "logical_block_bytes": 512}
        volumes = [volume | {"disk": "d0"}]
        answer = {"id": json.loads(line)["id"], "ok": {"volumes": volumes}}
        writer.write(json.dumps(answer).encode() + b"\n")
    writer.close()


async def test_a_daemon_that_does_not_tell_its_retention_is_seen_and_left_with_it(
    tmp_path: Path,
) -> None:
    options = StoragedOptions(
        binary="", disks=(DiskPlace(name="d0", disk_class=DiskClass.SSD, path=tmp_path),),
        run_dir=tmp_path, address="127.0.0.1", tls_cert=tmp_path, tls_key=tmp_path,
        tls_ca=tmp_path, tls_crl=tmp_path, clear_from=tmp_path,
    )  # fmt: skip
    async with await asyncio.start_unix_server(answer_as_before, str(tmp_path / f"{IAAS}.sock")):
        daemon = StoragedDaemon(options, IAAS, DaemonPorts(iscsi=1, replica=2))
        seen = await daemon.seen()
        await daemon.disconnect()
    assert [(v.volume_id, v.journal) for v in seen.volumes] == [(VOLUME, None)]
    assert not plan(WISH, seen, filled=(), told={}, shown={})


def test_a_daemon_that_was_started_without_a_disk_is_told_apart(tmp_path: Path) -> None:
    def daemon_of(*serials: str, lost: tuple[Path, ...] = ()) -> StoragedDaemon:
        disks = tuple(
            DiskPlace(name=f"d{number}", disk_class=DiskClass.SSD, path=tmp_path, serial=serial)
            for number, serial in enumerate(serials)
        )
        options = StoragedOptions(
            binary="", disks=disks, run_dir=tmp_path, address="127.0.0.1", tls_cert=tmp_path,
            tls_key=tmp_path, tls_ca=tmp_path, tls_crl=tmp_path, clear_from=tmp_path,
            lost_bases=lost,
        )  # fmt: skip
        return StoragedDaemon(options, IAAS, DaemonPorts(iscsi=1, replica=2))

    assert daemon_of("a").knows_its_disks(), "an older agent did not note it"
    daemon_of("a", "b").note_disks()
    assert daemon_of("a", "b").knows_its_disks()
    assert daemon_of("a").knows_its_disks(), "one that is away is no reason"
    assert not daemon_of("a", "c").knows_its_disks()
    assert not daemon_of("a", "b", lost=(tmp_path,)).knows_its_disks()


async def refuse_as_before(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as a daemon does that does not know what it is asked."""
    while line := await reader.readline():
        error = {"code": "invalid_request", "message": "unknown variant"}
        writer.write(json.dumps({"id": json.loads(line)["id"], "error": error}).encode() + b"\n")
    writer.close()


async def test_a_daemon_that_keeps_its_receipts_for_ever_is_left_to_it(tmp_path: Path) -> None:
    options = StoragedOptions(
        binary="", disks=(DiskPlace(name="d0", disk_class=DiskClass.SSD, path=tmp_path),),
        run_dir=tmp_path, address="127.0.0.1", tls_cert=tmp_path, tls_key=tmp_path,
        tls_ca=tmp_path, tls_crl=tmp_path, clear_from=tmp_path,
    )  # fmt: skip
    async with await asyncio.start_unix_server(refuse_as_before, str(tmp_path / f"{IAAS}.sock")):
        daemon = StoragedDaemon(options, IAAS, DaemonPorts(iscsi=1, replica=2))
        await daemon.receipts_taken(7)
        await daemon.disconnect()


def test_the_log_of_a_daemon_that_runs_for_years_stays_short(tmp_path: Path) -> None:
    path = tmp_path / f"{IAAS}.log"
    bound_log(path)
    with path.open("ab", buffering=0) as daemon:
        for number in range(3):
            daemon.write(b"%d\n" % number + bytes(LOG_BYTES_MAX))
            bound_log(path)
            daemon.write(b"after\n")
            bound_log(path)
    assert path.read_bytes() == b"after\n"
    assert path.with_suffix(".log.1").stat().st_size < 1.1 * LOG_BYTES_MAX
