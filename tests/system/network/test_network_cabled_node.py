"""A cable as a trunk: the node's own card, taken as it is and left where it was."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from nuage.clock import SystemClock
from nuage.daemon.fabric_memory import TrunkMemory
from nuage.daemon.fabric_trunks import Standing, TrunkMaker, TrunkNode, interface_exists
from nuage.ids import NodeId, SiteId
from nuage.lab import kernel
from nuage.model.fabric import FabricWish, LinkWish
from nuage.network.cable import cabling_of

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"
    ),
]
LINK = LinkWish(node_id=NodeId("lyon-v2"), address="192.0.2.2", vni=5000)
WISH = FabricWish(revision=1, key="", links=(LINK,))


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"nqcb{os.getpid() % 10000}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    words = "link", "add", "card", "type", "veth", "peer", "name", "far"
    subprocess.run(["ip", "-n", name, *words], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


def bring(
    namespace: str, cable: str, wish: FabricWish = WISH, known: TrunkMemory | None = None
) -> list[Standing]:
    cables = (f"lyon-v2={cable}",) if cable else ()
    node = TrunkNode(
        address="192.0.2.1", site_id=SiteId("lyon"), cabling=cabling_of(cables, xdp=False)
    )
    memory = {} if known is None else {"site lyon-v2": known}
    maker = TrunkMaker(node, SystemClock(), lambda _line: None)
    return kernel.inside(namespace, lambda: list(asyncio.run(maker.bring(wish, memory))))


def is_there(namespace: str, interface: str) -> bool:
    return kernel.inside(namespace, lambda: interface_exists(interface))


def test_a_cable_is_the_trunk_and_no_tunnel_is_made(namespace: str) -> None:
    (standing,) = bring(namespace, "card")
    memory = standing.memory
    assert memory is not None
    assert (memory.interface, memory.driver, memory.mtu_bytes) == ("card", "cable", 1500)
    assert not is_there(namespace, "nln1388")
    (again,) = bring(namespace, "card", known=memory)
    assert again.memory is memory
    assert bring(namespace, "card", FabricWish(revision=2, key=""), memory) == []
    assert is_there(namespace, "card"), "the card is the node's, not ours to delete"


def test_without_its_cable_a_link_goes_over_the_racks_network(namespace: str) -> None:
    (standing,) = bring(namespace, "card")
    (over,) = bring(namespace, "", known=standing.memory)
    assert over.memory is not None
    assert (over.memory.interface, over.memory.driver) == ("nln1388", "vxlan")
    assert is_there(namespace, "card")
    (back,) = bring(namespace, "card", known=over.memory)
    assert back.memory is not None
    assert back.memory.interface == "card"
    assert not is_there(namespace, "nln1388")


def test_a_card_that_is_missing_or_too_narrow_is_told(namespace: str) -> None:
    (missing,) = bring(namespace, "none")
    assert "none is not in this node" in missing.failure
    subprocess.run(["ip", "-n", namespace, "link", "set", "card", "mtu", "1000"], check=True)
    (narrow,) = bring(namespace, "card")
    assert "1280" in narrow.failure
