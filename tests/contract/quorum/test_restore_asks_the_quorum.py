"""A back-up that is restored without asking every site knows what went elsewhere since."""

from dataclasses import replace
from pathlib import Path

import msgspec
from tests.contract.catalogue.catalogue_makers import LYON, MARNE, vm
from tests.contract.etcd.etcd_process import etcd_cluster
from tests.unit.daemon.test_backup import NOW_S, Hurried, a_site, configured, put

from nuage.catalogue.snapshot import read_catalogue
from nuage.daemon.backup import make_backup
from nuage.daemon.joining import PEERS_FILE
from nuage.daemon.quorum import MEMBERS_FILE, members_of
from nuage.daemon.restore import restore
from nuage.etcd.client import EtcdClient
from nuage.model.vm import Vm, VmState
from nuage.quorum.etcd import EtcdQuorum
from nuage.quorum.model import LeaseTiming
from nuage.trust.files import write_atomically

TIMING = LeaseTiming(ttl_s=60.0)


async def test_a_vm_that_went_elsewhere_since_is_let_go_and_no_other(tmp_path: Path) -> None:
    clock = Hurried(NOW_S)
    old = await a_site(tmp_path / "old", clock)
    await put(old, clock, *(replace(vm(number), state=VmState.RUNNING) for number in range(1, 5)))
    async with etcd_cluster(tmp_path, size=1) as (member,):
        client = EtcdClient([member.client_url])
        marne, lyon = (EtcdQuorum(site, client, timing=TIMING) for site in (MARNE, LYON))
        for quorum in (marne, lyon):
            await quorum.renew_site_lease(quorum.site)
        ids = [f"vm-{number}" for number in range(1, 4)]
        for id in ids:
            await marne.claim("vm", id, MARNE, expected_epoch=0)
        await marne.promise("vm", ids[0], owner=MARNE, heir=LYON, expected_epoch=1)
        await lyon.inherit("vm", ids[0], owner=MARNE, heir=LYON, expected_epoch=1)
        await marne.release("vm", ids[1], owner=MARNE, expected_epoch=1)
        members = members_of(old.state_dir)
        members = replace(members, client_urls=(*members.client_urls, member.client_url))
        write_atomically(old.state_dir / MEMBERS_FILE, msgspec.json.encode(members))
        write_atomically(old.state_dir / PEERS_FILE, msgspec.json.encode({LYON: "127.0.0.1:1"}))
        await make_backup(old, tmp_path / "b", clock)
        lines: list[str] = []
        new = configured(tmp_path / "new")
        await restore(new, tmp_path / "b", clock, without=[LYON], say=lines.append)
        await client.close()
    assert "the quorum: 2 VMs have gone elsewhere since, and are not started here" in lines
    found = read_catalogue(new.state_dir / "catalogue.db", MARNE).records
    let_go = {r.id for r in found if isinstance(r.value, Vm) and r.value.is_let_go}
    assert let_go == set(ids[:2]), "what has an owner here, or none, goes on here"
