"""A controller's wishes, agents and real daemons: how a host that is no VM has its paths."""

import asyncio
from dataclasses import replace
from pathlib import Path

from tests.system.storage_front.storage_front_daemon import MIB, Daemon
from tests.unit.iaas.iaas_makers import datacenter, iaas, record

from nuage.clock import SystemClock
from nuage.errors import NotFound
from nuage.iaas.epochs import FIRST_EPOCH, next_local
from nuage.iaas.hosts import paths_of
from nuage.iaas.index import FederationIndex
from nuage.iaas.observe import Save, ionode_acts, node_status
from nuage.iaas.wishes import Leave, WishContext, ionode_wish
from nuage.ids import IaasId, NodeId, SiteId, VolumeId
from nuage.ionode.agent import IonodeAgent, IonodeOptions
from nuage.ionode.disks import DiskPlace
from nuage.ionode.ports import DaemonPorts
from nuage.ionode.storaged import StoragedDaemon, StoragedOptions
from nuage.model.contract import AckPolicy, DiskClass, JournalRule
from nuage.model.desired import DaemonWish
from nuage.model.infrastructure import portal_group_of
from nuage.model.volume import OutsideHost, ReplicaPlace, Volume, VolumeState
from nuage.storage.heads import next_head
from nuage.trust.shared_secrets import SharedSecrets

IAAS, VOLUME = IaasId("iaas-1"), VolumeId("vol-0123456789abcdef")
HOST = OutsideHost(initiator="iqn.2026-01.org.example:host", login="host-1")
IQN = "iqn.2026-01.cloud.nuage:data"
SIZE_BYTES = 64 * MIB
SECRETS = SharedSecrets({0: b"k" * 32})
PATIENCE_S = 60.0


class IoNode:
    """An IO-node's agent in this process, and its storage daemon beside it."""

    def __init__(self, daemon: Daemon) -> None:
        assert daemon.tls is not None
        self.daemon = daemon
        self.node_id = NodeId(f"{daemon.folder.name}-io1")
        self.site_id = SiteId(daemon.folder.name)
        daemon.stop()
        daemon.group = portal_group_of(self.node_id)
        daemon.start()
        (daemon.folder / f"{IAAS}.sock").symlink_to(daemon.folder / "control")
        tls = daemon.tls.folder
        options = StoragedOptions(
            binary=str(daemon.binary), run_dir=daemon.folder, address="127.0.0.1",
            disks=(DiskPlace(name="d0", disk_class=DiskClass.NVME, path=daemon.folder),),
            tls_cert=tls / "cert.pem", tls_key=tls / "key.pem", tls_ca=tls / "ca.pem",
            tls_crl=tls / "crl.pem", clear_from=tls / "clear-from", portal_group=daemon.group,
        )  # fmt: skip
        ports = DaemonPorts(iscsi=daemon.iscsi[0], replica=daemon.replica)
        self.storaged = StoragedDaemon(options, IAAS, ports)
        self.agent = IonodeAgent(
            IonodeOptions(
                node_id=self.node_id, site_id=self.site_id, state_dir=daemon.folder,
                disks=options.disks,
            ),
            open_daemon=self._open, fetch_image=_no_image, clock=SystemClock(),
        )  # fmt: skip

    async def _open(self, _wish: DaemonWish) -> StoragedDaemon:
        await self.storaged.start()
        return self.storaged


async def _no_image(sha256: str) -> Path:
    raise NotFound("image", sha256)


class Controller:
    """What a controller makes of records and reports; the records are all of one site's."""

    def __init__(self, nodes: list[IoNode], host: OutsideHost = HOST) -> None:
        self.nodes = {node.node_id: node for node in nodes}
        self.index = FederationIndex(SiteId("marne"))
        self._revision = 0
        places = tuple(ReplicaPlace(node_id=n.node_id, site_id=n.site_id) for n in nodes)
        self.index.put(record(iaas()))
        for node in nodes:
            self.index.put(record(datacenter(node.site_id)))
        self.save(
            Volume(
                volume_id=VOLUME, iaas_id=IAAS, name="data", size_bytes=SIZE_BYTES,
                ack_policy=AckPolicy.ANY_2_OF_3, journal=JournalRule(), host=host,
                state=VolumeState.CREATING, replicas=places, head=places[0].node_id,
                epoch=FIRST_EPOCH, iqn=IQN,
            )
        )  # fmt: skip
        self._context = WishContext(
            index=self.index, secrets=SECRETS, lease_until_s=lambda _vm: 0.0,
            leave=lambda _vm: Leave.NONE,
        )  # fmt: skip

    @property
    def volume(self) -> Volume:
        return self.index.value(Volume, VOLUME)

    def save(self, volume: Volume) -> None:
        self.index.put(replace(record(volume), home=SiteId("marne"), epoch=volume.epoch))

    async def step(self) -> None:
        """Tell each node what it shall do, and take in what it says."""
        self._revision += 1
        for node in self.nodes.values():
            await node.agent.take_wish(ionode_wish(self._context, node.node_id, self._revision))
            await node.agent.step()
            report = node.agent.report()
            acts = ionode_acts(self.index, report)
            acts += node_status(self.index, node.node_id, connected=True, now_s=0.0, ionode=report)
            for act in acts:
                assert isinstance(act, Save)
                if isinstance(act.value, Volume):
                    self.save(act.value)
                else:
                    self.index.put(record(act.value))

    async def until(self, *states: str) -> list[str]:
        """Work until the paths, that of the head first, have these states; return their portals."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await self._are(list(states)):
                    await self.step()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            logs = [node.daemon.log[-1500:] for node in self.nodes.values()]
            raise AssertionError((paths_of(self.index, self.volume), *logs)) from None
        return [path.portal for path in paths_of(self.index, self.volume)]

    async def _are(self, states: list[str]) -> bool:
        """Tell whether all is as it is shown, by the daemons' own word."""
        paths = paths_of(self.index, self.volume)
        if [path.state for path in paths if path.node in self.nodes] != states:
            return False
        for path in paths[1:]:
            if path.node in self.nodes:
                seen = await self.nodes[path.node].storaged.seen()
                if not any(volume.stands_by for volume in seen.volumes):
                    return False
        return True

    async def lose(self, node_id: NodeId) -> None:
        """Take a node's power; its head opens where a controller has it open."""
        lost = self.nodes.pop(node_id)
        lost.daemon.kill()
        await lost.storaged.disconnect()
        place = next_head(self.volume, is_usable=lambda node: node in self.nodes, near=None)
        assert place is not None
        epoch = next_local(self.volume.epoch)
        self.save(replace(self.volume, head=place.node_id, epoch=epoch))

    async def close(self) -> None:
        """Let go of the daemons; whoever started them ends them."""
        for node in self.nodes.values():
            await node.storaged.disconnect()
            for hosted in node.agent._hosted.values():
                if hosted.telling is not None:
                    hosted.telling.cancel()
