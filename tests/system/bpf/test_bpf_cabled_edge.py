"""Cables and XDP from the TOML file to frames: guests of two V-nodes meet through an edge.

v1 = e1 = v2, each ``=`` a cable; what crosses e1 is sent on by the program in its cards' drivers.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.system.bpf.bpf_netns import Namespaces, inside, run
from tests.system.bpf.node_process import NodeProcess, configured, until

from nuage.ids import NodeId, PortId, SegmentId
from nuage.model.contract import QosClass
from nuage.model.desired import PortWish
from nuage.model.fabric import (
    FabricReport,
    FabricWish,
    LinkWish,
    PortRulesWish,
    StationWish,
)
from nuage.vnode.ports import tap_name

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
LABEL = 0x1234
CABLES = {"v1": {"e1": "card"}, "e1": {"v1": "left", "v2": "right"}, "v2": {"e1": "card"}}
GUESTS = {"v1": 1, "v2": 2}
WAYS = ("ingress", "egress")


def mac_of(guest: int) -> str:
    return f"06:00:00:00:00:{guest:02x}"


def link_to(node: str) -> LinkWish:
    return LinkWish(node_id=NodeId(node), address="192.0.2.9", vni=5000)


def rules_of(node: str) -> PortRulesWish:
    return PortRulesWish(
        port_id=PortId(f"port-{GUESTS[node]}"), hostname=node, cidr="10.0.0.0/24",
        qos_class=QosClass.GOLD, rules=None,
    )  # fmt: skip


@dataclass
class Site:
    """Three nodes with cables between them, a guest behind each V-node."""

    net: Namespaces
    spaces: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def build(self, pins: Path, folder: Path) -> None:
        for name in CABLES:
            self.spaces[name] = self.net.add(name)
        for name, port in GUESTS.items():
            far = "left" if port == 1 else "right"
            self.net.cable(self.spaces[name], "card", self.spaces["e1"], far)
            for space, interface in ((self.spaces[name], "card"), (self.spaces["e1"], far)):
                # A frame must fit a page in veth's driver.
                run("ip", "-n", space, "link", "set", interface, "mtu", "2000")
        for name, cables in CABLES.items():
            written = ", ".join(f'"{node}={card}"' for node, card in cables.items())
            path = configured(
                folder / name, site="marne", address="192.0.2.1", is_edge=name == "e1",
                more=f"cables = [{written}]\ncable_xdp = true\n",
            )  # fmt: skip
            self.files[name] = path
            self.nodes[name] = NodeProcess(self.spaces[name], pins, path)
            self.nodes[name].start()
            wish = FabricWish(
                revision=1, key="00" * 32, links=tuple(map(link_to, cables)),
                stations=tuple(map(self._station, GUESTS)), ports=tuple(map(rules_of, GUESTS)),
            )  # fmt: skip
            assert self.nodes[name].tell({"wish": wish}) == "done"
        for name, guest in GUESTS.items():
            self._plug(name, guest)

    def _station(self, node: str) -> StationWish:
        guest = GUESTS[node]
        return StationWish(
            label=LABEL, mac=mac_of(guest), addresses=(f"10.0.0.{guest}",), node_id=NodeId(node)
        )

    def _plug(self, node: str, guest: int) -> None:
        port_id, space = PortId(f"port-{guest}"), self.net.add(f"g{guest}")
        run("ip", "link", "add", tap_name(port_id), "netns", self.spaces[node], "type", "veth",
            "peer", "name", "eth0", "netns", space)  # fmt: skip
        run("ip", "-n", self.spaces[node], "link", "set", tap_name(port_id), "up")
        plug = PortWish(
            port_id=port_id, segment_id=SegmentId("segment-1"), label=LABEL, mac=mac_of(guest),
            addresses=(f"10.0.0.{guest}/24",), gateway="10.0.0.254", mtu_bytes=1362,
        )  # fmt: skip
        assert self.nodes[node].tell({"plug": plug}) == "done"
        run("ip", "-n", space, "link", "set", "eth0", "address", mac_of(guest), "mtu", "1362", "up")
        run("ip", "-n", space, "addr", "add", f"10.0.0.{guest}/24", "dev", "eth0")
        # XDP knows no checksum that is still to be filled in.
        inside(space, "ethtool", "-K", "eth0", "tx", "off")

    def ping(self, count: int) -> bool:
        words = ("ping", "-n", "-c", str(count), "-i", "0.02", "-W", "2", "10.0.0.2")
        return f" {count} received" in inside(f"{self.net.prefix}g1", *words).stdout

    def redirected(self) -> int:
        """Return how many frames the driver of the edge's left card sent on."""
        told = inside(self.spaces["e1"], "ethtool", "-S", "left").stdout
        return sum(map(int, re.findall(r"xdp_redirect: (\d+)", told)))

    def programs_on(self, node: str, card: str) -> str:
        """Return what the kernel tells of the programs on a card."""
        space = self.spaces[node]
        by_tc = [run("tc", "-n", space, "filter", "show", "dev", card, way) for way in WAYS]
        return "".join(by_tc) + "".join(
            line for line in run("ip", "-n", space, "link", "show", card).splitlines()
            if "prog/xdp" in line
        )  # fmt: skip

    def is_whole(self) -> bool:
        return all(
            {trunk.state for trunk in report.trunks} == {"report"} and report.nickname
            for report in map(NodeProcess.report, self.nodes.values())
        )


@pytest.fixture
def site(net: Namespaces, pins: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(net)
    try:
        made.build(pins, tmp_path_factory.mktemp("nodes"))
        yield made
    finally:
        for node in made.nodes.values():
            node.kill()


def drivers(report: FabricReport) -> set[str]:
    return {trunk.driver for trunk in report.trunks}


def test_an_edge_told_of_cables_and_xdp_forwards_in_their_drivers(site: Site) -> None:
    until(site.is_whole, "all trunks carry")
    reports = {name: node.report() for name, node in site.nodes.items()}
    assert all(drivers(report) == {"cable, XDP"} for report in reports.values())
    assert not any(trunk.failure for report in reports.values() for trunk in report.trunks)
    until(lambda: site.ping(1), "the guests meet")
    before = site.redirected()
    assert site.ping(20)
    assert site.redirected() >= before + 20
    site.nodes["e1"].kill()
    assert site.ping(20), "programs in drivers need no daemon"
    assert site.redirected() >= before + 40
    site.nodes["e1"].start()
    until(site.is_whole, "the daemon is back")
    assert site.nodes["e1"].report().nickname == reports["e1"].nickname
    assert site.ping(20)
    take_the_cable_out_of_the_file(site)


def take_the_cable_out_of_the_file(site: Site) -> None:
    """The card is the operator's again: no program stays on it."""
    assert "xdp" in site.programs_on("v1", "card")
    site.nodes["v1"].kill()
    lines = site.files["v1"].read_text().splitlines()
    site.files["v1"].write_text("\n".join(each for each in lines if not each.startswith("cable")))
    site.nodes["v1"].start()
    until(lambda: not site.programs_on("v1", "card"), "the card is free")
    assert drivers(site.nodes["v1"].report()) == {"vxlan"}
