"""What a node says of the way that a frame would take."""

from types import SimpleNamespace
from typing import cast

import pytest

from nuage.daemon.fabric import Fabric
from nuage.daemon.fabric_report import STATIONS_TOLD_MAX, find_path, narrowness
from nuage.model.fabric import PathAnswer, PathQuestion
from nuage.network.campus import Campus, system_id
from nuage.network.forwarding import ForwardingDelta, Label, MacEntry, Nickname
from nuage.network.rbridge import RBridgeConfig

LABEL = Label(7)


def mac_of(number: int) -> bytes:
    return b"\x06\0\0\0" + number.to_bytes(2, "big")


class Pair:
    """Two RBridges with a trunk between them; the first has a large directory."""

    def __init__(self) -> None:
        self.campus = Campus(1)
        for number in range(2):
            self.campus.add(RBridgeConfig(system_id(number), f"v{number}"))
        self.cable = self.campus.connect(0, 1, bfd=None)
        self.campus.run_until(4.0)
        self.plane = self.campus.nodes[0].plane
        there = self.campus.nodes[1].rbridge.nickname
        listed = [MacEntry(LABEL, mac_of(n), nickname=there) for n in range(STATIONS_TOLD_MAX + 2)]
        self.plane.apply(ForwardingDelta(set=tuple(listed)))

    async def way_to(self, mac: bytes) -> PathAnswer:
        runner = SimpleNamespace(rbridge=self.campus.nodes[0].rbridge)
        fabric = SimpleNamespace(runner=runner, plane=self.plane)
        return await find_path(cast(Fabric, fabric), PathQuestion(label=LABEL, mac=mac.hex(":")))


async def test_a_way_is_found_to_every_station_of_a_large_directory() -> None:
    answer = await Pair().way_to(mac_of(STATIONS_TOLD_MAX + 1))
    assert [step.node_id for step in answer.steps] == ["v0", "v1"]


async def test_a_node_that_no_trunk_leads_to_is_named() -> None:
    pair = Pair()
    pair.campus.cut(pair.cable)
    pair.campus.run_for(1.0)
    answer = await pair.way_to(mac_of(1))
    assert answer.steps == ()
    assert answer.reason.startswith("the directory says: on v1 (nickname ")
    assert answer.reason.endswith("to which no trunk leads now")
    pair.plane.apply(ForwardingDelta(set=(MacEntry(LABEL, mac_of(1), nickname=Nickname(9)),)))
    assert (await pair.way_to(mac_of(1))).reason.endswith("which nobody has")


@pytest.mark.parametrize(
    ("from_s", "state", "said"),
    [
        (99.0, "report", ""),
        (0.0, "two-way", "promised"),
        (6.0, "report", "where there is no other"),
    ],
)
def test_a_trunk_that_carries_hellos_alone_says_why_it_is_not_up_or_shunned(
    from_s: float, state: str, said: str
) -> None:
    campus = Campus(1)
    for number in range(2):
        campus.add(RBridgeConfig(system_id(number), f"v{number}"))
    cable = campus.connect(0, 1, bfd=None)
    for until_s, long_lost in ((from_s, 0.0), (from_s + 60.0, 1.0)):
        cable.long_lost = long_lost
        campus.run_until(min(until_s, 66.0))
    (seen,) = campus.nodes[0].rbridge.view().neighbours
    assert seen.state == state
    assert said in narrowness(seen)
    assert bool(said) is bool(narrowness(seen))
