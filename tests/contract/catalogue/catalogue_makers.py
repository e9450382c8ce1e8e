"""Small values for catalogue tests."""

from nuage.clock import SystemClock
from nuage.ids import IaasId, PortId, RackId, RequestId, SegmentId, SiteId, UserId, VmId
from nuage.model.identity import User
from nuage.model.infrastructure import Rack
from nuage.model.network import Port, Segment
from nuage.model.placement import Decision
from nuage.model.vm import Vm, VmShape

MARNE = SiteId("marne")
RENNES = SiteId("rennes")
LYON = SiteId("lyon")


class HandClock:
    """A clock that moves by hand; sleepers are not woken (tests that sleep use their own)."""

    def __init__(self, now_s: float = 1_000_000.0) -> None:
        self.time_s = now_s

    def now_s(self) -> float:
        return self.time_s

    def monotonic_s(self) -> float:
        return self.time_s

    async def sleep(self, delay_s: float) -> None:
        self.time_s += delay_s
        await SystemClock().sleep(0)


def vm(number: int, *, name: str = "", iaas: str = "iaas-1", epoch: int = 0) -> Vm:
    return Vm(
        vm_id=VmId(f"vm-{number}"), iaas_id=IaasId(iaas), name=name or f"web-{number}",
        shape=VmShape(), epoch=epoch,
    )  # fmt: skip


def segment(number: int, *, name: str = "", iaas: str = "iaas-1") -> Segment:
    return Segment(
        segment_id=SegmentId(f"seg-{number}"), iaas_id=IaasId(iaas),
        name=name or f"net-{number}", label=number, cidr="10.0.0.0/24",
    )  # fmt: skip


def port(number: int, *, iaas: str = "iaas-1") -> Port:
    return Port(
        port_id=PortId(f"port-{number}"),
        iaas_id=IaasId(iaas),
        segment_id=SegmentId("seg-1"),
        vm_id=None,
        mac="02:00:00:00:00:01",
        addresses=(),
    )


def user(number: int, *, name: str = "") -> User:
    return User(user_id=UserId(f"user-{number}"), name=name or f"user-{number}", grants=())


def rack(number: int, *, site: SiteId = MARNE) -> Rack:
    return Rack(rack_id=RackId(f"rack-{number}"), site_id=site, name=f"r{number}")


def decision(number: int) -> Decision:
    return Decision(
        request_id=RequestId(f"req-{number}"), vm_id=VmId(f"vm-{number}"), policy="power",
        decided_s=1.0, asked_sites=(), silent_sites=(), ranked=(), refusals=(),
        elected=None, elected_site=None,
    )  # fmt: skip
