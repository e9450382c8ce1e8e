"""A controller's way to the quorum, and the member that its site runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from nuage.clock import Clock
from nuage.daemon.configuration import ControllerConfiguration
from nuage.errors import InvalidRequest, Unavailable
from nuage.etcd.client import EtcdClient
from nuage.ids import SiteId
from nuage.quorum.etcd import EtcdQuorum
from nuage.quorum.member import MemberConfig, MemberTls, member_arguments
from nuage.quorum.memory import MemoryHub, MemoryQuorum
from nuage.quorum.model import LeaseTiming, Quorum
from nuage.trust.store import QUORUM_REVOCATIONS, ROOT, SERVICE_CHAIN, SERVICE_KEY, TrustStore

MEMBERS_FILE: Final = "quorum.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumMembers:
    """What a site's member is started with; etcd reads it at its first start only."""

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
        raise Unavailable(
            f"{path} is missing", hint="`nuage federation found` or `nuage federation join`"
        )
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
        tls=MemberTls(
            ca_file=store.directory / ROOT,
            cert_file=store.directory / SERVICE_CHAIN,
            key_file=store.directory / SERVICE_KEY,
            revoked_file=store.directory / QUORUM_REVOCATIONS,
        ),
    )


def etcd_command(configuration: ControllerConfiguration) -> list[str]:
    """Return the command line of this site's etcd."""
    config = member_config(configuration)
    members = members_of(configuration.state_dir)
    arguments = member_arguments(
        config,
        initial_members=members.initial_members,
        is_new_cluster=members.is_new_cluster,
    )
    return [config.binary, *arguments]


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
