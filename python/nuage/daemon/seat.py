"""A site with several controllers: its catalogue in the site's own etcd, one of them serving.

Theory of operation. The controllers of a site share `trust_dir` and `state_dir`, on storage that
all of them mount, and the catalogue in etcd. One has the *seat*: a key there, bound to a lease.
It alone serves; the others wait for the key to go. What the catalogue does not hold (audit log,
ledgers, images, the quorum's session) is thus written by one process, as at a site with one
controller, and whoever takes the seat goes on where the last one stopped.

Fault model. A controller that cannot renew its lease (dead, stalled, cut off from etcd) ends itself
by its own clock before etcd can give the seat to another: a lease counts from when its renewal was
sent, and `SEAT_MARGIN_S` is left. Guests and storage daemons do not notice; agents and other sites
try the site's addresses in turn.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import urlsplit

import structlog

from nuage.catalogue.etcd import EtcdCatalogue
from nuage.catalogue.replica import MemoryReplicas, Replicas, SqliteReplicas
from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.store import Catalogue
from nuage.clock import Clock
from nuage.daemon.configuration import ControllerConfiguration
from nuage.errors import InvalidRequest, NuageError
from nuage.etcd.client import EtcdClient
from nuage.etcd.messages import PutOp, absent
from nuage.ids import SiteId
from nuage.trust.store import TrustStore

SEAT_TTL_S: Final = 10  # what a site is without a controller after one dies, at most
SEAT_MARGIN_S: Final = 3.0  # ended so long before another may sit down
RENEW_EVERY_S: Final = 2.0
ASK_EVERY_S: Final = 0.5
EMBEDDED: Final = "sqlite"
log = structlog.get_logger("seat")


class Seat:
    """The one seat of a site. `stand_up` ends this process: it must not return."""

    def __init__(
        self,
        site_id: SiteId,
        client: EtcdClient,
        clock: Clock,
        *,
        address: str,
        stand_up: Callable[[], None],
    ) -> None:
        self._key = f"/nuage/controller/{site_id}".encode()
        self._client = client
        self._clock = clock
        self._address = address
        self._stand_up = stand_up
        self._lease_id = 0
        self._until_s = 0.0
        self._holding: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Wait until no other controller has the seat, sit down, and stay until `leave`."""
        is_told = False
        while True:
            try:
                if await self._try():
                    self._holding = asyncio.create_task(self.hold(), name="seat")
                    return
                if not is_told:
                    log.info("standing by: another controller of this site serves")
                    is_told = True
            except NuageError as error:
                log.warning("the site's etcd does not answer", error=error.message)
            await self._clock.sleep(ASK_EVERY_S)

    async def _try(self) -> bool:
        found = await self._client.range(self._key)
        if found.kvs:
            return False
        sent_s = self._clock.monotonic_s()
        granted = await self._client.lease_grant(SEAT_TTL_S)
        put = PutOp(self._key, self._address.encode(), granted.id)
        if (await self._client.txn((absent(self._key),), (put,))).succeeded:
            self._lease_id = granted.id
            self._until_s = sent_s + SEAT_TTL_S - SEAT_MARGIN_S
            log.info("this controller serves", address=self._address)
            return True
        with contextlib.suppress(NuageError):  # it would expire by itself
            await self._client.lease_revoke(granted.id)
        return False

    async def hold(self) -> None:
        """Renew the seat; end the process once it may be another's. Runs for ever."""
        while True:
            await self._clock.sleep(RENEW_EVERY_S)
            sent_s = self._clock.monotonic_s()
            if sent_s < self._until_s and await self._renew():
                self._until_s = sent_s + SEAT_TTL_S - SEAT_MARGIN_S
            if self._clock.monotonic_s() >= self._until_s:
                log.error("the seat of this site may be another controller's: ending")
                self._stand_up()

    async def _renew(self) -> bool:
        try:
            left_s = await self._client.lease_keepalive(self._lease_id)
        except NuageError as error:
            log.warning("the seat was not renewed", error=error.message)
            return False
        if not left_s:
            self._until_s = 0.0  # it is gone: etcd was made anew, or we were away for long
        return bool(left_s)

    async def leave(self) -> None:
        """Give the seat up, for another to take at once."""
        if self._holding is not None:
            self._holding.cancel()
        with contextlib.suppress(NuageError):
            await self._client.lease_revoke(self._lease_id)
        await self._client.close()


def end_process() -> None:
    """End at once, as a kill would: whatever is under way must not be finished any more."""
    os._exit(1)


def has_seat(configuration: ControllerConfiguration) -> bool:
    """Tell whether the site may have several controllers: its catalogue is in an etcd."""
    return configuration.catalogue != EMBEDDED


def open_seat(configuration: ControllerConfiguration, clock: Clock) -> Seat:
    """Return the seat of a site whose catalogue is in its own etcd."""
    return Seat(
        configuration.datacenter.site_id,
        open_own_etcd(configuration),
        clock,
        address=configuration.channel_listen,
        stand_up=end_process,
    )


def open_own_etcd(configuration: ControllerConfiguration) -> EtcdClient:
    """Return a client of the site's own etcd.

    Raises:
        InvalidRequest: `catalogue` names none, or one that is reached in clear over a network.
    """
    urls = configuration.catalogue.split(",")
    for url in urls:
        parts = urlsplit(url)
        is_here = parts.hostname in ("127.0.0.1", "::1", "localhost")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequest(
                f"catalogue is {EMBEDDED!r} or the client URLs of the site's etcd, not {url!r}",
                field="catalogue",
            )
        if parts.scheme == "http" and not is_here:
            raise InvalidRequest(
                f"{url} would be reached in clear", field="catalogue", hint="use https"
            )
    is_tls = any(url.startswith("https:") for url in urls)
    context = TrustStore(configuration.trust_dir).client_context() if is_tls else None
    return EtcdClient(urls, tls=context)


class Closing(Protocol):
    """What is closed when the controller stops."""

    async def close(self) -> None:
        """Finish what was accepted, and let go."""
        ...


async def open_catalogue(
    configuration: ControllerConfiguration, clock: Clock
) -> tuple[Catalogue, Replicas, tuple[Closing, ...]]:
    """Open the site's catalogue and its replicas; return what to close, in order of opening.

    Raises:
        Unavailable, CorruptData, InvalidRequest: as the driver's `open`.
    """
    site_id = configuration.datacenter.site_id
    if has_seat(configuration):
        client = open_own_etcd(configuration)
        shared = await EtcdCatalogue.open(client, site=site_id, clock=clock)
        return shared, MemoryReplicas(), (client, shared)
    catalogue = await SqliteCatalogue.open(
        configuration.state_dir / "catalogue.db", site=site_id, clock=clock
    )
    replicas = await SqliteReplicas.open(catalogue, clock)
    return catalogue, replicas, (catalogue, replicas)
