"""Any sequence of leases, claims and takeovers, against two dicts."""

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nuage.errors import Conflict, StaleEpoch
from nuage.ids import SiteId
from nuage.quorum.model import NOBODY, LeaseHeld, LeaseLost
from nuage.quorum.state import QuorumState

SITES = st.sampled_from([SiteId(name) for name in "abc"])
IDS = st.sampled_from(["vm-1", "vm-2"])
EPOCHS = st.integers(0, 4)
TTL_S = 10.0


def refusal_of(act: Callable[[], object]) -> type[Conflict] | None:
    """Return the class of the conflict that `act` ends in, None when it succeeds."""
    try:
        act()
    except Conflict as error:
        return type(error)
    return None


class QuorumMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state = QuorumState(TTL_S)
        self.now_s = 0.0
        self.expires_s: dict[SiteId, float] = {}
        self.owners: dict[str, tuple[SiteId, int]] = {}
        self.heirs: dict[str, SiteId] = {}
        self.epochs_given: set[tuple[str, int]] = set()

    def holds(self, site: SiteId) -> bool:
        return self.expires_s.get(site, 0.0) > self.now_s

    def give(self, id: str, site: SiteId, epoch: int) -> None:
        assert (id, epoch) not in self.epochs_given, "an epoch is given out once"
        self.epochs_given.add((id, epoch))
        self.owners[id] = (site, epoch)
        self.heirs[id] = NOBODY

    def deserved(
        self, id: str, holder: SiteId, to_site: SiteId, epoch: int
    ) -> type[Exception] | None:
        owner, current = self.owners.get(id, (NOBODY, 0))
        if current != epoch:
            return StaleEpoch
        if owner != holder:
            return Conflict
        return None if self.holds(to_site) else LeaseLost

    @rule(delay_s=st.floats(0.1, 8.0))
    def wait(self, delay_s: float) -> None:
        self.now_s += delay_s

    @rule(site=SITES, session=st.sampled_from("xxxy"))
    def renew(self, site: SiteId, session: str) -> None:
        try:
            self.state.renew(site, session, self.now_s)
        except LeaseHeld:
            assert self.holds(site)
        else:
            self.expires_s[site] = self.now_s + TTL_S

    @rule(id=IDS, site=SITES, epoch=EPOCHS)
    def claim(self, id: str, site: SiteId, epoch: int) -> None:
        wanted = self.deserved(id, NOBODY, site, epoch)
        if self.owners.get(id) == (site, epoch + 1) and self.heirs[id] == NOBODY:
            wanted = None
        elif wanted is None:
            self.give(id, site, epoch + 1)
        got = refusal_of(
            lambda: self.state.claim("vm", id, site, expected_epoch=epoch, now_s=self.now_s)
        )
        assert got is wanted

    @rule(id=IDS, a=SITES, b=SITES, epoch=EPOCHS, expired=st.booleans())
    def move(self, id: str, a: SiteId, b: SiteId, epoch: int, *, expired: bool) -> None:
        wanted = self.deserved(id, a, b, epoch)
        others = {a, self.heirs.get(id, NOBODY)} - {NOBODY, b}
        if wanted is None and expired and any(self.holds(site) for site in others):
            wanted = LeaseHeld
        if self.owners.get(id) == (b, epoch + 1) and self.heirs[id] == NOBODY:
            wanted = None
        elif wanted is None:
            self.give(id, b, epoch + 1)
        got = refusal_of(
            lambda: self.state.move(
                "vm", id, from_site=a, to_site=b, expected_epoch=epoch, now_s=self.now_s,
                from_expired=expired,
            )
        )  # fmt: skip
        assert got is wanted

    @rule(id=IDS, owner=SITES, heir=st.one_of(SITES, st.just(NOBODY)), epoch=EPOCHS)
    def promise(self, id: str, owner: SiteId, heir: SiteId, epoch: int) -> None:
        wanted = self.deserved(id, owner, heir, epoch)
        known = self.owners.get(id) == (owner, epoch)
        if known and heir in (NOBODY, self.heirs[id]):
            wanted = None
        if wanted is None:
            self.heirs[id] = heir
        got = refusal_of(
            lambda: self.state.promise(
                "vm", id, owner=owner, heir=heir, expected_epoch=epoch, now_s=self.now_s
            )
        )
        assert got is wanted

    @rule(id=IDS, owner=SITES, heir=SITES, epoch=EPOCHS)
    def inherit(self, id: str, owner: SiteId, heir: SiteId, epoch: int) -> None:
        wanted = self.deserved(id, owner, heir, epoch)
        if wanted in (None, LeaseLost) and self.heirs[id] != heir:
            wanted = Conflict
        if self.owners.get(id) == (heir, epoch + 1) and self.heirs[id] == NOBODY:
            wanted = None
        elif wanted is None:
            self.give(id, heir, epoch + 1)
        got = refusal_of(
            lambda: self.state.inherit(
                "vm", id, owner=owner, heir=heir, expected_epoch=epoch, now_s=self.now_s
            )
        )
        assert got is wanted

    @rule(id=IDS, site=SITES, epoch=EPOCHS)
    def release(self, id: str, site: SiteId, epoch: int) -> None:
        owner, current = self.owners.get(id, (NOBODY, 0))
        may = current == epoch and owner in (site, NOBODY) and id in self.owners
        try:
            self.state.release("vm", id, owner=site, expected_epoch=epoch)
        except Conflict:
            assert not may
        else:
            assert may
            self.owners[id] = (NOBODY, epoch)
            self.heirs[id] = NOBODY

    @invariant()
    def the_same_is_held_and_owned(self) -> None:
        held = {lease.site for lease in self.state.leases(self.now_s)}
        assert held == {site for site in self.expires_s if self.holds(site)}
        for id, (owner, epoch) in self.owners.items():
            found = self.state.owner("vm", id)
            assert found is not None
            assert (found.owner, found.epoch, found.heir) == (owner, epoch, self.heirs[id])


TestQuorumMachine = QuorumMachine.TestCase
TestQuorumMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
