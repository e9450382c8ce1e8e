"""How far copies are behind is shown, and what its owner must hear of is announced once."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from tests.contract.catalogue.catalogue_makers import HandClock
from tests.unit.iaas.iaas_makers import IAAS, datacenter, iaas, record, volume

from nuage.errors import InvalidRequest
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import Site
from nuage.iaas.standing import VIEWS_HOLD_BYTES, note_head, show_standing
from nuage.iaas.volumes import LimitVolume, NameVolume, limit_volume
from nuage.iaas.wishes import Leave, WishContext, ionode_wish
from nuage.ids import NodeId, SiteId
from nuage.model.contract import AckPolicy, Contract, Limits, QosClass, RpoRule
from nuage.model.desired import Answering, CopyReport, HeadReport, HeadWish, Rebuild
from nuage.model.history import PastSeen
from nuage.model.status import NodeStatus
from nuage.model.volume import Volume
from nuage.trust.permissions import Principal
from nuage.trust.shared_secrets import SharedSecrets

FAR = NodeId("r-io")
PLACES = (("marne", "m-io"), ("lyon", "l-io"), ("rennes", "r-io"))


class Watcher:
    """A site's index, and what it announced."""

    def __init__(self, value: Volume, contract: Contract) -> None:
        self.news: list[str] = []
        self.texts: list[str] = []
        self.index = FederationIndex(SiteId("marne"))
        for noun in (datacenter("marne"), iaas(contract), value):
            self.index.put(record(noun))
        for number, (site, node) in enumerate(PLACES):
            self.index.put(
                record(
                    NodeStatus(
                        node_id=NodeId(node), site_id=SiteId(site), connected=True, since_s=0.0,
                        replica_addresses={IAAS: f"10.0.0.{number}:1"},
                    )
                )
            )  # fmt: skip
        self.clock = HandClock()
        fields = SimpleNamespace(
            site_id=SiteId("marne"),
            index=self.index,
            heads_seen={},
            ionodes_seen={},
            drops_told={},
            waits_told={},
            anew_told={},
            clock=self.clock,
            announce=self._announce,
        )
        self.site = cast(Site, fields)

    def _announce(self, _kind: str, _id: str, what: str, text: str) -> None:
        self.news.append(what)
        self.texts.append(text.partition(": ")[2])

    def hears(self, head: HeadReport) -> list[str]:
        self.news.clear()
        self.texts.clear()
        note_head(self.site, head)
        return list(self.news)


def bound(seconds: int = 30) -> Contract:
    return Contract(copies=3, copy_sites=3, rpo=RpoRule(seconds=seconds))


def head(value: Volume, *copies: CopyReport, answering: Answering) -> HeadReport:
    return HeadReport(
        volume_id=value.volume_id, iaas_id=IAAS, state="ready", epoch=value.epoch,
        copies=copies, answering=answering,
    )  # fmt: skip


def far(lag_s: float, *, let_go: bool = False) -> CopyReport:
    return CopyReport(
        node_id=FAR, is_connected=not let_go, is_live=not let_go, lag_writes=7, lag_bytes=4096,
        lag_s=lag_s, is_let_go=let_go,
    )  # fmt: skip


def test_writers_that_are_held_back_and_let_go_on_are_announced_once() -> None:
    value = replace(volume(1, places=PLACES), ack_policy=AckPolicy.ANY_2_OF_3)
    watcher = Watcher(value, bound())
    held = head(value, far(31.0), answering=Answering.HELD)
    assert watcher.hears(head(value, far(1.0), answering=Answering.AT_ONCE)) == []
    assert watcher.hears(held) == ["rpo"]
    assert watcher.hears(held) == []
    assert watcher.hears(head(value, far(0.0), answering=Answering.AT_ONCE)) == ["rpo"]
    assert watcher.texts == ["writes are answered at once again: its copies are near"]
    assert watcher.hears(held) == ["rpo"]
    # The line is cut: that writers go on does not mean that the copy is near.
    cut = head(value, far(11.0, let_go=True), answering=Answering.AT_ONCE)
    assert watcher.hears(cut) == ["rpo"]
    assert watcher.texts == [f"writes are answered at once again: nobody waits for {FAR}"]


def test_a_copy_that_is_cut_off_breaks_the_rpo_once_it_lacks_more_than_that() -> None:
    value = replace(volume(1, places=PLACES), ack_policy=AckPolicy.ANY_2_OF_3)
    watcher = Watcher(value, bound())
    assert watcher.hears(head(value, far(5.0, let_go=True), answering=Answering.AT_ONCE)) == []
    gone = head(value, far(40.0, let_go=True), answering=Answering.AT_ONCE)
    assert watcher.hears(gone) == ["rpo-broken"]
    assert watcher.hears(gone) == []
    assert watcher.hears(head(value, far(0.0), answering=Answering.AT_ONCE)) == ["rpo-kept"]
    filling = replace(value, catching_up=(FAR,))
    assert Watcher(filling, bound()).hears(gone) == []


def with_past(value: Volume, past: PastSeen) -> HeadReport:
    return replace(head(value, answering=Answering.AT_ONCE), past=past)


def test_history_that_leaves_before_its_time_is_announced_once_a_day() -> None:
    value = volume(1, places=PLACES)
    watcher = Watcher(value, Contract())
    day = 86_400.0
    told = {
        when: watcher.hears(with_past(value, PastSeen(kept_from_s=1.0, dropped_early_s=when)))
        for when in (0.0, 20_000 * day, 20_000 * day + 60, 20_001 * day - 1, 20_001 * day)
    }
    assert list(told.values()) == [[], ["history-dropped"], [], [], ["history-dropped"]]
    later = replace(value, epoch=value.epoch + 1)
    watcher.index.put(record(later, revision=2))
    assert watcher.hears(with_past(later, PastSeen())) == []
    again = PastSeen(kept_from_s=1.0, dropped_early_s=20_001 * day + 5)
    assert watcher.hears(with_past(later, again)) == [], "a new head announces no day again"


def test_a_strict_history_that_is_full_is_announced_and_so_is_its_end() -> None:
    value = volume(1, places=PLACES)
    watcher = Watcher(value, Contract())
    fullness = (False, True, True, False, False)
    told = [watcher.hears(with_past(value, PastSeen(is_full=is_full))) for is_full in fullness]
    assert told == [[], ["history-full"], [], ["history-has-room"], []]


def test_views_that_hold_back_much_history_are_announced_and_so_is_their_end() -> None:
    value = volume(1, places=PLACES)
    watcher = Watcher(value, Contract())
    sizes = (0, VIEWS_HOLD_BYTES, VIEWS_HOLD_BYTES + 1, 5 * VIEWS_HOLD_BYTES, 0, 0)
    told = [watcher.hears(with_past(value, PastSeen(held_by_views_bytes=held))) for held in sizes]
    assert told == [[], [], ["history-held"], [], ["history-freed"], []]


async def test_each_copy_is_shown_with_what_it_lacks() -> None:
    value = replace(volume(1, places=PLACES), without=(NodeId("l-io"),))
    watcher = Watcher(value, bound())
    ask = NameVolume(iaas=IAAS, volume=value.name)
    nobody = cast(Principal, None)
    shown = await show_standing(watcher.site, nobody, ask)
    assert (shown.answering, shown.copies[0].state) == ("unknown", "unknown")
    watcher.hears(head(value, far(2.5), answering=Answering.SLOWED))
    shown = await show_standing(watcher.site, nobody, ask)
    assert (shown.answering, shown.rpo_s) == ("slowed", 30)
    assert [copy.state for copy in shown.copies] == ["head", "left out", "live"]
    assert (shown.copies[2].lag_writes, shown.copies[2].lag_s) == (7, 2.5)


async def test_writes_that_wait_for_a_copy_are_announced_with_what_helps() -> None:
    value = replace(volume(1, places=PLACES), head=NodeId("m-io"), ack_policy=AckPolicy.ALL)
    watcher = Watcher(value, Contract())
    watcher.clock.time_s = 1_000.0
    gone = head(value, replace(far(0.0), silent_since_s=998.0), answering=Answering.AT_ONCE)
    assert watcher.hears(gone) == [], "it may have been started anew"
    ask = NameVolume(iaas=IAAS, volume=value.name)
    shown = await show_standing(watcher.site, cast(Principal, None), ask)
    assert shown.waits_for == (FAR,)
    watcher.clock.time_s += 60.0
    assert watcher.hears(gone) == ["writes-wait"]
    assert watcher.hears(gone) == []
    assert watcher.hears(head(value, far(0.0), answering=Answering.AT_ONCE)) == ["writes-go-on"]
    two = replace(value, ack_policy=AckPolicy.ANY_2_OF_3)
    assert Watcher(two, Contract()).hears(gone) == [], "two of three are there"
    both = replace(gone, copies=(*gone.copies, replace(gone.copies[0], node_id=NodeId("l-io"))))
    watcher = Watcher(two, Contract())
    watcher.clock.time_s = 1_060.0
    assert watcher.hears(both) == ["writes-wait"]
    assert Watcher(replace(value, without=(FAR,)), Contract()).hears(gone) == []


def test_a_copy_that_is_made_anew_is_announced_and_so_is_that_it_has_everything() -> None:
    value = replace(volume(1, places=PLACES), head=NodeId("m-io"), ack_policy=AckPolicy.ANY_2_OF_3)
    watcher = Watcher(value, Contract())
    behind = replace(far(9.0), is_live=False)
    anew = replace(behind, rebuild=Rebuild(done_bytes=4096, total_bytes=8192))
    gone = replace(behind, is_connected=False, silent_since_s=1.0)
    seen = (behind, anew, anew, gone, anew, behind, far(0.0), far(0.0))
    told = [watcher.hears(head(value, copy, answering=Answering.AT_ONCE)) for copy in seen]
    assert told == [[], ["copy-anew"], [], [], [], [], ["copy-whole"], []]
    filled = Watcher(replace(value, catching_up=(FAR,)), Contract())
    assert filled.hears(head(value, anew, answering=Answering.AT_ONCE)) == [], "it was begun"


async def test_writes_that_wait_for_a_copy_that_is_made_anew_are_announced() -> None:
    value = replace(volume(1, places=PLACES), head=NodeId("m-io"), ack_policy=AckPolicy.ALL)
    watcher = Watcher(value, Contract())
    anew = replace(far(9.0), is_live=False, rebuild=Rebuild(done_bytes=0, total_bytes=8192))
    told = watcher.hears(head(value, anew, answering=Answering.AT_ONCE))
    assert told == ["writes-wait", "copy-anew"]


def wished(value: Volume, contract: Contract) -> HeadWish:
    context = WishContext(
        index=Watcher(value, contract).index,
        secrets=SharedSecrets({0: b"k" * 32}),
        lease_until_s=lambda _vm: 0.0,
        leave=lambda _vm: Leave.SEND,
    )
    (daemon,) = ionode_wish(context, NodeId("m-io"), 1).daemons
    return daemon.heads[0]


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (far(0.0), "live"),
        (replace(far(1.0), is_live=False), "catching up"),
        (
            replace(far(1.0), is_live=False, rebuild=Rebuild(done_bytes=0, total_bytes=9)),
            "made anew",
        ),
        (replace(far(60.0), silent_since_s=5.0), "cut off"),
        (far(60.0, let_go=True), "cut off"),
        (replace(far(60.0), is_failed=True, silent_since_s=5.0), "failed or full"),
    ],
)
async def test_how_a_copy_stands_is_told_as_it_is(seen: CopyReport, state: str) -> None:
    value = replace(volume(1, places=PLACES), head=NodeId("m-io"))
    watcher = Watcher(value, bound())
    watcher.hears(head(value, seen, answering=Answering.AT_ONCE))
    name = NameVolume(IAAS, value.name)
    shown = await show_standing(watcher.site, cast(Principal, None), name)
    (copy,) = (copy for copy in shown.copies if copy.node == FAR)
    assert (copy.state, copy.silent_since_s) == (state, seen.silent_since_s)


def test_the_bound_covers_the_copies_that_have_been_filled() -> None:
    value = volume(1, places=PLACES)
    assert wished(value, bound()).bound == (NodeId("l-io"), FAR)
    assert wished(replace(value, catching_up=(FAR,)), bound()).bound == (NodeId("l-io"),)


def test_a_volume_takes_what_it_asks_for_within_its_class() -> None:
    value = replace(volume(1, places=PLACES), limits=Limits(operations_per_s=5_000, bytes_per_s=7))
    bronze = replace(bound(), qos_class=QosClass.BRONZE)
    assert wished(value, bound()).limits == value.limits
    assert wished(value, bronze).limits == Limits(operations_per_s=2_000, bytes_per_s=7)


async def test_a_limit_is_set_on_a_volume_and_reaches_its_head() -> None:
    value = volume(1, places=PLACES)
    watcher = Watcher(value, bound())
    kept: list[Volume] = []

    async def save(changed: Volume) -> None:
        watcher.index.put(replace(record(changed), revision=2))
        kept.append(changed)

    vars(watcher.site)["save"] = save
    vars(watcher.site)["age_of"] = lambda _site: 0.0
    ask = LimitVolume(iaas=IAAS, volume=value.name, operations_per_s=500)
    shown = await limit_volume(watcher.site, cast(Principal, None), ask)
    assert shown.value.limits == Limits(operations_per_s=500)
    assert wished(kept[0], bound()).limits == Limits(operations_per_s=500)


def test_an_rpo_is_a_time_that_can_be_waited_for() -> None:
    with pytest.raises(InvalidRequest, match="RPO"):
        RpoRule(seconds=-1)
