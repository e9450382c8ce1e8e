"""Members started from our own command lines: join, leave, mutual TLS, and the last resort."""

import asyncio
import datetime as dt
import ipaddress
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.contract.catalogue.catalogue_makers import LYON, MARNE, RENNES
from tests.contract.etcd.etcd_process import (
    EtcdMember,
    free_port,
    require_etcd,
    wait_until_up,
)

from nuage.channel import Identity
from nuage.clock import SystemClock
from nuage.errors import Conflict, InvalidRequest, NotFound, TimedOut, Unavailable
from nuage.etcd.client import EtcdClient
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.infrastructure import NodeRole
from nuage.quorum.etcd import EtcdQuorum
from nuage.quorum.member import (
    MemberConfig,
    MemberTls,
    join_member,
    member_arguments,
    recover_lost_majority,
    remove_member,
)
from nuage.quorum.model import LeaseTiming, Ownership
from nuage.trust.pki import pem_of, public_key_of_request
from nuage.trust.store import QUORUM_REVOCATIONS, ROOT, TrustStore

PARIS = SiteId("paris")
CLOCK = SystemClock()
FR = FederationId("fr")
TIMING = LeaseTiming(ttl_s=60.0)


def config_of(folder: Path, site: SiteId, tls: MemberTls | None = None) -> MemberConfig:
    scheme = "https" if tls is not None else "http"
    return MemberConfig(
        site=site, data_dir=folder / site, tls=tls, heartbeat_ms=50, election_ms=500,
        client_url=f"{scheme}://127.0.0.1:{free_port()}",
        peer_url=f"{scheme}://127.0.0.1:{free_port()}",
    )  # fmt: skip


def owned(number: int) -> Ownership:
    return Ownership(kind="vm", id=f"vm-{number}", owner=MARNE, epoch=1)


@asynccontextmanager
async def running(
    config: MemberConfig, members: dict[SiteId, str], *, is_new: bool, more: tuple[str, ...] = ()
) -> AsyncIterator[EtcdMember]:
    arguments = member_arguments(config, initial_members=members, is_new_cluster=is_new)
    arguments += more
    member = EtcdMember(config.site, config.data_dir, config.client_url, config.peer_url, arguments)
    await member.start()
    try:
        yield member
    finally:
        await member.kill()


async def test_a_site_joins_and_leaves_a_running_quorum(tmp_path: Path) -> None:
    require_etcd()
    marne, rennes = config_of(tmp_path, MARNE), config_of(tmp_path, RENNES)
    client = EtcdClient([marne.client_url])
    async with running(marne, {MARNE: marne.peer_url}, is_new=True):
        await wait_until_up([marne.client_url])
        members = await join_member(client, site=RENNES, peer_url=rennes.peer_url)
        assert members == {MARNE: marne.peer_url, RENNES: rennes.peer_url}
        async with running(rennes, members, is_new=False):
            await wait_until_up([rennes.client_url, marne.client_url])
            again = await join_member(client, site=RENNES, peer_url=rennes.peer_url)
            assert again == members
            with pytest.raises(Conflict, match="rennes"):
                await join_member(client, site=RENNES, peer_url="http://127.0.0.1:1")
            for _ in range(100):
                try:
                    await remove_member(client, RENNES)
                    break
                except Unavailable:  # etcd wants to have seen the others for five seconds
                    await asyncio.sleep(0.2)
            with pytest.raises(NotFound):
                await remove_member(client, RENNES)
        await wait_until_up([marne.client_url])
    await client.close()


async def test_two_newcomers_that_were_announced_at_once_both_start(tmp_path: Path) -> None:
    """A member alone may take two in before either runs: it has no majority until one does."""
    require_etcd()
    sites = {site: config_of(tmp_path, site) for site in (MARNE, RENNES, LYON, PARIS)}
    members = {site: sites[site].peer_url for site in (MARNE, RENNES)}
    urls = [config.client_url for config in sites.values()]
    client = EtcdClient(urls[:2])
    async with AsyncExitStack() as stack:
        for site in members:  # two that check nothing stand for one that is asked twice at once
            await stack.enter_async_context(
                running(sites[site], members, is_new=True, more=("--strict-reconfig-check=false",))
            )
        await wait_until_up(urls[:2])
        for site in (LYON, PARIS):
            await client.member_add([sites[site].peer_url])
        with pytest.raises((Unavailable, TimedOut)):
            await client.range(b"up")
        for site in (LYON, PARIS):
            told = await join_member(client, site=site, peer_url=sites[site].peer_url)
            assert set(told.values()) == {config.peer_url for config in sites.values()}
            await stack.enter_async_context(running(sites[site], told, is_new=False))
            await wait_until_up([sites[site].client_url])
        assert set(await members_of(client)) == set(sites)
    await client.close()


async def members_of(client: EtcdClient) -> dict[str, int]:
    return {member.name: member.id for member in (await client.member_list()).members}


async def reads(url: str) -> bool:
    client = EtcdClient([url], timeout_s=2.0)
    try:
        await client.range(b"up")
    except (Unavailable, TimedOut):
        return False
    finally:
        await client.close()
    return True


async def join_when_asked_again(client: EtcdClient, config: MemberConfig) -> dict[SiteId, str]:
    """As `daemon.quorum` does: etcd wants to have seen the others for five seconds."""
    while True:
        try:
            return await join_member(client, site=config.site, peer_url=config.peer_url)
        except (Conflict, Unavailable, TimedOut):
            await asyncio.sleep(0.2)


async def test_a_member_that_lost_its_disk_comes_back_as_another(tmp_path: Path) -> None:
    """Of three; the two that are left have it replaced."""
    require_etcd()
    sites = {site: config_of(tmp_path, site) for site in (MARNE, RENNES, LYON)}
    members = {site: config.peer_url for site, config in sites.items()}
    marne, lyon = sites[MARNE], sites[LYON]
    client = EtcdClient([marne.client_url])
    quorum = EtcdQuorum(MARNE, client, timing=TIMING)
    async with AsyncExitStack() as stack:
        for site in (MARNE, RENNES):
            await stack.enter_async_context(running(sites[site], members, is_new=True))
        async with running(lyon, members, is_new=True):
            await wait_until_up([config.client_url for config in sites.values()])
            await quorum.renew_site_lease("a")
            await quorum.claim("vm", "vm-1", MARNE, expected_epoch=0)
            moved = replace(lyon, peer_url="http://127.0.0.1:1")
            with pytest.raises(Conflict, match="lyon"):  # it runs
                await join_member(client, site=LYON, peer_url=moved.peer_url)
        shutil.rmtree(lyon.data_dir)
        before = await members_of(client)
        told = await join_when_asked_again(client, lyon)
        assert told == members
        assert await join_member(client, site=LYON, peer_url=lyon.peer_url) == members
        async with running(lyon, told, is_new=False):
            await wait_until_up([lyon.client_url])
            after = await members_of(client)
            assert after.keys() == before.keys()
            assert after[LYON] != before[LYON]
            of_lyon = EtcdClient([lyon.client_url])
            assert await EtcdQuorum(LYON, of_lyon, timing=TIMING).owner("vm", "vm-1") == owned(1)
            await of_lyon.close()
    await client.close()


async def test_one_of_two_members_that_lost_its_disk_takes_its_place_again(tmp_path: Path) -> None:
    """The other cannot replace it alone, and has all that both ever agreed on."""
    require_etcd()
    sites = {site: config_of(tmp_path, site) for site in (MARNE, LYON)}
    members = {site: config.peer_url for site, config in sites.items()}
    marne, lyon = sites[MARNE], sites[LYON]
    client = EtcdClient([marne.client_url])
    quorum = EtcdQuorum(MARNE, client, timing=TIMING)
    async with running(marne, members, is_new=True):
        async with running(lyon, members, is_new=True):
            await wait_until_up([marne.client_url, lyon.client_url])
            await quorum.renew_site_lease("a")
            await quorum.claim("vm", "vm-1", MARNE, expected_epoch=0)
        shutil.rmtree(lyon.data_dir)
        with pytest.raises(Conflict, match="lyon"):
            await join_member(client, site=LYON, peer_url="http://127.0.0.1:1")
        told = await join_when_asked_again(client, lyon)
        async with running(lyon, told, is_new=False) as member:
            while not await reads(lyon.client_url):
                # etcd gives up when a leader of before the loss, which steps down for want of a
                # majority, presumes that it has its log. Its init starts it again.
                if member.process is not None and member.process.returncode is not None:
                    await member.start()
                await asyncio.sleep(0.1)
            assert await quorum.owner("vm", "vm-1") == owned(1)
    await client.close()


async def test_a_lost_majority_is_rebuilt_from_one_site(tmp_path: Path) -> None:
    require_etcd()
    sites = {site: config_of(tmp_path, site) for site in (MARNE, RENNES, LYON)}
    members = {site: config.peer_url for site, config in sites.items()}
    marne = sites[MARNE]
    client = EtcdClient([marne.client_url])
    async with AsyncExitStack() as stack:
        for config in sites.values():
            await stack.enter_async_context(running(config, members, is_new=True))
        await wait_until_up([config.client_url for config in sites.values()])
        quorum = EtcdQuorum(MARNE, client, timing=TIMING)
        await quorum.renew_site_lease("a")
        await quorum.claim("vm", "vm-1", MARNE, expected_epoch=0)
        for number in range(2, 6):
            await quorum.claim("vm", f"vm-{number}", MARNE, expected_epoch=0)
        await stack.aclose()
    clock = SystemClock()
    for wrong in ([RENNES], [RENNES, LYON, SiteId("nice")], []):
        with pytest.raises(InvalidRequest) as caught:
            await recover_lost_majority(
                marne, client=client, clock=clock, members=members, sites_given_up=wrong
            )
        assert caught.value.field == "given_up"
    ahead = Ownership(kind="vm", id="vm-5", owner=RENNES, epoch=3)
    lacked = await recover_lost_majority(
        marne, client=client, clock=clock, members=members, sites_given_up=[RENNES, LYON],
        known=[*(owned(number) for number in range(1, 6)), ahead],
    )  # fmt: skip
    assert ahead in lacked
    with pytest.raises(Unavailable):
        await client.range(b"up")
    async with running(marne, {MARNE: marne.peer_url}, is_new=False):
        await wait_until_up([marne.client_url])
        rebuilt = EtcdQuorum(MARNE, client, timing=TIMING)
        assert await rebuilt.owner("vm", "vm-1") == owned(1)
        assert await rebuilt.owners_of(MARNE) == tuple(owned(number) for number in range(1, 5))
        assert await rebuilt.owner("vm", "vm-5") == ahead, "no epoch is given out twice"
        (lease,) = await EtcdQuorum(MARNE, client, timing=TIMING).site_leases()
        assert lease.site == MARNE
        old = sites[RENNES]
        async with running(old, {RENNES: old.peer_url}, is_new=False) as returning:
            assert returning.process is not None
            await asyncio.wait_for(returning.process.wait(), 60.0)  # it hears that it was removed
    await client.close()


async def test_a_minority_does_nothing_and_a_majority_goes_on(tmp_path: Path) -> None:
    require_etcd()
    sites = {site: config_of(tmp_path, site) for site in (MARNE, RENNES, LYON)}
    members = {site: config.peer_url for site, config in sites.items()}
    client = EtcdClient([sites[MARNE].client_url], timeout_s=2.0)
    quorum = EtcdQuorum(MARNE, client, timing=TIMING)
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(running(config, members, is_new=True))
            for config in sites.values()
        ]
        await wait_until_up([config.client_url for config in sites.values()])
        await quorum.renew_site_lease("a")
        await started[1].kill()
        for _ in range(20):
            try:
                await quorum.claim("vm", "vm-1", MARNE, expected_epoch=0)
                break
            except (Unavailable, TimeoutError):
                await asyncio.sleep(0.2)
        await started[2].kill()
        with pytest.raises(Unavailable):
            await quorum.owner("vm", "vm-1")
        with pytest.raises(Unavailable):
            await quorum.renew_site_lease("a")
    await client.close()


def write_certificates(folder: Path) -> MemberTls:
    """Make a CA and one certificate for loopback."""
    now = dt.datetime.now(dt.UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(
        name: str, public: ec.EllipticCurvePublicKey, *, is_ca: bool
    ) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )

    tls = MemberTls(
        ca_file=folder / "ca.pem", cert_file=folder / "cert.pem", key_file=folder / "key.pem"
    )
    pem = serialization.Encoding.PEM
    tls.ca_file.write_bytes(certificate("ca", ca_key.public_key(), is_ca=True).public_bytes(pem))
    tls.cert_file.write_bytes(certificate("m", key.public_key(), is_ca=False).public_bytes(pem))
    tls.key_file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tls


def client_context(tls: MemberTls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_file)
    context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


async def test_members_and_clients_prove_who_they_are(tmp_path: Path) -> None:
    require_etcd()
    tls = write_certificates(tmp_path)
    marne = config_of(tmp_path, MARNE, tls)
    context = client_context(tls)
    client = EtcdClient([marne.client_url], tls=context)
    async with running(marne, {MARNE: marne.peer_url}, is_new=True):
        await wait_until_read(client)
        assert await EtcdQuorum(MARNE, client, timing=TIMING).renew_site_lease("a") == 60.0
        plain = EtcdClient([marne.client_url.replace("https", "http")])
        with pytest.raises(Unavailable):
            await plain.range(b"up")
        await plain.close()
    await client.close()


async def test_whoever_scrapes_a_member_needs_no_certificate_and_can_read_no_key(
    tmp_path: Path,
) -> None:
    require_etcd()
    tls = write_certificates(tmp_path)
    listen = f"127.0.0.1:{free_port()}"
    marne = replace(config_of(tmp_path, MARNE, tls), metrics_listen=listen)
    context = client_context(tls)
    client = EtcdClient([marne.client_url], tls=context)
    async with (
        running(marne, {MARNE: marne.peer_url}, is_new=True),
        aiohttp.ClientSession(base_url=f"http://{listen}") as scraper,
    ):
        await wait_until_read(client)
        async with scraper.get("/metrics") as answer:
            assert "etcd_server_has_leader 1" in await answer.text()
        async with scraper.get("/health") as answer:
            assert '"health":"true"' in await answer.text()
        async with scraper.post("/v3/kv/range", json={"key": "AA==", "range_end": "AA=="}) as no:
            assert no.status == 404
    await client.close()


async def test_a_member_refuses_who_was_revoked_while_it_runs(tmp_path: Path) -> None:
    """The list is read at each handshake: a datacenter's authority on it shuts its daemons out."""
    require_etcd()
    store, lyon, far = (TrustStore(tmp_path / name) for name in ("c1", "c9", "far"))
    store.found(Identity(FR, MARNE, NodeRole.CONTROLLER, NodeId("c1")), now_s=CLOCK.now_s())
    store.issue_service(["127.0.0.1"], now_s=CLOCK.now_s())
    for other, site_id in ((lyon, LYON), (far, RENNES)):
        key = public_key_of_request(other.begin_site(site_id))
        authority = store.admit_site(site_id, key, now_s=CLOCK.now_s())
        identity = Identity(FR, site_id, NodeRole.CONTROLLER, NodeId("c9"))
        root_pem = pem_of(store.root())
        other.finish_site(identity, root_pem=root_pem, authority_pem=authority, now_s=CLOCK.now_s())
    chain, key_file = store.service_files
    tls = MemberTls(
        ca_file=store.directory / ROOT, cert_file=chain, key_file=key_file,
        revoked_file=store.directory / QUORUM_REVOCATIONS,
    )  # fmt: skip
    config = config_of(tmp_path, MARNE, tls)
    async with running(config, {MARNE: config.peer_url}, is_new=True):
        clients = [
            EtcdClient([config.client_url], tls=known.client_context()) for known in (lyon, far)
        ]
        for client in clients:
            await wait_until_read(client)
            await client.close()
        store.keep_quorum_list([lyon.chain()[1].serial_number], now_s=CLOCK.now_s())
        shut_out, let_in = (
            EtcdClient([config.client_url], tls=known.client_context()) for known in (lyon, far)
        )
        await wait_until_read(let_in)
        with pytest.raises(Unavailable):
            await shut_out.range(b"up")
        await shut_out.close()
        await let_in.close()


async def wait_until_read(client: EtcdClient) -> None:
    for _ in range(200):
        with suppress(Unavailable):
            await client.range(b"up")
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the member does not come up")


def test_a_wrong_configuration_is_refused_by_field(tmp_path: Path) -> None:
    config = config_of(tmp_path, MARNE)
    with pytest.raises(InvalidRequest) as caught:
        member_arguments(config, initial_members={LYON: config.peer_url}, is_new_cluster=True)
    assert caught.value.field == "initial_members"
    with pytest.raises(InvalidRequest) as caught:
        replace(config, election_ms=100)
    assert caught.value.field == "election_ms"
    with pytest.raises(InvalidRequest) as caught:
        replace(config, peer_url="https://127.0.0.1:1")
    assert caught.value.field == "peer_url"
