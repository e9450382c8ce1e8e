"""Going on from one site's data once the quorum has lost its majority for good.

This site's member becomes a cluster of one (`quorum.member.recover_lost_majority`), of what its log
held up to the last commit that it had noted. What the catalogue knows beyond that, the replicas of
the others included, is put in before anybody can renew a lease: else an epoch could be given out a
second time, and a VM would have two owners.

Fault model. A second quorum lets machines run twice. So the operator names each datacenter whose
member is given up, and nothing is done while a daemon of any of them, or of this site, answers.
Broken off at any moment, the command is run again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from nuage.channel import accepts
from nuage.clock import Clock
from nuage.daemon.configuration import ControllerConfiguration
from nuage.daemon.joining import peers_of
from nuage.daemon.quorum import member_config, members_of
from nuage.daemon.seat import SEAT_TTL_S, has_seat, open_catalogue, open_seat
from nuage.daemon.trust_desk import TrustDesk
from nuage.errors import Conflict
from nuage.etcd.client import EtcdClient
from nuage.iaas.epochs import quorum_part
from nuage.iaas.index import FederationIndex
from nuage.iaas.takeover import fails_over
from nuage.iaas.wishes import is_decided
from nuage.ids import SiteId
from nuage.model.trust import SiteTrust
from nuage.model.vm import PowerWish, Vm
from nuage.model.volume import Volume
from nuage.quorum.member import recover_lost_majority
from nuage.quorum.model import Ownership
from nuage.trust.audit import AuditEntry, AuditLog
from nuage.trust.store import TrustStore

ANSWER_TIMEOUT_S: Final = 2.0  # for a connection over a WAN
NEVER_MOVED: Final = 1  # the quorum's epoch of what its first home claimed
Say = Callable[[str], None]


async def recover_quorum(
    configuration: ControllerConfiguration,
    clock: Clock,
    *,
    given_up: Collection[SiteId],
    say: Say = lambda _text: None,
) -> tuple[Ownership, ...]:
    """Make this site's member the whole quorum; return what it lacked and the catalogue knew.

    Raises:
        InvalidRequest: `given_up` is not exactly the other datacenters; or this site has no member.
        Conflict, Unavailable: a daemon of this site runs, or one of those that are given up.
    """
    config = member_config(configuration)
    store = TrustStore(configuration.trust_dir)
    members = members_of(configuration.state_dir).client_urls
    client = EtcdClient([config.client_url], tls=store.client_context())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        index = await stack.enter_async_context(_catalogue(configuration, clock))
        peers = _believed(configuration, store, clock, index)
        await _require_silence(client, config.client_url, members, peers)
        known = tuple(known_owners(index))
        say(f"the catalogue knows the owners of {len(known)} VMs and volumes that others may take")
        lacked = await recover_lost_majority(
            config, client=client, clock=clock, members={config.site, *peers},
            sites_given_up=given_up, known=known,
        )  # fmt: skip
        _note(configuration, store, clock, given_up, lacked)
    return lacked


@asynccontextmanager
async def _catalogue(
    configuration: ControllerConfiguration, clock: Clock
) -> AsyncIterator[FederationIndex]:
    """Open what this site knows, and keep its controllers from running meanwhile."""
    async with AsyncExitStack() as stack:
        if has_seat(configuration):
            seat = open_seat(configuration, clock)
            try:
                async with asyncio.timeout(2 * SEAT_TTL_S):
                    await seat.take()
            except TimeoutError:
                raise Conflict(
                    "a controller of this site serves", hint="stop all of them"
                ) from None
            stack.push_async_callback(seat.leave)
        catalogue, replicas, closing = await open_catalogue(configuration, clock)
        for each in closing:
            stack.push_async_callback(each.close)
        index = FederationIndex(configuration.datacenter.site_id)
        for record in catalogue.all_records()[1]:
            index.put(record)
        for site_id in replicas.sites():
            table = replicas.table(site_id)
            if table is not None:
                index.replace_site(site_id, table.all_records())
        yield index


def _believed(
    configuration: ControllerConfiguration, store: TrustStore, clock: Clock, index: FederationIndex
) -> dict[SiteId, str]:
    """Return the other datacenters that were not revoked, and where their controllers listen."""
    desk = TrustDesk(store, clock)
    for document in index.values(SiteTrust):
        desk.take(document)
    peers = peers_of(configuration.state_dir)
    return {site: addresses for site, addresses in peers.items() if not desk.is_revoked(site)}


async def _require_silence(
    client: EtcdClient, own_url: str, members: Collection[str], peers: dict[SiteId, str]
) -> None:
    """Refuse while anything answers that could be a quorum, or take part in one.

    Raises:
        Conflict: something does.
    """
    if await client.answers([own_url]):
        raise Conflict(
            f"this site's member of the quorum runs at {own_url}",
            hint="stop nuage-quorum-member and nuage@controller here first",
        )
    hint = (
        "a majority that can come back is not lost: start it; else stop that datacenter's daemons"
    )
    for url in members:
        if url != own_url and await client.answers([url]):
            raise Conflict(f"a member of the quorum answers at {url}", hint=hint)
    for site_id, addresses in sorted(peers.items()):
        for address in addresses.split(","):
            if await accepts(address, timeout_s=ANSWER_TIMEOUT_S):
                raise Conflict(f"the controller of {site_id} answers at {address}", hint=hint)


def known_owners(index: FederationIndex) -> Iterator[Ownership]:
    """Yield who owns what others could take over, as the records have it.

    What has changed its home was given by the quorum. Of what has not, its home has claimed what
    may fail over, and volumes of which other sites have a copy; without that claim they would stay
    with a home that is gone.
    """
    for record in index.records("vm"):
        vm = record.value
        if not isinstance(vm, Vm) or vm.wish is PowerWish.DELETED or not is_decided(index, vm):
            continue
        epoch = quorum_part(vm.epoch)
        if epoch > NEVER_MOVED or fails_over(index, vm):
            yield Ownership(kind="vm", id=vm.vm_id, owner=record.home, epoch=epoch)
    for record in index.records("volume"):
        volume = record.value
        if not isinstance(volume, Volume):
            continue
        epoch = quorum_part(volume.epoch)
        if epoch > NEVER_MOVED or any(p.site_id != record.home for p in volume.replicas):
            id = volume.volume_id
            yield Ownership(kind="volume", id=id, owner=record.home, epoch=epoch)


def _note(
    configuration: ControllerConfiguration,
    store: TrustStore,
    clock: Clock,
    given_up: Collection[SiteId],
    lacked: Collection[Ownership],
) -> None:
    """Enter what was done in the audit log, which no controller writes meanwhile."""
    site_id = configuration.datacenter.site_id
    log = AuditLog(
        configuration.state_dir / "audit", site_id=site_id, key=store.signer_key, now_s=clock.now_s
    )
    detail = f"without {', '.join(sorted(given_up))}; {len(lacked)} owners were put in"
    log.append(AuditEntry(who="root", action="site.recover-quorum", target=site_id, detail=detail))
    log.seal()
    log.close()
