"""One etcd member a site: how it is started, joined, removed, and rebuilt after a disaster.

Timings are for a WAN. The election time-out is twenty round trips of 100 ms, a bad day in
Europe: an election costs two to four seconds, and no congestion below 1.6 s starts one.
`ELECTION_MS` is part of the lease's margin (`nuage.quorum.model.ELECTION_S`): change both
together. Heartbeats tell of a leader that is gone and of nothing else (writes and confirmed
reads send their own messages), so five in an election time-out do: each wakes every member.

A member runs Go code on one core: it serves a few writes a minute, and with more each message
would wake a thread of each of them.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nuage.clock import Clock
from nuage.errors import Conflict, InvalidRequest, NotFound, NuageError, TimedOut, Unavailable
from nuage.etcd.client import EtcdClient
from nuage.etcd.messages import Member
from nuage.ids import SiteId
from nuage.quorum.etcd import EtcdQuorum
from nuage.quorum.model import ELECTION_S, LeaseTiming, Ownership

ELECTION_MS: Final = int(ELECTION_S * 1000)
HEARTBEAT_MS: Final = ELECTION_MS // 5  # etcd refuses fewer
MEMBER_ENVIRONMENT: Final = {"GOMAXPROCS": "1"}
BACKEND_BYTES_MAX: Final = 512 * 1024 * 1024  # a million ownerships; etcd stops writing there
COMPACTION_RETENTION: Final = "1h"  # a watch that was cut longer reads everything again
RECOVERY_TIMEOUT_S: Final = 60.0
RECOVERY_POLL_S: Final = 0.2
STOP_TIMEOUT_S: Final = 10.0
PAIR: Final = 2  # as many members have a majority only together


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberTls:
    """Certificate files, in PEM. One CA signs members and clients of the federation.

    etcd reads `revoked_file`, a revocation list, at each handshake; it must exist.
    """

    ca_file: Path
    cert_file: Path
    key_file: Path
    revoked_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberConfig:
    """A site's member. URLs are what the other sites reach; `tls` None: loopback only.

    At `metrics_listen`, ``host:port``, it serves ``/metrics`` and ``/health`` without TLS, and
    nothing else: who scrapes needs no certificate, with which all of the quorum could be read.
    """

    site: SiteId
    data_dir: Path
    client_url: str
    peer_url: str
    tls: MemberTls | None = None
    listen_client_url: str = ""
    listen_peer_url: str = ""
    metrics_listen: str = ""
    heartbeat_ms: int = HEARTBEAT_MS
    election_ms: int = ELECTION_MS
    binary: str = "etcd"

    def __post_init__(self) -> None:
        if not 5 * self.heartbeat_ms <= self.election_ms <= 50_000:
            raise InvalidRequest(
                "an election time-out is 5 heartbeats to 50 s", field="election_ms"
            )
        scheme = "https://" if self.tls is not None else "http://"
        for field in ("client_url", "peer_url"):
            url: str = getattr(self, field)
            if not url.startswith(scheme):
                raise InvalidRequest(f"{url!r} does not begin with {scheme}", field=field)


def member_arguments(
    config: MemberConfig, *, initial_members: Mapping[SiteId, str], is_new_cluster: bool
) -> list[str]:
    """Return the command line of a member.

    `initial_members` maps site to peer URL, this site's included; etcd reads it at the first
    start only. `is_new_cluster` False: it joins one that runs (see `join_member`).
    """
    if initial_members.get(config.site) != config.peer_url:
        raise InvalidRequest(
            f"the members at the start do not have {config.site} at {config.peer_url}",
            field="initial_members",
        )
    initial = ",".join(f"{site}={url}" for site, url in sorted(initial_members.items()))
    state = "new" if is_new_cluster else "existing"
    return [
        *_base_arguments(config),
        "--initial-cluster", initial,
        "--initial-cluster-state", state,
        "--initial-cluster-token", "nuage-quorum",
    ]  # fmt: skip


async def join_member(client: EtcdClient, *, site: SiteId, peer_url: str) -> dict[SiteId, str]:
    """Announce a site's member to the cluster; return its `initial_members`.

    Called while the member has no data: before its first start, or after its disk was lost, through
    a client of the sites that run. Announcing the same again is harmless. One at a time: etcd
    refuses an addition that could cost the majority, and a newcomer waits for one that was
    announced before it. Two that a lone member took in at the same instant do not wait for each
    other, for it needs one of them: each starts with all.

    A member that has started, and now has no data, is removed first: under its old id it would
    promise anew what it has promised already. Of two members the other one holds all that was
    ever agreed on, and cannot remove anybody alone: there the old id is taken up again.

    Returns:
        Peer URLs by site; a member that has not started is there under its id.

    Raises:
        Conflict: another member has the URL, or the site has a member that runs elsewhere, or
            another newcomer has not started.
        Unavailable, TimedOut: the others have no majority, or not for five seconds; try again.
    """
    members = (await client.member_list()).members
    for member in members:
        if peer_url in member.peer_urls and member.name not in ("", site):
            raise Conflict(f"{peer_url} is the member of site {member.name}")
        if member.name == site and await _is_lost(client, member, peer_url, len(members)):
            members = (await client.member_remove(member.id)).members
    if not any(peer_url in member.peer_urls for member in members):
        for member in members:
            if not member.name:
                raise Conflict(
                    f"the member at {member.peer_urls[0]} was announced and never started",
                    hint="start it, or remove it, before another joins",
                )
        members = (await client.member_add([peer_url])).members
    return {_name_at_start(member, site, peer_url): member.peer_urls[0] for member in members}


def _name_at_start(member: Member, site: SiteId, peer_url: str) -> SiteId:
    """Return the name for `--initial-cluster`: of another's, etcd compares the URLs alone."""
    return site if peer_url in member.peer_urls else SiteId(member.name or f"{member.id:x}")


async def _is_lost(client: EtcdClient, member: Member, peer_url: str, count: int) -> bool:
    """Tell whether a member of this site, which has no data now, is to be removed first.

    Raises:
        Conflict: it runs at another URL, or is one of two that moved.
    """
    if peer_url in member.peer_urls:
        return count > PAIR
    elsewhere = f"site {member.name} has a member at {', '.join(member.peer_urls)}"
    if count <= PAIR:
        raise Conflict(elsewhere, hint="one of two members comes back at its old address only")
    if await client.answers(member.client_urls):
        raise Conflict(elsewhere, hint="stop that one first")
    return True


async def remove_member(client: EtcdClient, site: SiteId) -> None:
    """Remove a site's member for good; its data directory is of no use afterwards.

    Raises:
        NotFound: the site has none.
        Unavailable: the others have not been connected for five seconds; try again.
    """
    member = await find_member(client, site)
    if member is None:
        raise NotFound("quorum member", site)
    await client.member_remove(member.id)


async def find_member(client: EtcdClient, site: SiteId) -> Member | None:
    """Return a site's member, None when it has none."""
    for member in (await client.member_list()).members:
        if member.name == site:
            return member
    return None


async def recover_lost_majority(
    config: MemberConfig,
    *,
    client: EtcdClient,
    clock: Clock,
    members: Collection[SiteId],
    sites_given_up: Collection[SiteId],
    known: Iterable[Ownership] = (),
) -> tuple[Ownership, ...]:
    """Make this site's data a cluster of one, after the majority was lost for good.

    The last resort: every other member counts as dead. Whoever calls has made sure that the
    sites in `sites_given_up` are off or stopped, for they would go on as a second quorum
    and machines could run twice. Their members rejoin with empty data directories
    (`join_member`). Leases start anew with their full time, so that nothing is taken over
    sooner than after `ttl_s`. This member must not be running; afterwards it is started as
    usual. etcd drops what its log holds beyond the last commit it had noted: the last writes
    before the disaster may be missing. What is `known` of them is put in while nobody else is
    served. Broken off, it may be done again.

    Args:
        config: this site's member.
        client: a client of this member alone.
        clock: paces the waiting.
        members: the sites that have a member, as the catalogue knows them.
        sites_given_up: every one of them but this, named by the operator.
        known: owners and epochs as the catalogues have them.

    Returns:
        What of `known` the quorum lacked.

    Raises:
        InvalidRequest: `sites_given_up` is not exactly the others; nothing was changed.
        Unavailable: etcd does not start; its own log says why.
    """
    if not (config.data_dir / "member").is_dir():
        raise InvalidRequest(f"{config.data_dir} holds no member's data", field="data_dir")
    others = set(members) - {config.site}
    if others != set(sites_given_up):
        raise InvalidRequest(
            f"the other members are {', '.join(sorted(others)) or 'none'}; "
            f"given up are {', '.join(sorted(sites_given_up)) or 'none'}",
            field="given_up",
            hint="name exactly those, after making sure that each is off",
        )
    arguments = [*_base_arguments(config), "--force-new-cluster"]
    process = await asyncio.create_subprocess_exec(config.binary, *arguments)
    try:
        await _wait_for(process, clock, lambda: client.range(b"/nuage/"))
        return await EtcdQuorum(config.site, client, timing=LeaseTiming()).raise_epochs(known)
    finally:
        await _stop(process)


async def _wait_for(
    process: asyncio.subprocess.Process, clock: Clock, ask: Callable[[], Awaitable[object]]
) -> None:
    deadline_s = clock.monotonic_s() + RECOVERY_TIMEOUT_S
    while True:
        try:
            await ask()
        except NuageError as error:
            if process.returncode is not None:
                raise Unavailable(
                    f"etcd ended with status {process.returncode}", hint="its log says why"
                ) from error
            if clock.monotonic_s() >= deadline_s:
                raise TimedOut("start of etcd", after_s=RECOVERY_TIMEOUT_S) from error
            await clock.sleep(RECOVERY_POLL_S)
        else:
            return


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _base_arguments(config: MemberConfig) -> list[str]:
    arguments = [
        "--name", config.site,
        "--data-dir", str(config.data_dir),
        "--listen-client-urls", config.listen_client_url or config.client_url,
        "--advertise-client-urls", config.client_url,
        "--listen-peer-urls", config.listen_peer_url or config.peer_url,
        "--initial-advertise-peer-urls", config.peer_url,
        "--heartbeat-interval", str(config.heartbeat_ms),
        "--election-timeout", str(config.election_ms),
        "--pre-vote",  # a site that comes back does not unseat the leader
        "--auto-compaction-mode", "periodic",
        "--auto-compaction-retention", COMPACTION_RETENTION,
        "--quota-backend-bytes", str(BACKEND_BYTES_MAX),
        "--logger", "zap",
        "--log-level", "error",  # warn tells of every request to the gateway
    ]  # fmt: skip
    if config.metrics_listen:
        arguments += ["--listen-metrics-urls", f"http://{config.metrics_listen}"]
    if config.tls is not None:
        arguments += [
            "--client-cert-auth", "--trusted-ca-file", str(config.tls.ca_file),
            "--cert-file", str(config.tls.cert_file), "--key-file", str(config.tls.key_file),
            "--peer-client-cert-auth", "--peer-trusted-ca-file", str(config.tls.ca_file),
            "--peer-cert-file", str(config.tls.cert_file),
            "--peer-key-file", str(config.tls.key_file),
        ]  # fmt: skip
        if config.tls.revoked_file is not None:
            revoked = str(config.tls.revoked_file)
            arguments += ["--client-crl-file", revoked, "--peer-crl-file", revoked]
    return arguments
