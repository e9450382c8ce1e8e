"""Bringing a controller's back-up to a new machine, so that nothing runs twice afterwards.

A back-up is old: since then VMs were restarted on other nodes under higher epochs, volumes, ports
and addresses were given out, certificates revoked. All of that is in the catalogue, and the other
sites have a replica of it, the last moment before the loss excepted. So a restore asks each of them
what it knows of this site, and takes the newest. Where one cannot be asked, a person has to say so,
and the quorum is asked what has gone to others since.

The history begins anew (`catalogue.snapshot`): a new incarnation, and revisions above all that were
given out. What the site had published of its trust is taken from the newest catalogue as well, or a
node that was revoked since would be let in. The member of the quorum comes back as a newcomer.

Theory of operation. Nothing is written but into empty directories, and all of it is removed again
when a step fails. The two files without which controller and member do not start (`HELD_BACK`) come
last: their init may try to start them all the while. The old controller must never run again.
"""

import os
import shutil
import tarfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.catalogue.codec import encode_value
from nuage.catalogue.feed import ReplaceReplica
from nuage.catalogue.snapshot import REVISIONS_LEFT_OUT, read_catalogue, write_catalogue
from nuage.clock import Clock
from nuage.daemon.backup import (
    CATALOGUE,
    FORMAT,
    MANIFEST,
    STATE,
    SUMS,
    TRUST,
    Manifest,
    Summed,
    ask_records,
)
from nuage.daemon.configuration import ControllerConfiguration
from nuage.daemon.joining import NUMBER_FILE, peers_of, service_hosts
from nuage.daemon.quorum import MEMBERS_FILE, QuorumMembers
from nuage.daemon.seat import has_seat
from nuage.daemon.sites import REPLICA_STREAM, AskOwn
from nuage.errors import (
    Conflict,
    CorruptData,
    InvalidRequest,
    NuageError,
    TimedOut,
    Unavailable,
)
from nuage.etcd.client import EtcdClient
from nuage.ids import NodeId, SiteId
from nuage.model.trust import SiteTrust
from nuage.model.vm import Vm, VmState
from nuage.quorum.etcd import EtcdQuorum
from nuage.quorum.model import LeaseTiming
from nuage.trust.audit import AuditEntry, AuditLog
from nuage.trust.files import (
    DIRECTORY_MODE,
    PUBLIC_MODE,
    SECRET_MODE,
    sync_directory,
    write_atomically,
)
from nuage.trust.pki import load_certificate, not_after_s, pem_of
from nuage.trust.revocation import read_revocation_list
from nuage.trust.store import (
    ROOT_REVOCATIONS,
    SIGNERS,
    SITE_REVOCATIONS,
    TrustStore,
)
from nuage.trust.verify import split_audit_line

Say = Callable[[str], None]
HELD_BACK: Final = (MEMBERS_FILE, NUMBER_FILE)
MANIFEST_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What came of it. `source` is the site whose knowledge was newest, None: the back-up's.

    `is_sure`: every other site was asked, so no VM runs where its record does not say.
    """

    manifest: Manifest
    source: SiteId | None
    is_sure: bool
    revision: int
    record_count: int


async def restore(
    configuration: ControllerConfiguration,
    path: Path,
    clock: Clock,
    *,
    without: Collection[SiteId] = (),
    say: Say = lambda _text: None,
) -> Restored:
    """Restore the back-up in `path`; tell `say` each step.

    `without` names the sites that cannot be asked, in spite of what only they may know.

    Raises:
        Conflict: a directory is not empty.
        InvalidRequest: the back-up is another site's, or of a format that this version does not
            know; or the site keeps its catalogue in an etcd.
        CorruptData: it is no back-up, or damaged.
        Unavailable: a site that is not in `without` does not answer.
    """
    if has_seat(configuration):
        raise InvalidRequest(
            "the catalogue of this site is in its own etcd", field="catalogue",
            hint="restore that etcd from a snapshot of its own (`etcdctl snapshot`)",
        )  # fmt: skip
    directories = [configuration.state_dir, configuration.trust_dir]
    if configuration.quorum.data_dir is not None:
        directories.append(configuration.quorum.data_dir)
    for directory in directories:
        if directory.exists() and any(directory.iterdir()):
            raise Conflict(f"{directory} is not empty", hint="move it away: it may be of use yet")
    try:
        return await _restore(configuration, path, clock, frozenset(without), say)
    except BaseException:
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)
        raise


async def _restore(
    configuration: ControllerConfiguration,
    path: Path,
    clock: Clock,
    without: frozenset[SiteId],
    say: Say,
) -> Restored:
    manifest = _unpack(configuration, path)
    say(f"unpacked: made {_age(clock.now_s() - manifest.made_s)} ago, revision {manifest.revision}")
    file = configuration.state_dir / CATALOGUE
    newest, source = read_catalogue(file, manifest.site_id), None
    for found in file.parent.glob(f"{CATALOGUE}*"):
        found.unlink()
    store = TrustStore(configuration.trust_dir)
    _renew(configuration, store, clock)
    peers = peers_of(configuration.state_dir)
    is_sure = bool(peers)
    for site_id, addresses in sorted(peers.items()):
        known = await _ask(store, site_id, addresses, clock, without)
        if known is None:
            say(f"{site_id}: does not answer, or knows nothing of this site")
            is_sure = False
            continue
        say(
            f"{site_id}: knows {len(known.records)} records, up to revision {known.cursor.revision}"
        )
        if known.cursor.revision > newest.cursor.revision:
            newest, source = known, site_id
    if not peers:
        say("the back-up knows no other datacenter: nobody to ask")
    elif not is_sure:
        newest = await _let_go_what_went(configuration, store, newest, say)
    revision = newest.cursor.revision + REVISIONS_LEFT_OUT
    published = _published(newest)
    if published is not None:
        _take_trust(store, published)
    write_catalogue(file, newest, revision=revision)
    _rejoin_quorum(configuration, is_alone=not peers)
    lost = _go_on_with_audit(configuration, store, clock, published)
    if lost:
        say(
            f"audit log: {lost} records after the back-up are lost; the other sites keep their seal"
        )
    _let_start(configuration.state_dir)
    return Restored(
        manifest=manifest, source=source, is_sure=is_sure, revision=revision,
        record_count=len(newest.records),
    )  # fmt: skip


def _age(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


# The archive ------------------------------------------------------------------------------------


def _unpack(configuration: ControllerConfiguration, path: Path) -> Manifest:
    """Write the files of a back-up to where they belong."""
    try:
        with tarfile.open(path, mode="r:") as archive:
            manifest = _manifest(archive, path)
            _require_ours(manifest, configuration, path)
            _unpack_files(configuration, archive, path)
    except (tarfile.TarError, EOFError) as error:
        raise CorruptData(f"{path} is no back-up, or damaged: {error}", where=str(path)) from error
    return manifest


def _unpack_files(
    configuration: ControllerConfiguration, archive: tarfile.TarFile, path: Path
) -> None:
    sums = ""
    for member in archive:
        source = archive.extractfile(member) if member.isreg() else None
        if source is None:
            raise CorruptData(f"{member.name} is no file", where=str(path))
        summed = Summed(source)
        if member.name == SUMS:
            if source.read().decode(errors="replace") != sums:
                raise CorruptData(f"{path} has rotted: its sums differ", where=str(path))
            return
        if member.name == MANIFEST:
            summed.read()
        else:
            target = _target(configuration, member.name)
            with _create(target, PUBLIC_MODE if member.mode & 0o004 else SECRET_MODE) as file:
                shutil.copyfileobj(cast("IO[bytes]", summed), file)
                file.flush()
                os.fsync(file.fileno())
        sums += summed.line(member.name)
    raise CorruptData(f"{path} was cut short", where=str(path), hint="take another one")


def _manifest(archive: tarfile.TarFile, path: Path) -> Manifest:
    first = archive.next()
    source = archive.extractfile(first) if first is not None and first.isreg() else None
    if source is None or first is None or first.name != MANIFEST:
        raise CorruptData(f"{path} is no back-up of Nuage", where=str(path))
    try:
        return msgspec.json.decode(source.read(MANIFEST_BYTES_MAX), type=Manifest)
    except msgspec.DecodeError as error:
        raise CorruptData(f"{path}: {MANIFEST}: {error}", where=str(path)) from error


def _require_ours(manifest: Manifest, configuration: ControllerConfiguration, path: Path) -> None:
    if manifest.format != FORMAT:
        raise InvalidRequest(
            f"{path} has format {manifest.format}, this Nuage knows {FORMAT}", field="file",
            hint="restore it with the version that wrote it, then upgrade",
        )  # fmt: skip
    site_id = configuration.datacenter.site_id
    if manifest.site_id != site_id:
        raise InvalidRequest(
            f"{path} is a back-up of site {manifest.site_id!r}, not {site_id!r}", field="file"
        )


def _target(configuration: ControllerConfiguration, name: str) -> Path:
    """Return where a file belongs."""
    if name == CATALOGUE:
        return configuration.state_dir / CATALOGUE
    top, *rest = name.split("/")
    directory = {STATE: configuration.state_dir, TRUST: configuration.trust_dir}.get(top)
    if directory is None or not rest or any(part in ("", ".", "..") for part in rest):
        raise CorruptData(f"a back-up has no {name!r}", where=name)
    target = directory.joinpath(*rest)
    is_held = directory == configuration.state_dir and rest[0] in HELD_BACK
    return _held_back(target) if is_held else target


def _create(target: Path, mode: int) -> BinaryIO:
    target.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    return os.fdopen(descriptor, "wb")


# What the others know ---------------------------------------------------------------------------


async def _ask(
    store: TrustStore, site_id: SiteId, addresses: str, clock: Clock, without: frozenset[SiteId]
) -> ReplaceReplica | None:
    try:
        return await ask_records(
            store, site_id, addresses, clock, stream=REPLICA_STREAM, body=AskOwn()
        )
    except NuageError as error:
        if site_id in without:
            return None
        raise Unavailable(
            f"datacenter {site_id} cannot be asked what it knows of this one: {error.message}",
            hint=f"wait until it answers; --without {site_id} does without what only it may know",
        ) from error


async def _let_go_what_went(
    configuration: ControllerConfiguration, store: TrustStore, newest: ReplaceReplica, say: Say
) -> ReplaceReplica:
    """Have the records of VMs that the quorum gave to others, or nobody, since then say so.

    As they are, such a VM would be started here as well while its new home is not heard. Let go,
    they start nothing, and are forgotten once it is heard (`iaas.movement`).
    """
    owners = await _owners(configuration, store)
    if owners is None:
        say("the quorum does not answer: what has moved away since would be started here as well")
        return newest
    records, bodies, count = list(newest.records), list(newest.bodies), 0
    for number, record in enumerate(records):
        owner = owners.get(record.id, newest.site)
        if isinstance(record.value, Vm) and owner != newest.site:
            told = f"it went to {owner or 'another datacenter'} after the back-up"
            vm = replace(
                record.value, state=VmState.STOPPED, migrating_to=NodeId(owner), failure=told
            )
            records[number] = replace(record, value=vm)
            bodies[number] = encode_value(vm)
            count += 1
    say(f"the quorum: {count} VMs have gone elsewhere since, and are not started here")
    return replace(newest, records=tuple(records), bodies=tuple(bodies))


async def _owners(
    configuration: ControllerConfiguration, store: TrustStore
) -> dict[str, SiteId] | None:
    """Return who owns each VM by the quorum, "": nobody any more; None if no majority answers."""
    path = _held_back(configuration.state_dir / MEMBERS_FILE)
    members = msgspec.json.decode(path.read_bytes(), type=QuorumMembers)
    urls = [url for url in members.client_urls if url != configuration.quorum.client_url]
    if not urls:
        return None
    client = EtcdClient(urls, tls=store.client_context())
    site_id = configuration.datacenter.site_id
    try:
        owners = await EtcdQuorum(site_id, client, timing=LeaseTiming()).all_owners()
    except (Unavailable, TimedOut):
        return None
    finally:
        await client.close()
    return {owned.id: owned.owner for owned in owners if owned.kind == "vm"}


def _published(newest: ReplaceReplica) -> SiteTrust | None:
    """Return what this site told the others of its trust at last."""
    values = (record.value for record in newest.records)
    return next((v for v in values if isinstance(v, SiteTrust) and v.site_id == newest.site), None)


def _take_trust(store: TrustStore, published: SiteTrust) -> None:
    """Take in what was published since the back-up: nothing that was revoked comes back."""
    directory, authority = store.directory, store.authority().certificate
    renewed = load_certificate(published.authority_pem)
    if not_after_s(renewed) > not_after_s(authority):
        store.renew_authority(published.authority_pem)
    lists = [(SITE_REVOCATIONS, published.revocations_pem, authority)]
    if published.root_revocations_pem:
        lists.append((ROOT_REVOCATIONS, published.root_revocations_pem, store.root()))
    for name, pem, issuer in lists:
        path = directory / name
        number = read_revocation_list(pem, issuer)[0]
        if path.exists() and number > read_revocation_list(path.read_text(), issuer)[0]:
            write_atomically(path, pem.encode())
    own = (directory / SIGNERS).read_text()
    if published.signers_pem != own and own in published.signers_pem:
        write_atomically(directory / SIGNERS, published.signers_pem.encode())
    store.raise_key_generation(published.key_generation)


# This machine -----------------------------------------------------------------------------------


def _renew(configuration: ControllerConfiguration, store: TrustStore, clock: Clock) -> None:
    """Give the controller fresh certificates: those of the back-up may have ended."""
    key = Ed25519PrivateKey.generate()
    chain_pem = store.issue(key.public_key(), store.identity(), now_s=clock.now_s())
    store.install(root_pem=pem_of(store.root()), chain_pem=chain_pem, key=key)
    store.issue_service(service_hosts(configuration), now_s=clock.now_s())


def _rejoin_quorum(configuration: ControllerConfiguration, *, is_alone: bool) -> None:
    """Have the member of the quorum ask to be let in again; one that is alone begins anew."""
    path = _held_back(configuration.state_dir / MEMBERS_FILE)
    if not path.exists() or is_alone:
        return
    members = msgspec.json.decode(path.read_bytes(), type=QuorumMembers)
    members = replace(members, initial_members={}, is_new_cluster=False)
    write_atomically(path, msgspec.json.encode(members))


def _held_back(path: Path) -> Path:
    return path.with_name(f"{path.name}.held-back")


def _let_start(state_dir: Path) -> None:
    """Put what was held back in its place: from now on controller and member start."""
    for name in HELD_BACK:
        held = _held_back(state_dir / name)
        if held.exists():
            held.rename(state_dir / name)
    sync_directory(state_dir)


def _go_on_with_audit(
    configuration: ControllerConfiguration,
    store: TrustStore,
    clock: Clock,
    published: SiteTrust | None,
) -> int:
    """Note the restore in the audit log; return how many sealed records it does not have."""
    log = AuditLog(
        configuration.state_dir / "audit",
        site_id=configuration.datacenter.site_id,
        key=store.signer_key,
        now_s=clock.now_s,
    )
    lost = 0
    if published is not None and published.audit_seal:
        _, record = split_audit_line(published.audit_seal.encode() + b"\n")
        lost = max(0, int(str(record["sequence"])) - log.head.sequence)
    detail = f"from a back-up; {lost} sealed records are lost"
    target = configuration.datacenter.site_id
    log.append(AuditEntry(who="root", action="site.restore", target=target, detail=detail))
    log.seal()
    log.close()
    return lost
