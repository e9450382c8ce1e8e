"""Several controllers of one site on one etcd."""

import asyncio
from pathlib import Path

from tests.contract.catalogue.catalogue_makers import MARNE, vm
from tests.contract.etcd.etcd_process import etcd_cluster, patient_client

from nuage.catalogue.etcd import EtcdCatalogue
from nuage.catalogue.store import Put
from nuage.clock import SystemClock
from nuage.errors import Conflict, NuageError
from nuage.model.vm import Vm


async def test_controllers_write_one_line_of_revisions_and_see_each_other(tmp_path: Path) -> None:
    async with etcd_cluster(tmp_path) as (member,):
        clients = [patient_client(member.client_url) for _ in range(3)]
        controllers = [
            await EtcdCatalogue.open(client, site=MARNE, clock=SystemClock()) for client in clients
        ]
        await controllers[0].write([Put(value=vm(0))])

        async def count_up(controller: EtcdCatalogue, times: int) -> None:
            """Read, change, write with the revision read; again on a conflict."""
            done = 0
            while done < times:
                record = await controller.find("vm", "vm-0")
                if record is None:
                    await controller.wait_beyond(controller.revision)
                    continue
                before = record.value
                assert isinstance(before, Vm)
                after = vm(0, name=f"web-{int(before.name.split('-')[1]) + 1}")
                try:
                    await controller.write([Put(value=after, expected=record.revision)])
                    done += 1
                except Conflict as error:
                    await controller.wait_beyond(error.revision - 1)

        await asyncio.gather(*(count_up(controller, 15) for controller in controllers))
        for controller in controllers:
            while controller.revision < 46:
                await controller.wait_beyond(controller.revision)
            assert (await controller.get("vm", "vm-0")).value == vm(0, name="web-45")
        assert len({controller.all_records() for controller in controllers}) == 1
        fresh = await EtcdCatalogue.open(clients[0], site=MARNE, clock=SystemClock())
        assert fresh.all_records() == controllers[0].all_records()
        assert fresh.incarnation == controllers[1].incarnation
        for controller in [*controllers, fresh]:
            await controller.close()
        for client in clients:
            await client.close()


async def test_a_lost_member_of_three_loses_no_acknowledged_write(tmp_path: Path) -> None:
    async with etcd_cluster(tmp_path, size=3) as members:
        client = patient_client(*(member.client_url for member in members))
        catalogue = await EtcdCatalogue.open(client, site=MARNE, clock=SystemClock())
        acked: set[str] = set()

        async def write(first: int) -> None:
            for number in range(first, first + 20):
                try:
                    (record,) = await catalogue.write([Put(value=vm(number))])
                except NuageError:  # nothing is promised of it
                    continue
                acked.add(record.id)

        writing = asyncio.gather(*(write(first * 100) for first in range(8)))
        await catalogue.wait_beyond(20)
        await members[0].kill()
        await writing
        fresh = await EtcdCatalogue.open(client, site=MARNE, clock=SystemClock())
        stored = {record.id for record in await fresh.list("vm")}
        assert acked <= stored
        assert len(acked) == 160
        await fresh.close()
        await catalogue.close()
        await client.close()
