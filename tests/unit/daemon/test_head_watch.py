"""Which heads that failed are opened elsewhere."""

from collections.abc import Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.daemon.test_energy_keeper import HandClock
from tests.unit.iaas.iaas_makers import IAAS, volume

from nuage.daemon import heads as daemon_heads
from nuage.daemon.heads import OPENS_WITHIN_S, HeadWatch
from nuage.daemon.nodes import NodeSessions
from nuage.daemon.process import Tasks
from nuage.iaas.heads import HeadKeeper
from nuage.iaas.site import Site
from nuage.ids import NodeId, SiteId, VolumeId
from nuage.model.desired import HeadReport, IonodeReport
from nuage.model.volume import Volume

NODE = NodeId("m-io")
VOLUME = volume(1, places=(("marne", "m-io"), ("lyon", "l-io")))
FAILED = HeadReport(
    volume_id=VOLUME.volume_id, iaas_id=IAAS, state="failed", epoch=VOLUME.epoch, failure="why"
)


class Keeper:
    """Notes what is moved, and why."""

    def __init__(self) -> None:
        self.moved: list[str] = []

    def take_report(self, _report: IonodeReport) -> None: ...

    def heads_on(self, _node_id: NodeId) -> list[Volume]:
        return [VOLUME]

    def own(self) -> list[Volume]:
        return [VOLUME]

    async def head_failed(self, _volume: Volume, reason: str) -> None:
        self.moved.append(reason)


@pytest.mark.parametrize(
    ("head", "moved"),
    [
        pytest.param(FAILED, ["why"], id="a failure of its own"),
        pytest.param(replace(FAILED, is_lost=True), [], id="lost on all copies"),
        pytest.param(replace(FAILED, is_locked=True), [], id="waiting for its key"),
        pytest.param(replace(FAILED, epoch=1), [], id="of an earlier epoch"),
    ],
)
async def test_a_head_that_failed_is_opened_elsewhere_where_that_helps(
    head: HeadReport, moved: list[str]
) -> None:
    keeper, begun = Keeper(), list[Coroutine[Any, Any, None]]()
    tasks = SimpleNamespace(start=lambda _name, act: begun.append(act))
    watch = HeadWatch(
        cast(Site, SimpleNamespace(index=None)), cast(HeadKeeper, keeper),
        cast(NodeSessions, None), cast(Tasks, tasks), on_lost=lambda _node: None,
    )  # fmt: skip
    report = IonodeReport(
        node_id=NODE, site_id=SiteId("marne"), wish_revision=1, replicas=(), heads=(head,),
        replica_addresses={},
    )  # fmt: skip
    watch.take_report(report)
    for act in begun:
        await act
    assert keeper.moved == moved


HERE = replace(VOLUME, portal="10.0.0.9:3260", settled_epoch=VOLUME.epoch)
OPENS = replace(VOLUME, volume_id=VolumeId("vol-2"), portal="10.9.0.9:3260", settled_epoch=0)


@pytest.mark.parametrize(
    ("heads", "answering", "is_restarting", "is_lost"),
    [
        pytest.param([HERE, OPENS], [HERE], True, False, id="one opens, the other serves"),
        pytest.param([HERE, OPENS], [OPENS], True, True, id="the one that serves is gone"),
        pytest.param([OPENS], [], True, True, id="none serves here"),
        pytest.param([HERE, OPENS], [HERE], False, True, id="silent for long"),
    ],
)
async def test_a_head_that_opens_does_not_make_a_node_whose_agent_restarts_a_lost_one(
    *,
    heads: list[Volume],
    answering: list[Volume],
    is_restarting: bool,
    is_lost: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answers(portal: str) -> bool:
        return any(portal == volume.portal for volume in answering)

    async def node_lost(_node_id: NodeId) -> None: ...

    monkeypatch.setattr(daemon_heads, "answers", answers)
    lost: list[NodeId] = []
    clock = SimpleNamespace(monotonic_s=lambda: 7.0)
    index = SimpleNamespace(find_value=lambda *_: None)
    watch = HeadWatch(
        cast(Site, SimpleNamespace(index=index, clock=clock)),
        cast(HeadKeeper, SimpleNamespace(heads_on=lambda _node: heads, node_lost=node_lost)),
        cast(NodeSessions, SimpleNamespace(
            is_in_doubt=lambda _node: True, is_connected=lambda _node: is_restarting)),
        cast(Tasks, None), on_lost=lost.append,
    )  # fmt: skip
    await watch._look_into(NODE)
    assert bool(lost) is is_lost


@pytest.mark.parametrize(
    ("heads", "may_open", "moved"),
    [
        pytest.param([OPENS], True, ["vol-2"], id="its former place still answers"),
        pytest.param([HERE, OPENS], True, ["vol-2"], id="another is served beside it"),
        pytest.param([HERE], True, [], id="none opens"),
        pytest.param([OPENS], False, [], id="no other copy may open it"),
    ],
)
async def test_a_head_that_was_to_open_where_no_agent_is_opens_elsewhere(
    *,
    heads: list[Volume],
    may_open: bool,
    moved: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The storage daemons that an agent left behind serve, and open nothing."""

    async def answers(_portal: str) -> bool:
        return True

    opened: list[str] = []

    async def open_elsewhere(volume: Volume, _reason: str) -> bool:
        if may_open:
            opened.append(volume.volume_id)
        return may_open

    monkeypatch.setattr(daemon_heads, "answers", answers)
    clock = HandClock()
    index = SimpleNamespace(find_value=lambda *_: None)
    lost: list[NodeId] = []
    watch = HeadWatch(
        cast(Site, SimpleNamespace(index=index, clock=clock)),
        cast(HeadKeeper, SimpleNamespace(
            heads_on=lambda _node: heads, open_elsewhere=open_elsewhere)),
        cast(NodeSessions, SimpleNamespace(
            is_in_doubt=lambda _node: True, is_connected=lambda _node: True)),
        cast(Tasks, None), on_lost=lost.append,
    )  # fmt: skip
    await watch.look_into([NODE])
    clock.time_s += OPENS_WITHIN_S - 0.1
    await watch.look_into([NODE])
    assert opened == []
    clock.time_s += 0.1
    await watch.look_into([NODE])
    assert opened == moved
    assert lost == [NODE] * len(moved)
