"""What a back-up of a controller is, and how one is made while the controller runs.

A back-up is a tar of mode 0600::

    nuage-backup.json   format, site, when, and the catalogue's revision
    catalogue.db        the catalogue at that revision, without its history: SQLite, as at rest
    state/...           the controller's other files: audit log, ledgers, accounts, site numbers
    trust/...           its keys and certificates
    SHA256SUMS          of all files before it, so that one that was cut short or has rotted is seen

Not in it: what would be wrong when it comes back (the quorum's session and what was owned under
it, invitations), etcd's data (a lost member is replaced, not restored), the ledgers' indexes (made
anew from the ledgers), and images, which are large and never change: copy them beside it.

The catalogue is asked of the running controller, as a snapshot of its feed, or read from its file
when none runs. Every other file is replaced as a whole or only appended to, and whoever opens it
cuts a torn end off: so each is good, copied at any moment. `nuage.daemon.restore` brings it back.
"""

import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final, cast

import msgspec

from nuage.catalogue.feed import Cursor, FeedMessage, FeedReader, FeedRequest, ReplaceReplica
from nuage.catalogue.snapshot import read_catalogue, write_catalogue
from nuage.channel import ChannelClient, Expected, Handlers
from nuage.clock import Clock
from nuage.daemon.configuration import ControllerConfiguration
from nuage.daemon.controller import HELD_FILE, SESSION_FILE
from nuage.daemon.quorum import BEGUN_FILE
from nuage.daemon.seat import has_seat
from nuage.daemon.sites import FEED_STREAM
from nuage.errors import Conflict, RemoteProtocolError, Unavailable
from nuage.ids import SiteId
from nuage.model.infrastructure import NodeRole
from nuage.trust.files import SECRET_MODE, sync_directory
from nuage.trust.ledger import INDEX_FOLDER
from nuage.trust.store import TrustStore

FORMAT: Final = 1
MANIFEST: Final = "nuage-backup.json"
SUMS: Final = "SHA256SUMS"  # in the form of sha256sum(1)
CATALOGUE: Final = "catalogue.db"
STATE: Final = "state"
TRUST: Final = "trust"
ANSWER_TIMEOUT_S: Final = 10.0  # to connect to a controller that runs, on this machine or a WAN
# Of the state directory, besides the catalogue; see the module for why.
LEFT_OUT: Final = frozenset(
    {SESSION_FILE, HELD_FILE, BEGUN_FILE, INDEX_FOLDER, "images", "invitations"}
)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a back-up says of itself."""

    format: int
    site_id: SiteId
    made_s: float
    revision: int
    incarnation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupMade:
    """What came of it. `holds_root`: the federation's root key is in it."""

    revision: int
    record_count: int
    size_bytes: int
    holds_root: bool


async def make_backup(
    configuration: ControllerConfiguration, path: Path, clock: Clock
) -> BackupMade:
    """Write a back-up of this site's controller into `path`; durable on return.

    Raises:
        Conflict: there is a file of that name.
        Unavailable: the controller does not answer, though it has its catalogue open.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE)
    except FileExistsError:
        raise Conflict(f"{path} exists already", hint="choose another name") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            snapshot = await _own_records(configuration, clock)
            with tarfile.open(fileobj=file, mode="w") as archive:
                _fill(archive, configuration, snapshot, now_s=clock.now_s())
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    sync_directory(path.absolute().parent)
    return BackupMade(
        revision=snapshot.cursor.revision,
        record_count=len(snapshot.records),
        size_bytes=path.stat().st_size,
        holds_root=TrustStore(configuration.trust_dir).holds_root,
    )


async def _own_records(configuration: ControllerConfiguration, clock: Clock) -> ReplaceReplica:
    """Return the catalogue's records: from its file, or from the controller that has it open."""
    site_id = configuration.datacenter.site_id
    path = configuration.state_dir / CATALOGUE
    if not has_seat(configuration) and path.exists():
        try:
            return read_catalogue(path, site_id)
        except Unavailable:
            pass  # a controller runs
    addresses = ",".join(configuration.datacenter.addresses) or configuration.channel_listen
    found = await ask_records(
        TrustStore(configuration.trust_dir), site_id, addresses, clock,
        stream=FEED_STREAM, body=FeedRequest(reader=site_id),
    )  # fmt: skip
    if found is None:
        raise RemoteProtocolError(f"the controller at {addresses} sent no snapshot")
    return found


async def ask_records(
    store: TrustStore, at: SiteId, addresses: str, clock: Clock, *, stream: str, body: object
) -> ReplaceReplica | None:
    """Return what the controller of `at` has of this site, None when it has nothing.

    Raises:
        Unavailable: it does not answer.
        RemoteProtocolError: what it says is no snapshot of this site's records.
    """
    own = store.identity()
    expected = Expected(own.federation_id, site_id=at, role=NodeRole.CONTROLLER)
    client = ChannelClient(addresses, store.client_context(), Handlers(), clock, expected=expected)
    async with client:
        peer = await client.wait_ready(ANSWER_TIMEOUT_S)
        async with peer.subscribe(stream, body, FeedMessage) as messages:
            return await _first_snapshot(messages, own.site_id, clock)


async def _first_snapshot(
    messages: AsyncIterator[FeedMessage], site_id: SiteId, clock: Clock
) -> ReplaceReplica | None:
    reader = FeedReader(site_id, reader=site_id, cursor=Cursor())
    async for message in messages:
        effects = reader.receive(message, now_s=clock.now_s(), monotonic_s=clock.monotonic_s())
        for effect in effects:
            if isinstance(effect, ReplaceReplica):
                return effect
    return None


def _fill(
    archive: tarfile.TarFile,
    configuration: ControllerConfiguration,
    snapshot: ReplaceReplica,
    *,
    now_s: float,
) -> None:
    manifest = Manifest(
        format=FORMAT,
        site_id=snapshot.site,
        made_s=now_s,
        revision=snapshot.cursor.revision,
        incarnation=snapshot.cursor.incarnation,
    )
    sums: list[str] = []
    with TemporaryDirectory(dir=configuration.state_dir, prefix=".backup-") as folder:
        beside = Path(folder)
        (beside / MANIFEST).write_bytes(msgspec.json.encode(manifest) + b"\n")
        write_catalogue(beside / CATALOGUE, snapshot, revision=snapshot.cursor.revision)
        sums += [_add(archive, beside / name, name) for name in (MANIFEST, CATALOGUE)]
        own = {configuration.trust_dir, configuration.quorum.data_dir}
        for name, directory in ((STATE, configuration.state_dir), (TRUST, configuration.trust_dir)):
            sums += [
                _add(archive, path, f"{name}/{path.relative_to(directory)}")
                for path in _files(directory, own - {directory})
            ]
        (beside / SUMS).write_text("".join(sums))
        _add(archive, beside / SUMS, SUMS)


def _files(directory: Path, others: set[Path | None]) -> Iterator[Path]:
    """Yield the files of a directory that belong into a back-up, in order."""
    for path in sorted(directory.iterdir()):
        is_ours = path.name not in LEFT_OUT and not path.name.startswith((CATALOGUE, "."))
        if path in others or not is_ours or path.is_symlink():
            continue
        if path.is_dir():
            yield from _files(path, others)
        elif path.is_file():
            yield path


def _add(archive: tarfile.TarFile, path: Path, name: str) -> str:
    """Add a file as long as it is now, for it may be appended to; return its line of `SUMS`."""
    with path.open("rb") as file:
        summed = Summed(file)
        archive.addfile(archive.gettarinfo(arcname=name, fileobj=file), cast("IO[bytes]", summed))
    return summed.line(name)


class Summed:
    """A file that is summed up as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sum = sha256()

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        data = self._file.read(size)
        self._sum.update(data)
        return data

    def line(self, name: str) -> str:
        """Return what `SUMS` says of what was read."""
        return f"{self._sum.hexdigest()}  {name}\n"
