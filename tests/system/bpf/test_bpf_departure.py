"""A guest that goes on elsewhere, by two nodes' own fabrics: v1 = v2, a cable.

What comes for it while it stands still is sent after it, in order; and what its group lets in is
at its new place what it was at the old one.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.system.bpf.bpf_netns import Namespaces, Wire, run
from tests.system.bpf.node_process import NodeProcess, configured, until

from nuage.ids import NodeId, PortId, SegmentId
from nuage.model.contract import QosClass
from nuage.model.desired import PortWish
from nuage.model.fabric import FabricWish, LinkWish, PortRulesWish, RuleWish, StationWish
from nuage.vnode.ports import tap_name

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
LABEL = 0x1234
ASKER, MOVER = 1, 2
ARRIVAL_S = 2.0
DNS_IN = RuleWish(ingress=True, protocol="udp", port_first=53, port_last=53)
ALL_OUT = RuleWish(ingress=False)


def mac_of(guest: int) -> str:
    return f"06:00:00:00:00:{guest:02x}"


def port_of(guest: int) -> PortId:
    return PortId(f"port-{guest}")


def datagram(source: int, text: bytes, *, ports: tuple[int, int]) -> bytes:
    """Return what one of the two sends the other."""
    target = MOVER if source == ASKER else ASKER
    body = struct.pack(">HHHH", *ports, 8 + len(text), 0) + text
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0)
    ends = (IPv4Address(f"10.0.0.{source}"), IPv4Address(f"10.0.0.{target}"))
    macs = bytes.fromhex((mac_of(target) + mac_of(source)).replace(":", ""))
    return (macs + b"\x08\0" + head + b"".join(end.packed for end in ends) + body).ljust(60, b"\0")


@dataclass
class Site:
    """Two nodes with a cable between them; the asker is at v2, where the mover will be."""

    net: Namespaces
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    wires: dict[tuple[str, int], Wire] = field(default_factory=dict)
    revision: int = 0

    def build(self, pins: Path, folder: Path) -> None:
        spaces = {name: self.net.add(name) for name in ("v1", "v2")}
        self.net.cable(spaces["v1"], "card", spaces["v2"], "card")
        for name, other in (("v1", "v2"), ("v2", "v1")):
            path = configured(
                folder / name, site="marne", address="192.0.2.1", is_edge=False,
                more=f'cables = ["{other}=card"]\n',
            )  # fmt: skip
            self.nodes[name] = NodeProcess(spaces[name], pins, path)
            self.nodes[name].start()
        self.wish(DNS_IN, ALL_OUT)
        for name, guest in (("v2", ASKER), ("v1", MOVER), ("v2", MOVER)):
            self._plug(name, spaces[name], guest, arriving=(name, guest) == ("v2", MOVER))

    def wish(self, *rules: RuleWish, moving: bool = False) -> None:
        """Tell both nodes where the guests are, and what the mover's group says."""
        self.revision += 1
        for name, other in (("v1", "v2"), ("v2", "v1")):
            told = FabricWish(
                revision=self.revision, key="00" * 32,
                links=(LinkWish(node_id=NodeId(other), address="192.0.2.9", vni=5000),),
                stations=tuple(
                    StationWish(
                        label=LABEL, mac=mac_of(guest), addresses=(f"10.0.0.{guest}",),
                        node_id=NodeId(at), moving=moving and guest == MOVER,
                    )
                    for at, guest in (("v2", ASKER), ("v1", MOVER))
                ),
                ports=tuple(
                    PortRulesWish(
                        port_id=port_of(guest), hostname=f"g{guest}", cidr="10.0.0.0/24",
                        qos_class=QosClass.GOLD, rules=rules if guest == MOVER else None,
                    )
                    for guest in (ASKER, MOVER)
                ),
            )  # fmt: skip
            assert self.nodes[name].tell({"wish": told}) == "done"

    def _plug(self, name: str, space: str, guest: int, *, arriving: bool) -> None:
        host, tap = self.net.add(f"{name}g{guest}"), tap_name(port_of(guest))
        run("ip", "link", "add", tap, "netns", space, "type", "veth",
            "peer", "name", "eth0", "netns", host)  # fmt: skip
        run("ip", "-n", space, "link", "set", tap, "up")
        run("ip", "-n", host, "link", "set", "eth0", "mtu", "1362", "up")
        self.wires[name, guest] = Wire(host, "eth0", 0x0800)
        plug = PortWish(
            port_id=port_of(guest), segment_id=SegmentId("segment-1"), label=LABEL,
            mac=mac_of(guest), addresses=(f"10.0.0.{guest}/24",), gateway="10.0.0.254",
            mtu_bytes=1362,
        )  # fmt: skip
        assert self.nodes[name].tell({"plug": plug, "arriving": arriving}) == "done"

    def mover(self, does: str) -> None:
        """Tell v1's fabric what its hypervisor says of the mover."""
        assert self.nodes["v1"].tell({"vm": f"vm-{port_of(MOVER)}", "does": does}) == "done"

    def ask(self, text: bytes) -> bytes:
        frame = datagram(ASKER, text, ports=(999, 53))
        self.wires["v2", ASKER].send(frame)
        return frame

    def hears(self, text: bytes) -> bool:
        """Tell whether the mover at v1 hears the asker."""
        frame = self.ask(text)
        return frame in self.wires["v1", MOVER].frames(0.2, 1)


@pytest.fixture
def site(net: Namespaces, pins: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(net)
    try:
        made.build(pins, tmp_path_factory.mktemp("nodes"))
        until(lambda: made.hears(b"are you there"), "the guests meet")
        yield made
    finally:
        for node in made.nodes.values():
            node.kill()


def move(site: Site) -> list[bytes]:
    """Move the guest; return what was sent to it while it stood still."""
    site.wish(DNS_IN, ALL_OUT, moving=True)
    site.mover("leaves soon")
    site.mover("stands still")
    kept = [site.ask(b"while you stood still, %d" % count) for count in range(5)]
    site.mover("left")
    assert not site.wires["v2", MOVER].frames(0.2, 1), "it has said nothing there"
    site.wires["v2", MOVER].send(datagram(MOVER, b"here I am", ports=(53, 999)))
    return kept


def test_a_guest_is_sent_what_came_meanwhile_and_its_group_holds_at_its_new_node(
    site: Site,
) -> None:
    kept, mover, asker = move(site), site.wires["v2", MOVER], site.wires["v2", ASKER]
    assert mover.frames(ARRIVAL_S, len(kept)) == kept
    now = site.ask(b"and now")
    assert mover.frames(ARRIVAL_S, 1) == [now]

    asker.frames(0.1)
    answer = datagram(MOVER, b"an answer", ports=(53, 999))
    mover.send(answer)
    assert asker.frames(ARRIVAL_S, 1) == [answer]
    site.wish(ALL_OUT, moving=True)
    mover.send(answer)
    site.ask(b"a question")
    assert not asker.frames(0.2, 1), "what the guest says first there is no beginning"
    assert not mover.frames(0.2, 1)
