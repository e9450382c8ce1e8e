"""Years pass: sites renew their signing keys and authorities; what was signed stays provable."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from tests.scenario.trust.test_revocation_everywhere import site_of
from tests.scenario.trust.test_shared_secret_rolls import Wires
from tests.scenario.trust.test_trust_scenarios import (
    C1,
    CLOCK,
    FR,
    LYON,
    MARNE,
    Host,
    LateClock,
    host,
    serving,
)
from tests.unit.iaas.iaas_makers import record

from nuage.channel import Handlers, Identity
from nuage.daemon.site_keys import site_renewal
from nuage.daemon.trust_desk import TrustDesk
from nuage.errors import Forbidden, Unauthenticated, Unavailable
from nuage.iaas.site import OtherSites
from nuage.ids import NodeId, UserId, VolumeId
from nuage.model.identity import User
from nuage.model.infrastructure import NodeRole
from nuage.simulation.virtual_time import SkewedClock, run_virtually
from nuage.trust.audit import AuditEntry, AuditLog
from nuage.trust.book import TrustBook, key_id_of
from nuage.trust.join import join_site
from nuage.trust.ledger import LocationEvent, LocationLedger, Receipt, sign_receipt
from nuage.trust.pki import (
    DAY_S,
    load_certificate,
    make_request,
    not_after_s,
    pem_of,
    public_key_of,
    public_key_of_request,
    require_site_authority,
)
from nuage.trust.renewal import RenewAnswer, RenewRequest
from nuage.trust.site_renewal import (
    ANNOUNCED_S,
    SiteRenewal,
    register_authority_renewal,
    renewed_authority,
)
from nuage.trust.store import TrustStore
from nuage.trust.tokens import KnownUser, TokenChecker, TokenIssuer
from nuage.trust.verify import SiteKey, verify_audit, verify_ledger

__all__ = ["host"]
START_S = 1_800_000_000.0
STRIDE_S = 20 * DAY_S
YEAR_S = 365 * DAY_S
C9 = Identity(FR, LYON, NodeRole.CONTROLLER, NodeId("c9"))
ADA = User(user_id=UserId("u-1"), name="ada", grants=())


class HandClock(SkewedClock):
    """Turned by hand."""

    def __init__(self) -> None:
        self.at_s = START_S

    def now_s(self) -> float:
        return self.at_s


@dataclass
class House:
    """A site's store, what it knows of the others, its log and what it says of its keys."""

    store: TrustStore
    clock: HandClock
    log: AuditLog
    book: TrustBook
    is_away: bool = False
    told: list[str] = field(default_factory=list)

    def token(self) -> str:
        site_id = self.store.identity().site_id
        issuer = TokenIssuer(federation_id=FR, site_id=site_id, key=self.store.signer_key)
        return issuer.issue(ADA, token_id="t", now_s=self.clock.now_s())

    def believes(self, token: str) -> bool:
        checker = TokenChecker(self.book, lambda _user: KnownUser(ADA))
        try:
            checker.check(token, now_s=self.clock.now_s())
        except Unauthenticated:
            return False
        return True


class Years:
    """Marne, which holds the root's key, and Lyon; feeds flow unless a site is away."""

    def __init__(self, directory: Path) -> None:
        self.clock = HandClock()
        marne, lyon = TrustStore(directory / "c1"), TrustStore(directory / "c9")
        marne.found(C1, now_s=START_S)
        key = public_key_of_request(lyon.begin_site(LYON))
        authority_pem = marne.admit_site(LYON, key, now_s=START_S)
        lyon.finish_site(
            C9, root_pem=pem_of(marne.root()), authority_pem=authority_pem, now_s=START_S
        )
        self.marne, self.lyon = (self._house(store, directory) for store in (marne, lyon))
        self.root_is_away = False

    def _house(self, store: TrustStore, directory: Path) -> House:
        site_id = store.identity().site_id
        log = AuditLog(
            directory / f"audit-{site_id}",
            site_id=site_id,
            key=store.signer_key,
            now_s=self.clock.now_s,
        )
        return House(store, self.clock, log, TrustBook(store.root()))

    async def feed(self) -> None:
        for house in (self.marne, self.lyon):
            house.book.take(house.store.site_trust())
        if not (self.lyon.is_away or self.marne.is_away):
            self.lyon.book.take(self.marne.store.site_trust())
            self.marne.book.take(self.lyon.store.site_trust())

    def renewal(self, house: House) -> SiteRenewal:
        async def ask_root(request: RenewRequest) -> RenewAnswer:
            if self.root_is_away:
                raise Unavailable("the root's key is not here")
            site_id = house.store.identity().site_id
            marne = self.marne
            return renewed_authority(
                marne.store, marne.book, site_id, request, now_s=self.clock.now_s()
            )

        return SiteRenewal(
            house.store, self.clock, ask_root, self.feed, lambda what, _: house.told.append(what)
        )

    async def pass_by(self, until_s: float) -> None:
        """Let days pass; each site acts, writes its log, and tries the other's tokens."""
        renewals = [self.renewal(house) for house in (self.marne, self.lyon)]
        await self.feed()
        while self.clock.at_s < START_S + until_s:
            self.clock.at_s += STRIDE_S
            for renewal in renewals:
                await renewal.step()
            for house, other in ((self.marne, self.lyon), (self.lyon, self.marne)):
                house.log.append(AuditEntry(who="ada", action="vm.create", target="vm-1"))
                house.log.seal()
                token = house.token()
                assert house.believes(token)
                assert other.believes(token) or self.lyon.is_away
            await self.feed()


def test_over_ten_years_no_key_ends_and_no_token_is_refused(tmp_path: Path) -> None:
    years = Years(tmp_path)
    asyncio.run(years.pass_by(10 * YEAR_S))
    for house, name in ((years.marne, MARNE), (years.lyon, LYON)):
        store, now_s = house.store, years.clock.now_s()
        authority = store.authority().certificate
        require_site_authority(
            authority, store.root(), federation_id=FR, site_id=name, now_s=now_s + YEAR_S
        )
        assert not_after_s(store.signer()) > now_s + 300 * DAY_S
        assert house.told.count("signer-renewed") >= 8
        assert house.told.count("authority-renewed") >= 3
        assert not {"authority-expires", "root-expires"} & set(house.told)
        # The log of ten years, by the keys that the other site knows.
        house.log.close()
        other = years.lyon if name == MARNE else years.marne
        report = verify_audit(tmp_path / f"audit-{name}", other.book.public_keys())
        assert report.is_sound, report.problems
        assert report.signature_count > 180
        own = {i for i, key in other.book.public_keys().items() if key.site_id == name}
        assert len(own) >= 9
        lost = {i: k for i, k in other.book.public_keys().items() if i != min(own)}
        assert not verify_audit(tmp_path / f"audit-{name}", lost).is_sound


def test_a_new_key_signs_only_after_the_feeds_had_a_month(tmp_path: Path) -> None:
    async def live() -> None:
        store, clock = TrustStore(tmp_path), SkewedClock(offset_s=YEAR_S)
        store.found(C1, now_s=clock.now_s() - YEAR_S - DAY_S)
        published: list[tuple[float, int]] = []

        async def publish() -> None:
            published.append((clock.now_s(), store.site_trust().signers_pem.count("BEGIN")))

        told: list[tuple[float, str]] = []
        renewal = SiteRenewal(
            store, clock, unreachable, publish, lambda what, _: told.append((clock.now_s(), what))
        )
        old = key_id_of(store.signer_key().public_key())
        task = asyncio.create_task(renewal.run())
        await clock.sleep(ANNOUNCED_S - 2 * DAY_S)
        assert [count for _, count in published] == [2]
        assert key_id_of(store.signer_key().public_key()) == old
        await clock.sleep(3 * DAY_S)
        assert [what for _, what in told] == ["signer-published", "signer-renewed"]
        assert told[1][0] - published[0][0] >= ANNOUNCED_S - 600
        assert key_id_of(store.signer_key().public_key()) != old
        assert not task.done()

    run_virtually(live())


async def unreachable(_request: RenewRequest) -> RenewAnswer:
    raise Unavailable("the root's key is not here")


def test_a_site_that_was_away_learns_the_keys_with_its_first_feed(tmp_path: Path) -> None:
    async def live() -> None:
        years = Years(tmp_path)
        await years.pass_by(300 * DAY_S)
        years.lyon.is_away = True
        before = years.marne.token()
        assert years.lyon.believes(before)
        await years.pass_by(2.5 * YEAR_S)
        token = years.marne.token()
        assert not years.lyon.believes(token)  # a key of which it has not heard
        years.lyon.is_away = False
        await years.feed()
        assert years.lyon.believes(token)

    asyncio.run(live())


def test_an_authority_that_nobody_renews_is_told_a_year_ahead_and_renewed_with_the_key(
    tmp_path: Path,
) -> None:
    async def live() -> None:
        years = Years(tmp_path)
        years.root_is_away = True
        await years.pass_by(3.9 * YEAR_S)
        assert "authority-expires" not in years.lyon.told
        await years.pass_by(4.5 * YEAR_S)
        assert years.lyon.told.count("authority-expires") >= 8  # at most one a week
        years.root_is_away = False
        before = years.lyon.store.authority().certificate
        await years.pass_by(4.6 * YEAR_S)
        after = years.lyon.store.authority().certificate
        assert not_after_s(after) > not_after_s(before) + 4 * YEAR_S
        # What the feeds bring late takes nothing back, and a revocation still names both.
        years.marne.book.take(years.lyon.store.site_trust())
        old = years.lyon.store.site_trust()
        object.__setattr__(old, "authority_pem", pem_of(before))
        years.marne.book.take(old)
        assert years.marne.book.authority_of(LYON) == after
        assert after.serial_number == before.serial_number

    asyncio.run(live())


def test_the_root_s_end_is_told_years_ahead(tmp_path: Path) -> None:
    years = Years(tmp_path)
    years.clock.at_s = START_S + 17.5 * YEAR_S
    asyncio.run(years.renewal(years.marne).step())
    assert "root-expires" in years.marne.told


def test_a_crash_in_the_middle_of_a_renewal_is_made_good(tmp_path: Path) -> None:
    years = Years(tmp_path)
    store, clock = years.lyon.store, years.clock
    published = store.site_trust().signers_pem
    clock.at_s += 1.1 * YEAR_S
    store.prepare_signer(now_s=clock.now_s())
    (store.directory / "site/signers.pem").write_text(published)  # the key was written, no more
    assert store.next_signer() is None
    asyncio.run(years.renewal(years.lyon).step())
    following = store.next_signer()
    assert following is not None
    store.use_next_signer()
    assert store.signer() == following


async def test_a_ledger_s_heads_of_all_keys_are_proved(tmp_path: Path) -> None:
    years = Years(tmp_path)
    store, clock = years.marne.store, years.clock
    node, node_key = Identity(FR, MARNE, NodeRole.IONODE, NodeId("io1")), store.signer_key()
    path = tmp_path / "iaas-1.log"
    ledger = LocationLedger(
        path, name="iaas-1", site_id=MARNE, key=store.signer_key, now_s=clock.now_s
    )
    own = SiteKey(MARNE, node_key.public_key().public_bytes_raw())
    renewal, signed_by = years.renewal(years.marne), set()
    for month in range(30):
        clock.at_s += 31 * DAY_S
        await renewal.step()
        receipt = Receipt(
            volume_id=VolumeId("vol-1"), segment=month, sequence_first=month, sequence_last=month,
            chain_hash="0" * 64, site_id=MARNE, node_id=node.node_id, disk_serial="WD-1",
            event=LocationEvent.SEAL, time_ms=int(clock.now_s() * 1000),
        )  # fmt: skip
        ledger.append(sign_receipt(receipt, node_key), own)
        signed_by.add(ledger.sign_head().key_id)
    assert len(signed_by) >= 3
    await years.feed()
    node_keys = {key_id_of(node_key.public_key()): own}
    ledger.close()
    report = verify_ledger(path, years.lyon.book.public_keys(), node_keys=node_keys)
    assert report.is_sound, report.problems


async def test_lyon_asks_the_founder_over_its_channel(host: Host, tmp_path: Path) -> None:
    lyon = TrustStore(tmp_path / "lyon")
    await join_site(host.invite_site(), lyon, NodeId("c9"), CLOCK)
    founder = TrustDesk(host.store, CLOCK)
    founder.take(lyon.site_trust())
    late, handlers = LateClock(3 * YEAR_S), Handlers()
    ahead = LateClock(200.0)  # less than the skew that a certificate allows for
    register_authority_renewal(handlers, host.store, founder.book, ahead)
    desk = TrustDesk(lyon, CLOCK)
    site, wires = site_of(LYON), Wires(lyon, desk)
    site.clock, site.others = late, cast(OtherSites, wires)
    site.index.put(record(host.store.site_trust(), home=MARNE))
    renewal = site_renewal(lyon, desk, site, lambda: "")
    before = lyon.authority().certificate
    async with serving(host.store, handlers, admit=founder.book.revocations.admit) as server:
        wires.ports[MARNE] = server.port
        await renewal.step()
        after = lyon.authority().certificate
        assert not_after_s(after) >= not_after_s(before) + 100
        assert public_key_of(after) == public_key_of(before)
        # A new daemon's certificate, under the renewed authority, is accepted in a handshake.
        key = lyon.key()
        chain_pem = lyon.issue(key.public_key(), C9, now_s=CLOCK.now_s())
        lyon.install(root_pem=pem_of(lyon.root()), chain_pem=chain_pem, key=key)
        request = RenewRequest(lyon.begin_site(LYON))
        answer = await wires.ask(
            MARNE, "trust.renew_authority", request, RenewAnswer, timeout_s=5.0
        )
        assert load_certificate(answer.chain_pem).issuer == host.store.root().subject
        stolen = RenewRequest(make_request(key, "site lyon"))
        with pytest.raises(Forbidden):
            await wires.ask(MARNE, "trust.renew_authority", stolen, RenewAnswer, timeout_s=5.0)
