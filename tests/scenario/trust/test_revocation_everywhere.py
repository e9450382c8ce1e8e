"""Somebody is revoked: all that he was ever given, at every site, at agents, in the quorum."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs
from tests.scenario.trust.test_trust_scenarios import (
    C1,
    CLOCK,
    LYON,
    MARNE,
    Host,
    calling,
    echo,
    host,
    join_vnode,
    serving,
    until,
)
from tests.unit.iaas.iaas_makers import record

from nuage.catalogue.memory import MemoryCatalogue
from nuage.channel import ChannelServer, ChannelState, Handlers
from nuage.daemon.agent import AgentChannel
from nuage.daemon.agent_trust import AgentTrust
from nuage.daemon.configuration import VnodeConfiguration
from nuage.daemon.process import Tasks
from nuage.daemon.trust_desk import Distrusting, TrustDesk
from nuage.errors import Forbidden, NotFound, Unavailable
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import Site
from nuage.ids import NodeId, RackId, SiteId
from nuage.model.desired import VnodeReport, VnodeWish
from nuage.model.infrastructure import Node, NodeRole, ProviderLine
from nuage.model.trust import SiteTrust
from nuage.trust.invitation import InvitationFiles, Joining
from nuage.trust.join import JoinServer, join_node, join_site
from nuage.trust.renewal import RENEW_METHOD, RenewAnswer, Renewer, RenewRequest, register_renewal
from nuage.trust.store import TrustStore

__all__ = ["host"]
NODE = Node(
    node_id=NodeId("v1"), site_id=MARNE, rack_id=RackId("r1"), name="v1", roles=(NodeRole.VNODE,),
    cpu_count=2, memory_mib=1024, lines=(ProviderLine("isp", "192.0.2.1"),), trunk_key="key",
)  # fmt: skip


def site_of(site_id: SiteId) -> Site:
    """Return a site that writes into memory; only what revoking touches is there."""
    missing = cast(Any, SimpleNamespace())
    return Site(
        site_id=site_id, clock=CLOCK, index=FederationIndex(site_id),
        catalogue=MemoryCatalogue(site_id, clock=CLOCK), quorum=missing, others=missing,
        nodes=missing, placer=missing, announce=lambda *_line: None,
        on_change=lambda _change: None, age_of=lambda _site: 0.0,
    )  # fmt: skip


def distrusting(
    store: TrustStore, desk: TrustDesk, site: Site, server: ChannelServer
) -> Distrusting:
    def begin_secret(generation: int) -> None:
        secrets = store.shared_secrets()
        secrets.begin(generation)
        store.keep_shared_secrets(secrets)

    return Distrusting(desk, store, site, server, None, begin_secret)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - the other end is a real socket
            await asyncio.sleep(0.01)


@asynccontextmanager
async def agent_of(store: TrustStore, server: ChannelServer, state_dir: Path) -> AsyncIterator[Any]:
    """Run what every agent runs: its channel, with wishes and trust followed."""
    configuration = VnodeConfiguration(
        node=NODE, state_dir=state_dir, trust_dir=store.directory,
        controller=f"127.0.0.1:{server.port}",
    )  # fmt: skip
    tasks = Tasks()
    channel: AgentChannel[VnodeWish, VnodeReport] = AgentChannel(
        configuration, NodeRole.VNODE, Handlers(), tasks, CLOCK
    )

    async def reports() -> AsyncIterator[VnodeReport]:
        await asyncio.Event().wait()
        yield cast(VnodeReport, None)

    async def take_wish(_wish: VnodeWish) -> None:
        return

    channel.start(wish_type=VnodeWish, take_wish=take_wish, reports=reports)
    yield channel
    await tasks.close()
    await channel.close()


async def test_a_revoked_node_is_refused_with_every_certificate_it_ever_got(
    host: Host, tmp_path: Path
) -> None:
    """A thief keeps the first certificate, the node has renewed: neither is believed any more."""
    vnode = await join_vnode(host, tmp_path / "v1")
    shutil.copytree(tmp_path / "v1", tmp_path / "stolen")
    stolen = TrustStore(tmp_path / "stolen")
    desk, site, handlers = TrustDesk(host.store, CLOCK), site_of(MARNE), echo()
    await site.save(NODE)
    register_renewal(handlers, host.store, desk.book.revocations, CLOCK)
    async with serving(host.store, handlers, admit=desk.book.revocations.admit) as server:
        desk.guard(server, cast(Any, SimpleNamespace(peers=lambda: ())))
        async with calling(vnode, server) as (client, states):

            async def ask(request: RenewRequest) -> RenewAnswer:
                return await client.call(RENEW_METHOD, request, RenewAnswer)

            await client.wait_ready(5)
            assert await Renewer(vnode, ask, CLOCK, Random(1)).attempt()
            await distrusting(host.store, desk, site, server).revoke_node(NodeId("v1"))
            assert "revoked" in await until(states, ChannelState.WAITING)
        for store in (vnode, stolen):
            with capture_logs() as logs:
                async with calling(store, server) as (_, states):
                    await until(states, ChannelState.WAITING)
            refused = [entry["error"] for entry in logs if entry["event"] == "channel.peer_refused"]
            assert "marne/vnode/v1 is refused: its certificate was revoked" in refused
    node = site.index.value(Node, NodeId("v1"))
    assert (node.maintenance, node.lines, node.trunk_key) == (True, (), "")
    published = site.index.value(SiteTrust, MARNE)
    assert published.revocations_pem == desk_list(host.store)
    assert published.key_generation == 1  # the fabric's keys that it knew are replaced
    assert TrustStore(host.store.directory).key_generation == 1
    again = await join_vnode(host, tmp_path / "again")
    desk.book.revocations.admit(again.identity(), der(again))


def desk_list(store: TrustStore) -> str:
    return store.site_trust().revocations_pem


def der(store: TrustStore) -> bytes:
    return store.chain()[0].public_bytes(Encoding.DER)


async def test_who_never_joined_and_the_controller_itself_cannot_be_revoked(host: Host) -> None:
    desk, site = TrustDesk(host.store, CLOCK), site_of(MARNE)
    async with serving(host.store) as server:
        revoking = distrusting(host.store, desk, site, server)
        with pytest.raises(NotFound, match="nobody"):
            await revoking.revoke_node(NodeId("nobody"))
        with pytest.raises(Forbidden, match="controller that would do it"):
            await revoking.revoke_node(C1.node_id)
        with pytest.raises(NotFound, match="atlantis"):
            await revoking.revoke_site(SiteId("atlantis"))
        with pytest.raises(Unavailable, match="revoke itself"):
            await revoking.revoke_site(MARNE)


async def test_keys_roll_by_command_and_no_site_falls_behind_what_another_said(
    host: Host,
) -> None:
    desk, site = TrustDesk(host.store, CLOCK), site_of(MARNE)
    heard = replace(host.store.site_trust(), site_id=LYON)
    async with serving(host.store) as server:
        revoking = distrusting(host.store, desk, site, server)
        assert await revoking.roll_keys() == 1
        site.index.put(record(replace(heard, key_generation=4), home=LYON))
        assert await revoking.roll_keys() == 5
        site.index.put(record(replace(heard, key_generation=9), home=LYON, revision=2))
        await desk.publish(site, "")
    assert site.index.value(SiteTrust, MARNE).key_generation == 9


async def test_an_agent_leaves_its_controller_when_the_datacenter_is_revoked(
    host: Host, tmp_path: Path
) -> None:
    """Told over the channel that is open, kept on disk: a restarted agent knows it too."""
    lyon = TrustStore(tmp_path / "lyon")
    await join_site(host.invite_site(), lyon, NodeId("c9"), CLOCK)
    agent_store = await joined_at(lyon, tmp_path / "v1")
    root_desk, site = TrustDesk(host.store, CLOCK), site_of(MARNE)
    root_desk.take(lyon.site_trust())
    desk, handlers = TrustDesk(lyon, CLOCK), node_doors()
    desk.register(handlers)
    async with serving(lyon, handlers, admit=desk.book.revocations.admit) as server:
        desk.guard(server, cast(Any, SimpleNamespace(peers=lambda: ())))
        async with agent_of(agent_store, server, tmp_path) as channel:
            await eventually(lambda: "lyon" in known(agent_store))
            await channel.client.wait_ready(20)
            async with serving(host.store) as marne_server:
                revoking = distrusting(host.store, root_desk, site, marne_server)
                await revoking.revoke_site(LYON)
            desk._documents.clear()  # as a controller that does not drop its own agents
            desk._server = None
            desk.take(host.store.site_trust())
            await eventually(lambda: not channel.client.is_ready)
            with pytest.raises(Unavailable, match="authority of its site was revoked"):
                await eventually_refused(channel)
    restarted = AgentTrust(agent_store)
    with pytest.raises(Forbidden, match="authority of its site was revoked"):
        restarted.admit(lyon.identity(), der(lyon))
    lists = restarted.list_file.read_text()
    assert lists.count("BEGIN X509 CRL") >= 1
    assert lyon.chain()[1].serial_number in serials_in(lists)
    with pytest.raises(Forbidden, match="site was revoked"):
        root_desk.book.revocations.admit(lyon.identity(), der(lyon))
    assert lyon.chain()[1].serial_number in serials_in(
        (host.store.directory / "site/quorum.crl").read_text()
    )


async def eventually_refused(channel: Any) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await channel.client.wait_ready(0.2)
            except Unavailable as error:
                if "revoked" in error.message:
                    raise
            await asyncio.sleep(0.01)


def node_doors() -> Handlers:
    handlers = Handlers()

    @handlers.method("node.hello", Node)
    async def hello(_peer: object, _node: Node) -> dict[str, float]:
        return {"lease_s": 0.0, "lease_term": 0}

    return handlers


def known(store: TrustStore) -> str:
    path = store.directory / "known.json"
    return path.read_text() if path.exists() else ""


def serials_in(lists: str) -> set[int]:
    end = "-----END X509 CRL-----\n"
    texts = [text + end for text in lists.split(end) if text.strip()]
    return {
        entry.serial_number for text in texts for entry in x509.load_pem_x509_crl(text.encode())
    }


async def joined_at(site_store: TrustStore, directory: Path) -> TrustStore:
    """Join V-node v1 to the site of `site_store`."""
    join = JoinServer(site_store, InvitationFiles(directory.with_suffix(".invitations")), CLOCK)
    await join.listen("127.0.0.1", 0)
    token = join.invite(
        f"127.0.0.1:{join.port}", joining=Joining.NODE, site_id=site_store.identity().site_id,
        node_id=NodeId("v1"), roles=(NodeRole.VNODE,),
    )  # fmt: skip
    store = TrustStore(directory)
    await join_node(token, {NodeRole.VNODE: store}, CLOCK)
    await join.close()
    return store
