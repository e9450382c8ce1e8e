"""A release with another layout takes over port by port; what it finds pinned goes in the end."""

import socket
from ipaddress import IPv4Address

import pytest
from tests.system.bpf.bpf_netns import Bridge, Chain, run, within

from nuage.network.forwarding import PortNumber
from nuage.network.kernel_pins import forget_other_layouts
from nuage.network.kernel_plane import KernelPlane, XdpMode

pytestmark = pytest.mark.system
PING = ("-c", "2", "-i", "0.02", "-W", "2")


def forget(bridge: Bridge, *ports: str) -> tuple[str, ...]:
    def act() -> tuple[str, ...]:
        indices = [socket.if_nametoindex(name) for name in ports or ("west", "east")]
        return forget_other_layouts(bridge.pins, indices)

    return within(bridge.namespace, act)


def upgrade(bridge: Bridge) -> None:
    """Have the plane that stands be one of another layout, and open a fresh one beside it."""
    (now,) = bridge.pins.iterdir()
    entries = bridge.plane.entries()
    now.rename(now.with_name("v1"))
    bridge.plane = within(bridge.namespace, lambda: KernelPlane(bridge.pins))
    assert bridge.plane.entries() == ()
    bridge.set(*entries)


def test_an_earlier_layout_stays_until_none_of_its_programs_forwards(chain: Chain) -> None:
    middle = chain.bridges[1]
    chain.list_hosts()
    upgrade(middle)
    assert forget(middle) == ()
    assert "2 received" in chain.ping(*PING), "the old programs forward"
    middle.bind(1, "west")
    assert forget(middle) == (), "the other port is still theirs"
    assert {path.name for path in middle.pins.iterdir()} > {"v1"}
    middle.bind(2, "east")
    assert forget(middle) == ("v1",)
    assert len(list(middle.pins.iterdir())) == 1
    assert forget(middle) == ()
    assert "2 received" in chain.ping(*PING)


def test_an_earlier_layouts_xdp_program_counts_and_goes_with_its_port(chain: Chain) -> None:
    middle = chain.bridges[1]
    for name in ("west", "east"):
        run("ip", "-n", middle.namespace, "link", "set", name, "mtu", "2000")
    middle.bind(2, "east", xdp=XdpMode.GENERIC)
    upgrade(middle)
    for name in ("west", "east"):  # as if tc had lost all of the old
        run("tc", "-n", middle.namespace, "qdisc", "del", "dev", name, "clsact")
    assert forget(middle) == ()
    middle.bind(1, "west")
    middle.bind(2, "east")
    assert not middle.plane.has_xdp(PortNumber(2))
    assert "prog" not in run("ip", "-n", middle.namespace, "link", "show", "east")
    assert forget(middle) == ("v1",)


def test_an_earlier_layouts_program_on_a_line_that_is_used_no_more_goes_with_the_last_port(
    chain: Chain,
) -> None:
    """What serves ports on other interfaces keeps nothing pinned once there is none of theirs."""
    middle = chain.bridges[1]
    run("ip", "-n", middle.namespace, "link", "add", "line", "type", "veth", "peer", "away")
    address = IPv4Address("192.0.2.1")
    within(middle.namespace, lambda: middle.plane.set_router("line", address, middle.mac("west")))
    upgrade(middle)
    middle.bind(1, "west")
    assert forget(middle) == ()
    assert "lisp_under" in run(
        "tc", "-n", middle.namespace, "filter", "show", "dev", "line", "ingress"
    )
    middle.bind(2, "east")
    assert forget(middle) == ("v1",)
    assert run("tc", "-n", middle.namespace, "filter", "show", "dev", "line", "ingress") == ""
    chain.list_hosts()
    assert "2 received" in chain.ping(*PING)


def test_a_cables_card_that_is_no_port_any_more_keeps_no_earlier_layout(chain: Chain) -> None:
    """The card stays when the operator takes it out of the configuration; programs went with it."""
    middle = chain.bridges[1]
    for name in ("west", "east"):
        run("ip", "-n", middle.namespace, "link", "set", name, "mtu", "2000")
    middle.bind(2, "east", xdp=XdpMode.GENERIC)
    upgrade(middle)
    middle.bind(1, "west")
    assert forget(middle) == ()
    assert forget(middle, "west") == ("v1",)
    assert run("tc", "-n", middle.namespace, "filter", "show", "dev", "east", "ingress") == ""
    assert "prog" not in run("ip", "-n", middle.namespace, "link", "show", "east")
