"""A storage daemon that is older than its agent: they are restarted one after another."""

import asyncio
import json
from pathlib import Path

from nuage.ids import IaasId, VolumeId
from nuage.ionode.disks import DiskPlace
from nuage.ionode.plan import plan
from nuage.ionode.ports import DaemonPorts
from nuage.ionode.storaged import StoragedDaemon, StoragedOptions
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
        volumes = [{"volume": VOLUME, "size_bytes": 8 * MIB, "disk": "d0"}]
        answer = {"id": json.loads(line)["id"], "ok": {"volumes": volumes}}
        writer.write(json.dumps(answer).encode() + b"\n")
    writer.close()


async def test_a_daemon_that_does_not_tell_its_retention_is_seen_and_left_with_it(
    tmp_path: Path,
) -> None:
    options = StoragedOptions(
        binary="", disks=(DiskPlace(name="d0", disk_class=DiskClass.SSD, path=tmp_path),),
        run_dir=tmp_path, address="127.0.0.1", tls_cert=tmp_path, tls_key=tmp_path,
        tls_ca=tmp_path, tls_crl=tmp_path,
    )  # fmt: skip
    async with await asyncio.start_unix_server(answer_as_before, str(tmp_path / f"{IAAS}.sock")):
        daemon = StoragedDaemon(options, IAAS, DaemonPorts(iscsi=1, replica=2))
        seen = await daemon.seen()
        await daemon.disconnect()
    assert [(v.volume_id, v.journal) for v in seen.volumes] == [(VOLUME, None)]
    assert not plan(WISH, seen, filled=(), told={}, shown={})
