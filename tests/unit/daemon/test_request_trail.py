"""One request's id is in the log of every process it crosses."""

from collections.abc import AsyncIterator, Sequence
from typing import TypeVar, cast

from structlog.contextvars import bound_contextvars
from structlog.testing import capture_logs
from tests.unit.placement.placement_builders import request
from tests.unit.placement.placement_builders import site as datacenter

from nuage.channel import current_request_id
from nuage.clock import SystemClock
from nuage.daemon.placing import (
    COMMIT_METHOD,
    AskCommit,
    Committed,
    LocalPlacing,
    PlacementOnChannels,
)
from nuage.daemon.trail import RequestTrail
from nuage.iaas.site import VmDraft
from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.model.desired import VmWish
from nuage.model.vm import PowerWish, Vm, VmShape
from nuage.placement.local_agent import LocalAgent

R = TypeVar("R")


def wish(number: int, request_id: str) -> VmWish:
    return VmWish(
        vm_id=VmId(f"vm-{number}"),
        iaas_id=IaasId("iaas-1"),
        name=f"web{number}",
        shape=VmShape(),
        wish=PowerWish.RUNNING,
        epoch=1,
        disks=(),
        ports=(),
        request_id=request_id,
    )


def told(logs: Sequence[object]) -> list[tuple[str, str]]:
    entries = cast("list[dict[str, str]]", logs)
    return [(entry["vm"], entry["request_id"]) for entry in entries]


def test_a_node_names_the_request_behind_each_new_wish_once() -> None:
    trail = RequestTrail()
    with capture_logs() as logs:
        trail.take([wish(1, "req-a"), wish(2, "req-b")])
        trail.take([wish(1, "req-a"), wish(2, "req-c")])
        trail.take([wish(1, "req-a"), wish(2, "req-c")])
    assert told(logs) == [("vm-1", "req-a"), ("vm-2", "req-b"), ("vm-2", "req-c")]


def test_a_wish_that_no_request_made_is_not_told_as_one() -> None:
    trail = RequestTrail()
    with capture_logs() as logs:
        trail.take([wish(1, "")])
    assert logs == []


class Recorder:
    """Stands for the channels: keeps the id under which each commitment would leave."""

    def __init__(self) -> None:
        self.sent: dict[str, str] = {}

    async def ask(
        self, site_id: SiteId, method: str, body: object, result: type[R], *, timeout_s: float
    ) -> R:
        assert (site_id, method) == ("lyon", COMMIT_METHOD)
        assert isinstance(body, AskCommit)
        self.sent[body.request.vm_id] = current_request_id()
        return cast(R, Committed(refusal=None))

    def tell(self, site_id: SiteId, method: str, body: object) -> None:
        raise AssertionError(method)

    def subscribe(
        self, site_id: SiteId, method: str, body: object, item_type: type[R]
    ) -> AsyncIterator[R]:
        raise AssertionError(method)


async def test_requests_of_one_round_commit_under_their_own_ids() -> None:
    others = Recorder()
    clock = SystemClock()
    local = LocalPlacing(LocalAgent(datacenter("marne")), clock)
    transport = PlacementOnChannels(
        SiteId("marne"), local, others, clock, show=lambda _record: None
    )
    asked = [request(number) for number in (1, 2)]
    for number, one in enumerate(asked, start=1):
        vm = Vm(vm_id=one.vm_id, iaas_id=one.iaas_id, name=f"web{number}", shape=one.shape)
        transport.drafts[one.request_id] = VmDraft(vm=vm, volumes=(), port_id=None)
        transport.asked_by[one.request_id] = f"api-{number}"
    with bound_contextvars(request_id="api-1"):  # the round was opened by the first
        for one in asked:
            await transport.commit(SiteId("lyon"), NodeId("lyon-v1"), one, deadline_s=1e12)
    assert others.sent == {"vm-1": "api-1", "vm-2": "api-2"}
