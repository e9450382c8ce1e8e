"""A controller's way to the quorum, and the member that its site runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nuage.clock import Clock
from nuage.daemon.configuration import ControllerConfiguration
from nuage.errors import Conflict, InvalidRequest, TimedOut, Unavailable
from nuage.etcd.client import EtcdClient
from nuage.ids import SiteId
from nuage.quorum.etcd import EtcdQuorum
from nuage.quorum.member import MemberConfig, MemberTls, join_member, member_arguments
from nuage.quorum.memory import MemoryHub, MemoryQuorum
from nuage.quorum.model import LeaseTiming, Quorum
from nuage.trust.store import QUORUM_REVOCATIONS, ROOT, SERVICE_CHAIN, SERVICE_KEY, TrustStore

MEMBERS_FILE: Final = "quorum.json"
BEGUN_FILE: Final = "quorum-begun"  # this site's member has run
NOT_JOINED_HINT: Final = "`nuage federation found`, `nuage federation join` or `nuage restore`"
ANNOUNCE_EVERY_S: Final = 0.5
log = structlog.get_logger("quorum")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumMembers:
    """What a site knows of the quorum's members when it begins.

    `initial_members` is the founder's own; a newcomer's member asks for them (`etcd_command`), and
    so does a founder's that has lost its data: a second new cluster would be a second quorum.
    """

    initial_members: dict[SiteId, str]
    is_new_cluster: bool
    client_urls: tuple[str, ...]


def members_of(state_dir: Path) -> QuorumMembers:
    """Return what `found` or `join` wrote down.

    Raises:
        Unavailable: this site has founded or joined no federation yet.
    """
    path = state_dir / MEMBERS_FILE
    if not path.exists():
        raise Unavailable(f"{path} is missing", hint=NOT_JOINED_HINT)
    return msgspec.json.decode(path.read_bytes(), type=QuorumMembers)


def member_config(configuration: ControllerConfiguration) -> MemberConfig:
    """Return this site's etcd member.

    Raises:
        InvalidRequest: the configuration has none.
    """
    quorum = configuration.quorum
    if quorum.data_dir is None:
        raise InvalidRequest("this site has no member of the quorum", field="quorum.peer_url")
    store = TrustStore(configuration.trust_dir)
    return MemberConfig(
        site=configuration.datacenter.site_id,
        data_dir=quorum.data_dir,
        client_url=quorum.client_url,
        peer_url=quorum.peer_url,
        metrics_listen=quorum.metrics_listen,
        tls=MemberTls(
            ca_file=store.directory / ROOT,
            cert_file=store.directory / SERVICE_CHAIN,
            key_file=store.directory / SERVICE_KEY,
            revoked_file=store.directory / QUORUM_REVOCATIONS,
        ),
    )


async def etcd_command(configuration: ControllerConfiguration, clock: Clock) -> list[str]:
    """Return the command line of this site's etcd; a newcomer is first announced to the others."""
    config = member_config(configuration)
    members = members_of(configuration.state_dir)
    begun = configuration.state_dir / BEGUN_FILE
    # etcd reads the members at its first start, which is over once it has written to its log.
    is_in = any((config.data_dir / "member" / "wal").glob("*.wal"))
    is_alone = all(url == config.client_url for url in members.client_urls)
    is_new_cluster = members.is_new_cluster and (is_in or is_alone or not begun.exists())
    initial_members = (
        {config.site: config.peer_url}
        if is_in or is_new_cluster
        else await _announced(configuration, clock)
    )
    begun.touch()
    arguments = member_arguments(
        config, initial_members=initial_members, is_new_cluster=is_new_cluster
    )
    return [config.binary, *arguments]


async def _announced(configuration: ControllerConfiguration, clock: Clock) -> dict[SiteId, str]:
    """Have the quorum take this site's member in, however long that takes.

    etcd takes one newcomer at a time, and the next when the last one has run for five seconds:
    sites that join together take turns.
    """
    site = configuration.datacenter.site_id
    client = open_etcd(configuration)
    try:
        while True:
            try:
                return await join_member(client, site=site, peer_url=configuration.quorum.peer_url)
            except (Conflict, Unavailable, TimedOut) as error:
                log.info("not in the quorum yet", error=error.message, hint=error.hint)
                await clock.sleep(ANNOUNCE_EVERY_S)
    finally:
        await client.close()


def open_quorum(
    configuration: ControllerConfiguration, clock: Clock, timing: LeaseTiming
) -> Quorum:
    """Return the quorum's client; a federation of one site needs no etcd and may have none."""
    site_id = configuration.datacenter.site_id
    if not configuration.quorum.peer_url:
        return MemoryQuorum(site_id, MemoryHub(clock=clock, timing=timing))
    return EtcdQuorum(site_id, open_etcd(configuration), timing=timing)


def open_etcd(configuration: ControllerConfiguration) -> EtcdClient:
    """Return a client of the quorum's members, this site's first."""
    own = configuration.quorum.client_url
    others = [url for url in members_of(configuration.state_dir).client_urls if url != own]
    context = TrustStore(configuration.trust_dir).client_context()
    return EtcdClient([own, *others], tls=context)
