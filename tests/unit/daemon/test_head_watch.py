"""Which heads that failed are opened elsewhere."""

from collections.abc import Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.iaas.iaas_makers import IAAS, volume

from nuage.daemon.heads import HeadWatch
from nuage.daemon.nodes import NodeSessions
from nuage.daemon.process import Tasks
from nuage.iaas.heads import HeadKeeper
from nuage.iaas.site import Site
from nuage.ids import NodeId, SiteId
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
