"""Both ends of a feed, and what a reader refuses."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.catalogue.catalogue_makers import (
    LYON,
    MARNE,
    RENNES,
    HandClock,
    decision,
    rack,
    user,
    vm,
)

from nuage.catalogue.codec import encode_value
from nuage.catalogue.feed import (
    BATCH_ITEMS_MAX,
    ApplyBatch,
    Batch,
    Cursor,
    Effect,
    FeedItem,
    FeedMessage,
    FeedReader,
    FeedRequest,
    FeedSender,
    FeedState,
    Refused,
    ReplaceReplica,
    SnapshotEnd,
)
from nuage.catalogue.memory import MemoryCatalogue
from nuage.catalogue.store import Delete, Put
from nuage.errors import RemoteProtocolError
from nuage.ids import SiteId
from nuage.model.record import Noun

SENDER = FeedSender(MARNE, "one")


def item(
    value: Noun, *, kind: str = "vm", revision: int = 1, home: SiteId = MARNE, epoch: int = 0
) -> FeedItem:
    identifier = {"vm": "vm-1", "rack": "rack-1"}.get(kind, "x")
    return FeedItem(
        kind=kind, id=identifier, home=home, revision=revision, epoch=epoch, changed_s=5.0,
        body=encode_value(value),
    )  # fmt: skip


def message(items: Sequence[FeedItem], *, after: int = 0, sender: SiteId = MARNE) -> FeedMessage:
    return FeedMessage(
        sender=sender, incarnation="one", sent_s=100.0, head_revision=after + len(items),
        body=Batch(after_revision=after, items=tuple(items)),
    )  # fmt: skip


def reader(revision: int = 0) -> FeedReader:
    return FeedReader(MARNE, reader=RENNES, cursor=Cursor("one", revision))


def feed(reader: FeedReader, *messages: FeedMessage) -> list[Effect]:
    """Deliver, as over the wire: encoded and decoded."""
    decoder = msgspec.msgpack.Decoder(FeedMessage)
    return [
        effect
        for sent in messages
        for effect in reader.receive(
            decoder.decode(msgspec.msgpack.encode(sent)), now_s=99.0, monotonic_s=7.0
        )
    ]


def test_a_batch_is_applied_once_however_often_it_comes() -> None:
    ours = reader()
    first = message([item(vm(1))])
    (effect,) = feed(ours, first)
    assert isinstance(effect, ApplyBatch)
    assert effect.cursor == Cursor("one", 1, 99.0)
    assert effect.records[0].value == vm(1)
    assert feed(ours, first) == []
    overlapping = message([item(vm(1)), item(vm(1, name="db"), revision=2)])
    (effect,) = feed(ours, overlapping)
    assert isinstance(effect, ApplyBatch)
    assert [record.revision for record in effect.records] == [2]


def test_of_an_object_changed_twice_the_last_state_is_applied() -> None:
    gone = FeedItem(kind="vm", id="vm-1", home=MARNE, revision=2, epoch=0, changed_s=1.0, body=None)
    (effect,) = feed(reader(), message([item(vm(1)), gone]))
    assert isinstance(effect, ApplyBatch)
    assert (effect.records, effect.deleted) == ((), (("vm", "vm-1"),))


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (item(vm(1), home=RENNES), "home"),
        (item(vm(1), kind="planet"), "kind"),
        (item(vm(2)), "id"),
        (item(vm(1, epoch=2), epoch=3), "epoch"),
        (item(vm(1), epoch=-1), "form"),
        (item(user(1)), "body"),
        (item(rack(1, site=LYON), kind="rack"), "place"),
        (msgspec.structs.replace(item(vm(1)), changed_s=float("nan")), "form"),
        (msgspec.structs.replace(item(vm(1)), body=b"{"), "body"),
        (msgspec.structs.replace(item(vm(1)), body=b'{"preference":9}'), "body"),
    ],
)
def test_a_bad_item_is_refused_alone_and_the_feed_goes_on(bad: FeedItem, rule: str) -> None:
    ours = reader()
    good = msgspec.structs.replace(item(rack(1), kind="rack"), revision=2)
    refused, applied = feed(ours, message([bad, good]))
    assert isinstance(refused, Refused)
    assert refused.rule == rule
    assert isinstance(applied, ApplyBatch)
    assert [record.id for record in applied.records] == ["rack-1"]
    assert ours.cursor.revision == 2
    assert ours.refused_count == 1


@pytest.mark.parametrize(
    "wrong",
    [
        message([item(vm(1))], sender=RENNES),
        message([item(vm(1), revision=6)], after=5),
        message([item(vm(1)), item(vm(1), revision=3)]),
        msgspec.structs.replace(message([item(vm(1))]), incarnation="two"),
        msgspec.structs.replace(message([]), body=SnapshotEnd(0)),
    ],
)
def test_what_is_out_of_order_ends_the_subscription(wrong: FeedMessage) -> None:
    ours = reader()
    with pytest.raises(RemoteProtocolError):
        feed(ours, wrong)
    ours.restart(Cursor("one", 0))
    assert ours.request() == FeedRequest(reader=RENNES, incarnation="one", after_revision=0)
    assert len(feed(ours, message([item(vm(1))]))) == 1


async def test_a_snapshot_replaces_the_replica_when_it_is_complete() -> None:
    catalogue = MemoryCatalogue(MARNE, clock=HandClock())
    for number in range(BATCH_ITEMS_MAX + 5):
        await catalogue.write([Put(value=vm(number))])
    await catalogue.write([Delete(kind="vm", id="vm-0"), Put(value=decision(3))])
    revision, records = catalogue.all_records()
    *parts, end = FeedSender(MARNE, "two").snapshot(revision, records, 100.0)
    ours = reader(revision=4)
    assert feed(ours, *parts) == []
    status = ours.status(now_s=99.0, monotonic_s=8.0)
    assert (status.state, status.revision) == (FeedState.SNAPSHOT, 4)
    (effect,) = feed(ours, end)
    assert isinstance(effect, ReplaceReplica)
    assert set(effect.records) == set(records)
    assert effect.cursor == Cursor("two", revision, 99.0)


def test_a_snapshot_cut_short_changes_nothing() -> None:
    messages = list(SENDER.snapshot(9, [], 1.0))
    ours = reader(revision=4)
    feed(ours, messages[0])
    with pytest.raises(RemoteProtocolError):
        feed(ours, message([item(vm(1), revision=5)], after=4))
    with pytest.raises(RemoteProtocolError, match="incomplete"):
        feed(ours, msgspec.structs.replace(messages[-1], body=SnapshotEnd(3)))
    assert ours.cursor.revision == 4


def test_the_sender_resumes_only_its_own_kept_history() -> None:
    def can(incarnation: str, revision: int) -> bool:
        request = FeedRequest(reader=RENNES, incarnation=incarnation, after_revision=revision)
        return SENDER.can_resume(request, head_revision=10, compacted_revision=4)

    assert can("one", 4)
    assert can("one", 10)
    assert not can("one", 3)
    assert not can("one", 11)
    assert not can("two", 5)
    assert not can("", 0)


def test_the_age_and_the_clock_offset_are_told() -> None:
    ours = reader(revision=3)
    assert ours.status(now_s=1.0, monotonic_s=1.0).age_s is None
    beat = SENDER.heartbeat(head_revision=3, now_s=100.0)
    for delay_s in (0.4, 0.1, 0.3):
        ours.receive(beat, now_s=90.0 + delay_s, monotonic_s=5.0)
    status = ours.status(now_s=91.0, monotonic_s=7.5)
    assert status.age_s == pytest.approx(2.5)
    assert status.clock_offset_s == pytest.approx(9.9)
    assert status.state is FeedState.FOLLOWING
    heard_before = FeedReader(MARNE, reader=RENNES, cursor=Cursor("one", 3, 50.0))
    assert heard_before.status(now_s=80.0, monotonic_s=0.0).age_s == pytest.approx(30.0)


@given(st.binary(max_size=200))
def test_no_body_makes_the_reader_fail(body: bytes) -> None:
    bad = msgspec.structs.replace(item(vm(1)), body=body)
    effects = feed(reader(), message([bad]))
    assert isinstance(effects[-1], ApplyBatch)
    assert effects[-1].cursor.revision == 1
