"""Each IaaS's storage daemon is a user of its own, who reads nothing of another's."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.contract.ionode.test_storage_daemon_contract import (
    BINARY,
    REPLICA,
    disks_under,
    end_storaged,
    serving,
)
from tests.contract.ionode.throwaway_tls import TlsFiles, write_tls

from nuage.ids import IaasId
from nuage.ionode.owner import closed_to_others, open_to_daemons
from nuage.ionode.ports import choose_ports, taken_ports
from nuage.ionode.storaged import StoragedDaemon, StoragedOptions
from nuage.trust.copies import TrustCopies

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="missing: root"),
    pytest.mark.skipif(not BINARY.exists(), reason="not built: run `make setup`"),
]


@dataclass
class Place:
    """A node's folder, which everybody may pass: pytest's own are root's alone."""

    folder: Path
    tls: TlsFiles
    started: list[StoragedDaemon] = field(default_factory=list)

    async def daemon(self, iaas: str) -> StoragedDaemon:
        """Start a daemon, or find it."""
        run_dir = self.folder / "run"
        options = StoragedOptions(
            binary=str(BINARY), disks=disks_under(self.folder / "data"), run_dir=run_dir,
            address="127.0.0.1", tls_cert=self.tls.chain, tls_key=self.tls.key,
            tls_ca=self.tls.root, tls_crl=self.tls.lists, own_user=True,
            clear_from=run_dir / "clear-from",
        )  # fmt: skip
        ports = choose_ports(run_dir / f"{iaas}.ports", taken_ports(run_dir))
        daemon = StoragedDaemon(options, IaasId(iaas), ports)
        self.started.append(daemon)
        await daemon.start()
        return daemon

    async def end(self) -> None:
        """End all that was started."""
        await end_storaged(self.folder)
        for daemon in self.started:
            await daemon.disconnect()
        await asyncio.sleep(0)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="nuage-users-"))
    folder.chmod(0o711)
    for disk in disks_under(folder / "data"):
        open_to_daemons(disk.path)
    made = Place(folder, write_tls(folder / "tls"))
    try:
        yield made
    finally:
        await made.end()
        shutil.rmtree(folder)


def owners(top: Path) -> set[int]:
    return {path.lstat().st_uid for path in (top, *top.rglob("*"))}


def reads(path: Path, user: int) -> bool:
    """Tell whether `user` can read a file, or list a directory."""
    word = "ls" if path.is_dir() else "cat"
    done = subprocess.run([word, path], user=user, group=user, capture_output=True, check=False)
    return done.returncode == 0


async def test_one_tenants_daemon_reads_nothing_of_anothers(place: Place) -> None:
    users, folder = {}, place.folder
    for iaas in ("iaas-1", "iaas-2"):
        await (await place.daemon(iaas)).create(replace(REPLICA, iaas_id=IaasId(iaas)))
        (pid,) = serving(folder / "data/d0" / iaas)
        users[iaas] = Path(f"/proc/{pid}").stat().st_uid
        assert owners(folder / "data/d0" / iaas) == {users[iaas]}
    one, other = users.values()
    assert len({0, one, other}) == 3
    for kept in (folder / "data/d0/iaas-1", folder / "run/iaas-1.trust/daemon.key"):
        assert reads(kept, one)
        assert not reads(kept, other)


async def test_what_root_kept_is_given_to_the_daemons_user(place: Place) -> None:
    kept = place.folder / "data/d0/iaas-1"
    await (await place.daemon("iaas-1")).create(REPLICA)
    await place.end()
    for path in (kept, *kept.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)
    again = await place.daemon("iaas-1")
    assert [volume.failure for volume in (await again.seen()).volumes] == [""]
    assert 0 not in owners(kept)


async def test_a_daemon_whose_user_cannot_get_there_runs_as_root(place: Place) -> None:
    data = place.folder / "data"
    data.chmod(0o700)
    assert closed_to_others(data / "d0") == data
    await place.daemon("iaas-1")
    (pid,) = serving(data / "d0/iaas-1")
    assert Path(f"/proc/{pid}").stat().st_uid == 0


def test_copies_of_a_key_follow_it_and_stay_private(tmp_path: Path) -> None:
    key = tmp_path / "daemon.key"
    key.write_text("old")
    copies = TrustCopies(tmp_path / "copies", (key, tmp_path / "missing.pem"), 520_001)
    copies.refresh()
    before = copies.path(key).stat()
    copies.refresh()
    assert copies.path(key).stat().st_ino == before.st_ino
    key.unlink()
    key.write_text("new one")
    copies.refresh()
    found = copies.path(key)
    assert found.read_text() == "new one"
    assert (found.stat().st_uid, found.stat().st_mode & 0o777) == (520_001, 0o600)
    assert [path.name for path in copies.directory.iterdir()] == ["daemon.key"]
