"""How a federation begins, how a datacenter joins it, how a node joins a site.

One single-use token each (`trust.join`). What a newcomer needs beside its certificates travels
in the answer: a site gets its number, what controllers share, its peers and where to find the
quorum, whose members it then asks to take its own in; a node gets nothing more.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nuage.channel import Identity, parse_address
from nuage.clock import Clock, SystemClock
from nuage.daemon.configuration import AgentConfiguration, ControllerConfiguration
from nuage.daemon.quorum import MEMBERS_FILE, NOT_JOINED_HINT, QuorumMembers, members_of
from nuage.errors import Conflict, InvalidRequest, Unavailable
from nuage.iaas.site import Site
from nuage.ids import FederationId, NodeId, SiteId, UserId, new_id
from nuage.model.identity import Grant, Role, User
from nuage.model.infrastructure import SITES_MAX, Datacenter, NodeRole
from nuage.trust import invitation
from nuage.trust.files import write_atomically
from nuage.trust.join import JoinServer, invite, join_node, join_site
from nuage.trust.secrets import hash_secret
from nuage.trust.shared_secrets import SharedSecrets
from nuage.trust.store import TrustStore

FIRST_USER_FILE: Final = "first-user.json"
NUMBER_FILE: Final = "site-number"
PEERS_FILE: Final = "peers.json"
CONTROLLER_NODE: Final = NodeId("controller")
log = structlog.get_logger("joining")


class SiteArrives(msgspec.Struct, frozen=True):
    """What a joining datacenter says of itself."""

    datacenter: Datacenter
    client_url: str


class SiteWelcome(msgspec.Struct, frozen=True):
    """What it is told. `secrets` are what controllers share (`trust.shared_secrets`)."""

    number: int
    secrets: dict[int, bytes]
    peers: dict[SiteId, str]
    members: QuorumMembers

    def __repr__(self) -> str:
        return f"SiteWelcome(number={self.number}, secrets hidden)"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundedFederation:
    """A new federation and its first administrator, whose secret is shown once."""

    federation_id: FederationId
    site_id: SiteId
    admin_name: str
    admin_secret: str


def found(
    configuration: ControllerConfiguration, federation_id: FederationId, clock: Clock | None = None
) -> FoundedFederation:
    """Found a federation with this site as its first.

    Raises:
        Forbidden: the trust directory belongs to a federation already.
    """
    used = clock or SystemClock()
    site_id = configuration.datacenter.site_id
    store = TrustStore(configuration.trust_dir)
    identity = Identity(federation_id, site_id, NodeRole.CONTROLLER, CONTROLLER_NODE)
    store.found(identity, now_s=used.now_s())
    state_dir = configuration.state_dir
    state_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(state_dir / NUMBER_FILE, b"0")
    members = QuorumMembers(
        initial_members={site_id: configuration.quorum.peer_url},
        is_new_cluster=True,
        client_urls=(configuration.quorum.client_url,),
    )
    _write_members(configuration, store, members, used)
    secret = new_id("secret")
    admin = User(
        user_id=UserId(new_id("user")),
        name="admin",
        grants=(Grant(Role.NUAGE_ADMIN, "*"),),
        secret_hash=hash_secret(secret),
    )
    write_atomically(state_dir / FIRST_USER_FILE, msgspec.json.encode(admin), secret=True)
    return FoundedFederation(
        federation_id=federation_id, site_id=site_id, admin_name=admin.name, admin_secret=secret
    )


def _write_members(
    configuration: ControllerConfiguration, store: TrustStore, members: QuorumMembers, clock: Clock
) -> None:
    store.issue_service(service_hosts(configuration), now_s=clock.now_s())
    if not configuration.quorum.peer_url:
        return
    write_atomically(configuration.state_dir / MEMBERS_FILE, msgspec.json.encode(members))


def service_hosts(configuration: ControllerConfiguration) -> list[str]:
    """Return the addresses that the site's service certificate must name."""
    hosts = {parse_address(configuration.channel_listen)[0]}
    hosts |= {parse_address(a)[0] for a in configuration.api_listen if not a.startswith("unix:")}
    hosts |= {parse_address(a)[0] for a in configuration.datacenter.addresses}
    return sorted(hosts)


async def join_as_site(configuration: ControllerConfiguration, token: str) -> SiteWelcome:
    """Join this site to a federation and write down what its controller needs."""
    clock = SystemClock()
    store = TrustStore(configuration.trust_dir)
    arrives = SiteArrives(
        datacenter=configuration.datacenter,
        client_url=configuration.quorum.client_url,
    )
    joined = await join_site(
        token, store, CONTROLLER_NODE, clock, about=msgspec.msgpack.encode(arrives)
    )
    welcome = msgspec.msgpack.decode(joined.about, type=SiteWelcome)
    state_dir = configuration.state_dir
    state_dir.mkdir(parents=True, exist_ok=True)
    store.keep_shared_secrets(SharedSecrets(welcome.secrets))
    write_atomically(state_dir / NUMBER_FILE, str(welcome.number).encode())
    write_atomically(state_dir / PEERS_FILE, msgspec.json.encode(welcome.peers))
    _write_members(configuration, store, welcome.members, clock)
    return welcome


async def join_as_node(configuration: AgentConfiguration, role: NodeRole, token: str) -> None:
    """Join this node to its site in one role."""
    await join_node(token, {role: TrustStore(configuration.trust_dir)}, SystemClock())


def invite_site(configuration: ControllerConfiguration, site_id: SiteId) -> str:
    """Return a token for a datacenter to join the federation; it is shown once."""
    return invite(
        TrustStore(configuration.trust_dir),
        invitation.InvitationFiles(configuration.state_dir / "invitations"),
        address=configuration.join_listen,
        joining=invitation.Joining.SITE,
        site_id=site_id,
        now_s=SystemClock().now_s(),
    )


def invite_node(
    configuration: ControllerConfiguration, node_id: NodeId, roles: tuple[NodeRole, ...]
) -> str:
    """Return a token for a node to join this site; it is shown once."""
    return invite(
        TrustStore(configuration.trust_dir),
        invitation.InvitationFiles(configuration.state_dir / "invitations"),
        address=configuration.join_listen,
        joining=invitation.Joining.NODE,
        site_id=configuration.datacenter.site_id,
        node_id=node_id,
        roles=roles,
        now_s=SystemClock().now_s(),
    )


class Welcoming:
    """The join server of a running controller."""

    def __init__(
        self, site: Site, store: TrustStore, configuration: ControllerConfiguration, clock: Clock
    ) -> None:
        self._site = site
        self._store = store
        self._configuration = configuration
        self._server = JoinServer(
            store,
            invitation.InvitationFiles(configuration.state_dir / "invitations"),
            clock,
            welcome=self._welcome,
        )

    async def listen(self) -> Callable[[], Awaitable[None]]:
        """Begin to let newcomers in; return what stops it."""
        await self._server.listen(*parse_address(self._configuration.join_listen))
        return self._server.close

    async def _welcome(self, invited: invitation.Invitation, about: bytes) -> bytes:
        if invited.joining is not invitation.Joining.SITE:
            return b""
        try:
            arrives = msgspec.msgpack.decode(about, type=SiteArrives)
        except msgspec.ValidationError as error:
            raise InvalidRequest(str(error), field="about") from None
        if arrives.datacenter.site_id != invited.site_id:
            raise InvalidRequest(
                f"the invitation is for {invited.site_id}, not {arrives.datacenter.site_id}",
                field="site_id",
            )
        return msgspec.msgpack.encode(await self._welcome_site(arrives))

    async def _welcome_site(self, arrives: SiteArrives) -> SiteWelcome:
        site_id = arrives.datacenter.site_id
        known = {d.site_id: d for d in self._site.index.values(Datacenter)}
        number = self._number_for(site_id, known)
        members = QuorumMembers(initial_members={}, is_new_cluster=False, client_urls=())
        if self._configuration.quorum.peer_url:
            before = members_of(self._configuration.state_dir)
            urls = tuple(dict.fromkeys((*before.client_urls, arrives.client_url)))
            members = replace(members, client_urls=urls)
            path = self._configuration.state_dir / MEMBERS_FILE
            write_atomically(path, msgspec.json.encode(replace(before, client_urls=urls)))
        peers = {d.site_id: ",".join(d.addresses) for d in known.values() if d.addresses}
        self._site.announce(
            "site", site_id, "joined", f"datacenter {site_id} joins, number {number}"
        )
        return SiteWelcome(
            number=number,
            secrets=self._store.shared_secrets().held(),
            peers=peers,
            members=members,
        )

    def _number_for(self, site_id: SiteId, known: dict[SiteId, Datacenter]) -> int:
        """Give a site its number; the same again when it asks again."""
        path = self._configuration.state_dir / "site-numbers.json"
        given: dict[SiteId, int] = (
            msgspec.json.decode(path.read_bytes(), type=dict[SiteId, int]) if path.exists() else {}
        )
        given |= {d.site_id: d.number for d in known.values()}
        if site_id not in given:
            free = sorted(set(range(SITES_MAX)) - set(given.values()))
            if not free:
                raise Conflict(f"a federation has up to {SITES_MAX} sites")
            given[site_id] = free[0]
            write_atomically(path, msgspec.json.encode(given))
        return given[site_id]


def peers_of(state_dir: Path) -> dict[SiteId, str]:
    """Return the other datacenters that this one knew, and where their controllers listen."""
    path = state_dir / PEERS_FILE
    if not path.exists():
        return {}
    return msgspec.json.decode(path.read_bytes(), type=dict[SiteId, str])


def own_number(configuration: ControllerConfiguration) -> int:
    """Return the number that this site was given.

    Raises:
        Unavailable: this site has founded or joined no federation yet.
    """
    path = configuration.state_dir / NUMBER_FILE
    if not path.exists():
        raise Unavailable(f"{path} is missing", hint=NOT_JOINED_HINT)
    return int(path.read_text())


def first_user(path: Path) -> User | None:
    """Return the first administrator that `found` left for the catalogue, if any."""
    file = path / FIRST_USER_FILE
    return msgspec.json.decode(file.read_bytes(), type=User) if file.exists() else None
