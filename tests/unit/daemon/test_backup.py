"""Backing up a controller that does not run, and bringing it back; what is refused."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.contract.catalogue.catalogue_makers import MARNE, HandClock, user

from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.store import Put
from nuage.clock import Clock, SystemClock
from nuage.daemon.backup import MANIFEST, Manifest, make_backup
from nuage.daemon.configuration import ControllerConfiguration, QuorumConfiguration
from nuage.daemon.controller import HELD_FILE, SESSION_FILE
from nuage.daemon.joining import PEERS_FILE, found, own_number
from nuage.daemon.quorum import members_of
from nuage.daemon.restore import restore
from nuage.errors import Conflict, CorruptData, InvalidRequest, NuageError, Unavailable
from nuage.ids import FederationId, SiteId
from nuage.model.infrastructure import Datacenter, Operator
from nuage.trust.files import write_atomically
from nuage.trust.revocation import read_revocation_list
from nuage.trust.store import SITE_REVOCATIONS, TrustStore

NOW_S = SystemClock().now_s()


class Hurried(HandClock):
    """Nobody is waited for."""

    async def sleep(self, delay_s: float) -> None:
        await SystemClock().sleep(min(delay_s, 0.01))


def configured(folder: Path) -> ControllerConfiguration:
    return ControllerConfiguration(
        state_dir=folder / "controller", trust_dir=folder / "trust",
        datacenter=Datacenter(
            site_id=MARNE, place="Marne", country="FR", operator=Operator("M", "FR"), tier=3,
            power_capacity_watts=18_000.0, latitude_deg=48.0, longitude_deg=2.0,
        ),
        channel_listen="127.0.0.1:1", join_listen="127.0.0.1:1", api_listen=("127.0.0.1:1",),
        quorum=QuorumConfiguration(
            data_dir=folder / "etcd", client_url="https://127.0.0.1:2",
            peer_url="https://127.0.0.1:3",
        ),
    )  # fmt: skip


async def a_site(folder: Path, clock: Clock) -> ControllerConfiguration:
    """Found a site that has run: two users, a session, a peer that nobody reaches."""
    configuration = configured(folder)
    found(configuration, FederationId("fr"), clock)
    state = configuration.state_dir
    for name in (SESSION_FILE, HELD_FILE, "images/one", "invitations/open/two"):
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_text("not to come back")
    await put(configuration, clock, user(1), user(2))
    return configuration


async def put(configuration: ControllerConfiguration, clock: Clock, *values: object) -> None:
    catalogue = await SqliteCatalogue.open(
        configuration.state_dir / "catalogue.db", site=MARNE, clock=clock
    )
    for value in values:
        await catalogue.write([Put(value=value)])  # type: ignore[arg-type]
    await catalogue.close()


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


async def test_a_controller_comes_back_without_what_would_be_wrong_by_then(tmp_path: Path) -> None:
    clock = Hurried(NOW_S)
    old = await a_site(tmp_path / "old", clock)
    made = await make_backup(old, tmp_path / "b", clock)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    assert (made.record_count, made.holds_root) == (2, True)
    with pytest.raises(Conflict, match="exists"):
        await make_backup(old, tmp_path / "b", clock)
    new = configured(tmp_path / "new")
    lines: list[str] = []
    restored = await restore(new, tmp_path / "b", clock, say=lines.append)
    assert (restored.record_count, restored.source) == (2, None)
    assert any("no other datacenter" in line for line in lines)
    here = files(tmp_path / "new")
    assert {"controller/catalogue.db", "controller/site-number"} < here
    gone = {f"controller/{n}" for n in (SESSION_FILE, HELD_FILE, "images/one")}
    assert not here & (gone | {"controller/invitations/open/two"})
    for key in ("daemon.key", "site/authority.key", "site/secrets", "federation/root.key"):
        assert (new.trust_dir / key).stat().st_mode & 0o777 == 0o600
    store = TrustStore(new.trust_dir)
    assert store.identity() == TrustStore(old.trust_dir).identity()
    assert store.key() != TrustStore(old.trust_dir).key()  # certificates are fresh
    assert members_of(new.state_dir).is_new_cluster  # it is alone
    (log,) = (new.state_dir / "audit").glob("audit-*.log")
    assert "site.restore" in log.read_text()


async def test_whoever_may_know_more_is_asked_and_a_member_is_let_in_anew(tmp_path: Path) -> None:
    clock = Hurried(NOW_S)
    old = await a_site(tmp_path / "old", clock)
    peers = {SiteId("lyon"): "127.0.0.1:1"}
    write_atomically(old.state_dir / PEERS_FILE, msgspec.json.encode(peers))
    await make_backup(old, tmp_path / "b", clock)
    new = configured(tmp_path / "new")
    with pytest.raises(Unavailable, match="lyon") as caught:
        await restore(new, tmp_path / "b", clock)
    assert "--without lyon" in caught.value.hint
    assert files(tmp_path / "new") == set()  # nothing is left, and it can be tried again
    restored = await restore(new, tmp_path / "b", clock, without=[SiteId("lyon")])
    assert not restored.is_sure
    members = members_of(new.state_dir)
    assert (members.is_new_cluster, members.initial_members) == (False, {})


async def test_neither_controller_nor_member_starts_before_the_end_of_a_restore(
    tmp_path: Path,
) -> None:
    """Their init tries all the while; an empty catalogue must not take the place of the lost."""
    clock = Hurried(NOW_S)
    old = await a_site(tmp_path / "old", clock)
    peers = {SiteId("lyon"): "127.0.0.1:1"}
    write_atomically(old.state_dir / PEERS_FILE, msgspec.json.encode(peers))
    await make_backup(old, tmp_path / "b", clock)
    new = configured(tmp_path / "new")
    tried: list[str] = []

    def say(text: str) -> None:
        tried.append(text)
        for start in (own_number, lambda _: members_of(new.state_dir)):
            with pytest.raises(Unavailable, match="missing"):
                start(new)

    await restore(new, tmp_path / "b", clock, say=say, without=[SiteId("lyon")])
    assert len(tried) > 1
    assert own_number(new) == 0


async def test_what_was_revoked_since_the_backup_stays_revoked(tmp_path: Path) -> None:
    """The catalogue is newer than the keys beside it, as when another site knew it."""
    clock = Hurried(NOW_S)
    old = await a_site(tmp_path / "old", clock)
    store = TrustStore(old.trust_dir)
    before = (old.trust_dir / SITE_REVOCATIONS).read_text()
    store.revoke([4711], now_s=clock.now_s())
    await put(old, clock, store.site_trust())
    (old.trust_dir / SITE_REVOCATIONS).write_text(before)
    await make_backup(old, tmp_path / "b", clock)
    new = configured(tmp_path / "new")
    await restore(new, tmp_path / "b", clock)
    authority = TrustStore(new.trust_dir).authority().certificate
    text = (new.trust_dir / SITE_REVOCATIONS).read_text()
    assert read_revocation_list(text, authority)[1] == {4711}


def rewritten(source: Path, target: Path, manifest: Manifest | None = None, name: str = "") -> Path:
    """Copy a back-up with another manifest, or with one more file."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        if name:
            new.addfile(old.getmember(MANIFEST), old.extractfile(MANIFEST))
            new.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            data = file.read()
            if member.name == MANIFEST and manifest is not None:
                data = msgspec.json.encode(manifest)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return target


async def test_what_is_no_backup_of_this_site_changes_nothing(tmp_path: Path) -> None:
    clock = Hurried(NOW_S)
    old = await a_site(tmp_path / "old", clock)
    good = tmp_path / "b"
    made = await make_backup(old, good, clock)
    manifest = Manifest(
        format=1, site_id=MARNE, made_s=NOW_S, revision=made.revision, incarnation="x"
    )
    (tmp_path / "noise").write_bytes(b"no tar" * 1000)
    rotten = bytearray(good.read_bytes())
    rotten[rotten.index(b"user-1")] ^= 1
    (tmp_path / "rotten").write_bytes(rotten)
    (tmp_path / "cut").write_bytes(good.read_bytes()[:60_000])
    wrong: list[tuple[Path, type[NuageError]]] = [
        (rewritten(good, tmp_path / "1", replace_(manifest, format=2)), InvalidRequest),
        (rewritten(good, tmp_path / "2", replace_(manifest, site_id="lyon")), InvalidRequest),
        (rewritten(good, tmp_path / "3", name="state/../../../outside"), CorruptData),
        (rewritten(good, tmp_path / "4", name="elsewhere/file"), CorruptData),
        (tmp_path / "noise", CorruptData),
        (tmp_path / "cut", CorruptData),
        (tmp_path / "rotten", CorruptData),
    ]
    new = configured(tmp_path / "new")
    for path, error in wrong:
        with pytest.raises(error):
            await restore(new, path, clock)
        assert files(tmp_path / "new") == set()
    with pytest.raises(Conflict, match="not empty"):
        await restore(old, good, clock)
    seated = replace(new, catalogue="https://10.0.0.1:2379")
    with pytest.raises(InvalidRequest, match="etcd"):
        await restore(seated, good, clock)


def replace_(manifest: Manifest, **changes: object) -> Manifest:
    return msgspec.structs.replace(manifest, **changes)
