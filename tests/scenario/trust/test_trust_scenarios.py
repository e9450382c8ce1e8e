"""A federation grows over loopback TLS: joins, renewals, revocations, impostors."""

import asyncio
import base64
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from nuage.channel import (
    Admission,
    ChannelClient,
    ChannelServer,
    ChannelState,
    Expected,
    Handlers,
    Identity,
    Peer,
    admit_all,
)
from nuage.clock import SystemClock
from nuage.errors import (
    Conflict,
    CorruptData,
    Forbidden,
    InvalidRequest,
    Unauthenticated,
    Unavailable,
)
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.infrastructure import NodeRole
from nuage.trust import verify
from nuage.trust.audit import AuditEntry, AuditLog
from nuage.trust.book import TrustBook, keys_document
from nuage.trust.invitation import Invitation, InvitationFiles, Joining
from nuage.trust.join import Joined, JoinServer, join_node, join_site
from nuage.trust.pki import Authority, issue_daemon, pem_of, pem_of_key
from nuage.trust.renewal import (
    RENEW_METHOD,
    RenewAnswer,
    Renewer,
    RenewRequest,
    own_authority,
    register_renewal,
)
from nuage.trust.store import TrustStore
from nuage.trust.verify import verify_audit

FR = FederationId("fr")
MARNE, LYON = SiteId("marne"), SiteId("lyon")
CLOCK = SystemClock()
C1 = Identity(FR, MARNE, NodeRole.CONTROLLER, NodeId("c1"))


class LateClock(SystemClock):
    """The machine's clock, ahead by some days."""

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s

    def now_s(self) -> float:
        return super().now_s() + self._ahead_s


@dataclass
class Host:
    """Marne's controller with its join server."""

    store: TrustStore
    join: JoinServer
    invitations: InvitationFiles
    told: list[tuple[Invitation, bytes]]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.join.port}"

    def invite_node(self, *roles: NodeRole, life_s: float | None = None) -> str:
        return self.join.invite(
            self.address,
            joining=Joining.NODE,
            site_id=MARNE,
            node_id=NodeId("v1"),
            roles=roles or (NodeRole.VNODE,),
            life_s=life_s,
        )

    def invite_site(self, site_id: SiteId = LYON) -> str:
        return self.join.invite(self.address, joining=Joining.SITE, site_id=site_id)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    store = TrustStore(tmp_path / "c1")
    store.found(C1, now_s=CLOCK.now_s())
    told: list[tuple[Invitation, bytes]] = []

    async def welcome(invitation: Invitation, about: bytes) -> bytes:
        told.append((invitation, about))
        if about == b"unwanted":
            raise Conflict("there is such a node already")
        return b"hello " + about

    invitations = InvitationFiles(tmp_path / "invitations")
    join = JoinServer(store, invitations, CLOCK, welcome=welcome)
    await join.listen("127.0.0.1", 0)
    yield Host(store, join, invitations, told)
    await join.close()


async def join_vnode(host: Host, directory: Path) -> TrustStore:
    store = TrustStore(directory)
    await join_node(host.invite_node(), {NodeRole.VNODE: store}, CLOCK)
    return store


@asynccontextmanager
async def serving(
    store: TrustStore,
    handlers: Handlers | None = None,
    *,
    admit: Admission = admit_all,
) -> AsyncIterator[ChannelServer]:
    server = ChannelServer(store.server_context(), handlers or echo(), CLOCK, admit=admit)
    await server.listen("127.0.0.1", 0)
    yield server
    await server.close()
    await asyncio.sleep(0)


@asynccontextmanager
async def calling(
    store: TrustStore, server: ChannelServer, expected: Expected | None = None
) -> AsyncIterator[tuple[ChannelClient, asyncio.Queue[tuple[ChannelState, str]]]]:
    states: asyncio.Queue[tuple[ChannelState, str]] = asyncio.Queue()
    client = ChannelClient(
        f"127.0.0.1:{server.port}",
        store.client_context(),
        Handlers(),
        CLOCK,
        expected=expected,
        on_state=lambda state, reason: states.put_nowait((state, reason)),
        prng=Random(1),
    )
    async with client:
        yield client, states


def echo() -> Handlers:
    handlers = Handlers()

    @handlers.method("who", type(None))
    async def who(peer: Peer, body: None) -> str:
        return str(peer.identity)

    return handlers


async def until(states: "asyncio.Queue[tuple[ChannelState, str]]", state: ChannelState) -> str:
    async with asyncio.timeout(10):
        while True:
            found, reason = await states.get()
            if found is state:
                return reason


# Joining ----------------------------------------------------------------------------------


async def test_a_datacenter_joins_with_one_token_and_its_daemons_are_believed(
    host: Host, tmp_path: Path
) -> None:
    lyon = TrustStore(tmp_path / "lyon")
    joined = await join_site(host.invite_site(), lyon, NodeId("c9"), CLOCK, about=b"Lyon")
    assert joined == Joined((Identity(FR, LYON, NodeRole.CONTROLLER, NodeId("c9")),), b"hello Lyon")
    assert host.told[0][1] == b"Lyon"
    async with serving(host.store) as server, calling(lyon, server) as (client, _):
        await client.wait_ready(5)
        assert await client.call("who", None, str) == "lyon/controller/c9"


async def test_a_node_joins_with_one_token_for_all_its_roles(host: Host, tmp_path: Path) -> None:
    stores = {role: TrustStore(tmp_path / role.value) for role in (NodeRole.VNODE, NodeRole.EDGE)}
    await join_node(host.invite_node(NodeRole.VNODE, NodeRole.EDGE), stores, CLOCK)
    assert stores[NodeRole.EDGE].identity() == Identity(FR, MARNE, NodeRole.EDGE, NodeId("v1"))
    assert (tmp_path / "vnode" / "daemon.key").stat().st_mode & 0o777 == 0o600


async def test_a_token_works_once(host: Host, tmp_path: Path) -> None:
    token = host.invite_node()
    await join_node(token, {NodeRole.VNODE: TrustStore(tmp_path / "v1")}, CLOCK)
    with pytest.raises(Forbidden, match="used already"):
        await join_node(token, {NodeRole.VNODE: TrustStore(tmp_path / "thief")}, CLOCK)


async def test_of_two_that_race_with_one_token_one_joins(host: Host, tmp_path: Path) -> None:
    token = host.invite_node()
    attempts = (
        join_node(token, {NodeRole.VNODE: TrustStore(tmp_path / f"v{n}")}, CLOCK) for n in range(5)
    )
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(isinstance(result, Joined) for result in results) == 1
    assert sum(isinstance(result, Forbidden) for result in results) == 4


async def test_a_newcomer_whose_answer_was_lost_may_ask_again(host: Host, tmp_path: Path) -> None:
    token = host.invite_node()
    store = TrustStore(tmp_path / "v1")
    with pytest.raises(Conflict):
        await join_node(token, {NodeRole.VNODE: store}, CLOCK, about=b"unwanted")
    await join_node(token, {NodeRole.VNODE: store}, CLOCK, about=b"better")
    assert store.is_joined


async def test_an_expired_token_is_refused_by_both_sides(host: Host, tmp_path: Path) -> None:
    token = host.invite_node(life_s=60)
    store = {NodeRole.VNODE: TrustStore(tmp_path / "v1")}
    with pytest.raises(Forbidden, match="expired"):
        await join_node(token, store, LateClock(120))
    expired = host.invite_node(life_s=1e-9)
    with pytest.raises(Forbidden, match="expired"):
        await join_node(expired, store, LateClock(-120))


async def test_a_token_with_another_secret_is_refused_and_not_used_up(
    host: Host, tmp_path: Path
) -> None:
    token = host.invite_node()
    (invitation,) = host.invitations.listed()
    with pytest.raises(Forbidden, match="secret"):
        host.invitations.use(invitation.token_id, b"x" * 32, used_by="k", now_s=CLOCK.now_s())
    await join_node(token, {NodeRole.VNODE: TrustStore(tmp_path / "v1")}, CLOCK)
    assert token not in repr(host.invitations.listed())


async def test_a_withdrawn_token_is_refused(host: Host, tmp_path: Path) -> None:
    token = host.invite_node()
    assert host.invitations.withdraw(host.invitations.listed()[0].token_id)
    with pytest.raises(Forbidden, match="not known"):
        await join_node(token, {NodeRole.VNODE: TrustStore(tmp_path / "v1")}, CLOCK)


async def test_a_server_of_another_federation_gets_no_secret(host: Host, tmp_path: Path) -> None:
    evil = TrustStore(tmp_path / "evil")
    evil.found(C1, now_s=CLOCK.now_s())
    invitations = InvitationFiles(tmp_path / "evil-invitations")
    impostor = JoinServer(evil, invitations, CLOCK)
    await impostor.listen("127.0.0.1", 0)
    token = host.join.invite(
        f"127.0.0.1:{impostor.port}",
        joining=Joining.NODE,
        site_id=MARNE,
        node_id=NodeId("v1"),
        roles=(NodeRole.VNODE,),
    )
    with pytest.raises(Forbidden, match=r"another federation.*root"):
        await join_node(token, {NodeRole.VNODE: TrustStore(tmp_path / "v1")}, CLOCK)
    await impostor.close()


async def test_what_is_no_token_and_a_token_of_the_other_kind_are_told_apart(
    host: Host, tmp_path: Path
) -> None:
    stores = {NodeRole.VNODE: TrustStore(tmp_path / "v1")}
    good = host.invite_node()
    for text in ("", "hello", good[:-3], good[:-1] + "!", base64.b64encode(b"x" * 90).decode()):
        with pytest.raises(InvalidRequest, match="not a join token"):
            await join_node(text, stores, CLOCK)
    with pytest.raises(InvalidRequest, match="for a datacenter"):
        await join_node(host.invite_site(), stores, CLOCK)
    with pytest.raises(InvalidRequest, match="for a node"):
        await join_site(good, TrustStore(tmp_path / "x"), NodeId("c1"), CLOCK)


async def test_an_offline_root_key_is_missed_when_inviting(host: Host) -> None:
    (host.store.directory / "federation" / "root.key").unlink()
    with pytest.raises(Unavailable, match=r"key .* is not here"):
        host.invite_site()


async def test_a_server_that_is_not_there_is_unavailable(host: Host, tmp_path: Path) -> None:
    token = host.invite_node()
    await host.join.close()
    with pytest.raises(Unavailable, match="cannot be reached"):
        await join_node(token, {NodeRole.VNODE: TrustStore(tmp_path / "v1")}, CLOCK)


# Channels ---------------------------------------------------------------------------------


async def test_a_client_refuses_a_server_that_is_not_the_one_expected(
    host: Host, tmp_path: Path
) -> None:
    vnode = await join_vnode(host, tmp_path / "v1")
    wanted = Expected(FR, site_id=LYON, role=NodeRole.CONTROLLER)
    async with serving(host.store) as server, calling(vnode, server, wanted) as (client, states):
        reason = await until(states, ChannelState.WAITING)
        assert "site_id is 'marne', expected 'lyon'" in reason
        with pytest.raises(Unavailable, match="expected 'lyon'"):
            await client.call("who", None, str)


async def test_daemons_of_another_federation_are_strangers_and_the_log_says_so(
    host: Host, tmp_path: Path
) -> None:
    stranger = TrustStore(tmp_path / "stranger")
    stranger.found(C1, now_s=CLOCK.now_s())
    with capture_logs() as logs:
        async with serving(host.store) as server, calling(stranger, server) as (_, states):
            assert "TLS" in await until(states, ChannelState.WAITING)
            assert server.peers == ()
    told = [entry for entry in logs if entry["event"] == "trust.handshake_failed"]
    assert "certificate" in told[0]["why"]


async def test_a_server_logs_why_it_did_not_believe_a_client(host: Host, tmp_path: Path) -> None:
    stranger = TrustStore(tmp_path / "stranger")
    stranger.found(C1, now_s=CLOCK.now_s())
    (stranger.directory / "root.pem").write_text(pem_of(host.store.root()))
    with capture_logs() as logs:
        async with serving(host.store) as server, calling(stranger, server) as (_, states):
            await until(states, ChannelState.WAITING)
    told = [entry for entry in logs if entry["event"] == "trust.handshake_failed"]
    assert [entry["as_server"] for entry in told][:1] == [True]


async def test_a_site_cannot_issue_for_another_site(host: Host, tmp_path: Path) -> None:
    """Name constraints: OpenSSL refuses lyon's certificate for a controller of marne."""
    lyon = TrustStore(tmp_path / "lyon")
    await join_site(host.invite_site(), lyon, NodeId("c9"), CLOCK)
    with pytest.raises(Forbidden, match="does not issue"):
        lyon.issue(Ed25519PrivateKey.generate().public_key(), C1, now_s=CLOCK.now_s())
    key = Ed25519PrivateKey.generate()
    authority = Authority(lyon.chain()[1], lyon.authority().key)
    forged = issue_daemon(authority, key.public_key(), C1, now_s=CLOCK.now_s())
    impostor = TrustStore(tmp_path / "impostor")
    root_pem = pem_of(lyon.root())
    with pytest.raises(Unauthenticated, match="not the authority of site 'marne'"):
        impostor.install(root_pem=root_pem, chain_pem=pem_of(forged, lyon.chain()[1]), key=key)
    (lyon.directory / "daemon.pem").write_text(pem_of(forged, lyon.chain()[1]))
    (lyon.directory / "daemon.key").write_bytes(pem_of_key(key))
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        shake_hands(lyon.client_context(), host.store.server_context())
    async with serving(host.store) as server, calling(lyon, server) as (_, states):
        assert "before hello" in await until(states, ChannelState.WAITING)
        assert server.peers == ()


def shake_hands(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> None:
    """Run a TLS handshake in memory; raise what either side raises."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(down, up)
    server = server_context.wrap_bio(up, down, server_side=True)
    waiting = [client, server]
    while waiting:
        for side in tuple(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue


async def test_a_client_comes_back_after_the_server_did(host: Host, tmp_path: Path) -> None:
    vnode = await join_vnode(host, tmp_path / "v1")
    async with serving(host.store) as server, calling(vnode, server) as (client, states):
        await client.wait_ready(5)
        server.drop(server.peers, "restart")
        assert "restart" in await until(states, ChannelState.WAITING)
        await until(states, ChannelState.READY)
        assert await client.call("who", None, str) == "marne/vnode/v1"


async def test_a_client_finds_a_server_that_was_restarted_on_its_port(
    host: Host, tmp_path: Path
) -> None:
    vnode = await join_vnode(host, tmp_path / "v1")
    first = ChannelServer(host.store.server_context(), echo(), CLOCK)
    await first.listen("127.0.0.1", 0)
    port = first.port
    async with calling(vnode, first) as (client, states):
        await client.wait_ready(5)
        await first.close()
        await until(states, ChannelState.WAITING)
        with pytest.raises(Unavailable, match="no channel to") as refused:
            await client.call("who", None, str)
        assert refused.value.retry_after_s > 0
        second = ChannelServer(host.store.server_context(), echo(), CLOCK)
        await second.listen("127.0.0.1", port)
        await client.wait_ready(10)
        assert await client.call("who", None, str) == "marne/vnode/v1"
    await second.close()


# Renewal and revocation -----------------------------------------------------------------------


async def test_a_renewed_certificate_is_used_without_a_restart(host: Host, tmp_path: Path) -> None:
    vnode = await join_vnode(host, tmp_path / "v1")
    book = TrustBook(host.store.root())
    book.take(host.store.site_trust())
    handlers = echo()
    register_renewal(handlers, host.store, book.revocations, CLOCK)
    before = vnode.chain()[0].serial_number
    async with serving(host.store, handlers) as server, calling(vnode, server) as (client, states):
        await client.wait_ready(5)

        async def ask(request: RenewRequest) -> RenewAnswer:
            return await client.call(RENEW_METHOD, request, RenewAnswer)

        renewer = Renewer(vnode, ask, CLOCK, Random(1))
        assert await renewer.attempt()
        assert vnode.chain()[0].serial_number != before
        server.drop(server.peers, "reconnect")
        await until(states, ChannelState.WAITING)
        await until(states, ChannelState.READY)
        assert await client.call("who", None, str) == "marne/vnode/v1"


async def test_renewal_that_fails_is_tried_again(host: Host, tmp_path: Path) -> None:
    vnode = await join_vnode(host, tmp_path / "v1")

    async def ask(request: RenewRequest) -> RenewAnswer:
        raise Unavailable("the controller is away")

    assert not await Renewer(vnode, ask, CLOCK, Random(1)).attempt()
    assert vnode.is_joined
    assert await Renewer(host.store, own_authority(host.store, CLOCK), CLOCK, Random(1)).attempt()


async def test_revocation_closes_the_channel_and_keeps_it_closed(
    host: Host, tmp_path: Path
) -> None:
    vnode = await join_vnode(host, tmp_path / "v1")
    book = TrustBook(host.store.root())
    book.take(host.store.site_trust())
    async with (
        serving(host.store, admit=book.revocations.admit) as server,
        calling(vnode, server) as (client, states),
    ):
        await client.wait_ready(5)
        assert await client.call("who", None, str) == "marne/vnode/v1"
        assert book.revocations.to_drop(server.peers) == ()
        host.store.revoke([vnode.chain()[0].serial_number], now_s=CLOCK.now_s())
        assert book.take(host.store.site_trust())
        server.drop(book.revocations.to_drop(server.peers), "revoked")
        assert "revoked" in await until(states, ChannelState.WAITING)
        await until(states, ChannelState.CONNECTING)
        await until(states, ChannelState.WAITING)
        assert server.peers == ()


async def test_revoking_a_datacenter_revokes_all_its_daemons(host: Host, tmp_path: Path) -> None:
    lyon = TrustStore(tmp_path / "lyon")
    await join_site(host.invite_site(), lyon, NodeId("c9"), CLOCK)
    book = TrustBook(host.store.root())
    for store in (host.store, lyon):
        book.take(store.site_trust())
    assert book.site_ids() == (LYON, MARNE)
    signer_id = next(key_id for key_id, key in book.public_keys().items() if key.site_id == LYON)
    assert book.key(signer_id) is not None
    host.store.revoke_site(lyon.chain()[1], now_s=CLOCK.now_s())
    book.take(host.store.site_trust())
    assert "authority" in book.revocations.refusal_of(lyon.chain()[0])
    assert book.key(signer_id) is None
    assert not book.revocations.refusal_of(host.store.chain()[0])


async def test_an_older_list_does_not_unrevoke(host: Host) -> None:
    book = TrustBook(host.store.root())
    old = host.store.site_trust()
    host.store.revoke([77], now_s=CLOCK.now_s())
    assert book.take(host.store.site_trust())
    assert not book.take(old)
    assert book.revocations.serials_of(host.store.chain()[1]) == {77}


async def test_a_book_takes_nothing_that_the_root_does_not_vouch_for(
    host: Host, tmp_path: Path
) -> None:
    stranger = TrustStore(tmp_path / "stranger")
    stranger.found(C1, now_s=CLOCK.now_s())
    book = TrustBook(host.store.root())
    with pytest.raises(Unauthenticated):
        book.take(stranger.site_trust())
    assert book.site_ids() == ()


def test_a_site_that_writes_its_audit_log_anew_is_noticed_by_the_others(tmp_path: Path) -> None:
    store = TrustStore(tmp_path / "c1")
    store.found(C1, now_s=CLOCK.now_s())
    book = TrustBook(store.root())
    heads = []
    for name, target in (("first", "vm-1"), ("second", "vm-2")):
        log = AuditLog(
            tmp_path / name, site_id=MARNE, key=store.signer_key, now_s=lambda: 1_800_000_000.0
        )
        log.append(AuditEntry(who="ada", action="vm.delete", target=target))
        heads.append(log.seal())
        log.close()
    book.take(store.site_trust(audit_seal=heads[0].seal))
    kept = heads[0][:2]
    assert verify_audit(tmp_path / "first", book.public_keys(), head=kept).is_sound
    rewritten = verify_audit(tmp_path / "second", book.public_keys(), head=kept)
    assert "somebody else has seen" in rewritten.problems[0]
    with pytest.raises(CorruptData, match="two audit logs"):
        book.take(store.site_trust(audit_seal=heads[1].seal))
    with pytest.raises(Unauthenticated, match="audit seal"):
        book.take(store.site_trust(audit_seal=heads[1].seal.replace("marne", "lyon!")))


# Runs a program that may import what Python and `cryptography` bring, as an auditor's machine does.
AUDITORS = """
import runpy, sys
ALLOWED = sys.stdlib_module_names | {"cryptography", "_cffi_backend"}
class Importer:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ImportError(f"an auditor has no {name}")
sys.meta_path.insert(0, Importer())
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_verifier_needs_nothing_of_nuage(tmp_path: Path) -> None:
    store = TrustStore(tmp_path / "c1")
    store.found(C1, now_s=CLOCK.now_s())
    book = TrustBook(store.root())
    book.take(store.site_trust())
    keys = tmp_path / "keys.json"
    keys.write_bytes(keys_document(book.public_keys()))
    log = AuditLog(tmp_path / "audit", site_id=MARNE, key=store.signer_key, now_s=CLOCK.now_s)
    log.append(AuditEntry(who="ada", action="vm.create", target="vm-1"))
    log.close()
    alone, machine = tmp_path / "alone.py", tmp_path / "machine.py"
    alone.write_text(Path(verify.__file__).read_text())
    machine.write_text(AUDITORS)
    command = [sys.executable, "-I", str(machine), str(alone)]
    command += ["audit", str(tmp_path / "audit"), "--keys"]
    done = subprocess.run([*command, str(keys)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "SOUND")
    (segment,) = (tmp_path / "audit").iterdir()
    segment.write_bytes(segment.read_bytes().replace(b"vm-1", b"vm-2"))
    done = subprocess.run([*command, str(keys)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[0][:9]) == (1, "NOT SOUND")


def test_a_store_survives_a_crash_between_key_and_certificate(tmp_path: Path) -> None:
    store = TrustStore(tmp_path)
    store.found(C1, now_s=CLOCK.now_s())
    pending = tmp_path / "daemon.key.next"
    key = Ed25519PrivateKey.generate()
    chain_pem = store.issue(key.public_key(), C1, now_s=CLOCK.now_s())
    pending.write_bytes(pem_of_key(key) + chain_pem.encode())
    again = TrustStore(tmp_path)
    again.server_context()
    assert again.key().public_key() == again.chain()[0].public_key()
    assert not pending.exists()


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    store = TrustStore(tmp_path)
    store.found(C1, now_s=CLOCK.now_s())
    (tmp_path / "daemon.key").chmod(0o644)
    with pytest.raises(Forbidden, match="read by others"):
        store.server_context()
