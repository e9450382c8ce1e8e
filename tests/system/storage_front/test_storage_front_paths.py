"""A host that is no VM has a path to each copy: a controller's wishes, agents, real daemons."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.system.storage_front.host_paths import (
    HOST,
    IAAS,
    IQN,
    PATIENCE_S,
    SECRETS,
    VOLUME,
    Controller,
    IoNode,
)
from tests.system.storage_front.storage_front_daemon import MIB, Daemon, need

from nuage.iaas.wishes import host_login, target_login
from nuage.model.contract import AckPolicy, JournalRule
from nuage.model.volume import Volume, VolumeState

pytestmark = pytest.mark.system


@pytest.fixture
async def controller(three_sites: list[Daemon]) -> AsyncIterator[Controller]:
    made = Controller([IoNode(daemon) for daemon in three_sites])
    yield made
    await made.close()


def qemu_io(portal: str, *acts: str, initiator: str = HOST.initiator, login: str = "") -> bool:
    """Act at one portal as a host with libiscsi; tell whether all of it was done."""
    volume = Volume(
        volume_id=VOLUME, iaas_id=IAAS, name="data", size_bytes=MIB, journal=JournalRule(),
        ack_policy=AckPolicy.LOCAL, state=VolumeState.READY,
        host=replace(HOST, login=login or HOST.login),
    )  # fmt: skip
    chap = host_login(SECRETS, volume)
    image = (
        f"driver=iscsi,transport=tcp,portal={portal},target={IQN},lun=0,"
        f"user={chap.user},password-secret=s,initiator-name={initiator}"
    )
    words = [word for act in acts for word in ("-c", act)]
    command = ["qemu-io", "--object", f"secret,id=s,data={chap.secret}", "--image-opts", image]
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=90, check=False
    )
    told = (done.stdout + done.stderr).lower()
    return done.returncode == 0 and "failed" not in told and "error" not in told


async def act(portal: str, *acts: str, **words: str) -> bool:
    return await asyncio.to_thread(qemu_io, portal, *acts, **words)


async def test_a_hosts_other_path_serves_once_the_heads_node_is_lost(
    controller: Controller,
) -> None:
    need("qemu-io")
    first, *others = await controller.until("active/optimized", "standby", "standby")
    assert await act(first, "write -P 7 0 1M", "flush")
    for portal in others:
        assert not await act(portal, "read -P 7 0 4k")
    lost = controller.volume.head
    assert lost is not None
    await controller.lose(lost)
    second, *_ = await controller.until("active/optimized", "standby")
    assert second == others[0]
    assert await act(second, "read -P 7 0 1M", "write -P 8 0 4k", "flush", "read -P 8 0 4k")
    head = controller.nodes[controller.volume.head or lost].daemon
    assert "iscsi_login_refused" not in head.log
    assert not await act(second, "read 0 4k", initiator="iqn.2026-01.org.example:another")
    assert not await act(second, "read 0 4k", login="host-2")
    assert head.log.count("iscsi_login_refused") >= 2


async def test_a_host_is_shown_the_targets_proof_on_every_path_once_its_attachment_is_mutual(
    controller: Controller,
) -> None:
    need("iscsi-inq")
    portals = await controller.until("active/optimized", "standby", "standby")
    mutual = replace(controller.volume, host=replace(HOST, mutual=True))
    login, own = host_login(SECRETS, mutual), target_login(SECRETS, mutual)
    assert own is not None

    async def is_trusted(portal: str, secret: str = own.secret) -> bool:
        secrets = {
            "LIBISCSI_CHAP_USERNAME": login.user,
            "LIBISCSI_CHAP_PASSWORD": login.secret,
            "LIBISCSI_CHAP_TARGET_USERNAME": own.user,
            "LIBISCSI_CHAP_TARGET_PASSWORD": secret,
        }
        process = await asyncio.create_subprocess_exec(
            "iscsi-inq", "-i", HOST.initiator, f"iscsi://{portal}/{IQN}/0",
            env=os.environ | secrets, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        told, _ = await process.communicate()
        return process.returncode == 0 or b"NOT READY" in told  # logged in where no head is

    assert not [portal for portal in portals if await is_trusted(portal)]
    controller.save(mutual)
    async with asyncio.timeout(PATIENCE_S):
        for portal in portals:
            while not await is_trusted(portal):
                await controller.step()
    assert not [portal for portal in portals if await is_trusted(portal, "0" * 32)]


async def test_a_host_that_has_the_volume_no_more_is_shown_it_nowhere(
    controller: Controller,
) -> None:
    need("qemu-io")
    portals = await controller.until("active/optimized", "standby", "standby")
    controller.save(replace(controller.volume, host=None))

    async def shown() -> list[bool]:
        seen = [await node.storaged.seen() for node in controller.nodes.values()]
        return [volume.stands_by for daemon in seen for volume in daemon.volumes]

    async with asyncio.timeout(PATIENCE_S):
        while any(await shown()):
            await controller.step()
        while await act(portals[0], "read 0 4k"):
            await controller.step()
    for portal in portals[1:]:
        assert not await act(portal, "read 0 4k")
