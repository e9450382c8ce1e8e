"""Trunks: what both ends work out alone fits together, and the MTU is arithmetic."""

import pytest

from nuage.errors import InvalidRequest
from nuage.network.trunk import (
    TrunkDriver,
    TrunkEnd,
    TrunkWish,
    link_commands,
    plan_trunk,
    tunnel_end,
    wireguard_config,
)

MARNE = TrunkEnd(site_id="marne", address="192.0.2.1", public_key="bWFybmU=")
RENNES = TrunkEnd(site_id="rennes", address="198.51.100.1", public_key="cmVubmVz")


def wish(**more: object) -> TrunkWish:
    fields: dict[str, object] = {
        "number": 7, "provider": "isp-a", "here": MARNE, "there": RENNES, **more,
    }  # fmt: skip
    return TrunkWish(**fields)  # type: ignore[arg-type]


def test_both_ends_work_out_the_same_trunk() -> None:
    a = plan_trunk(wish(), TrunkDriver.WIREGUARD_GO)
    b = plan_trunk(wish(here=RENNES, there=MARNE), TrunkDriver.WIREGUARD_KERNEL)
    assert (a.tunnel_local, a.tunnel_remote) == (b.tunnel_remote, b.tunnel_local)
    assert (a.vni, a.listen_port, a.trunk_mtu_bytes) == (b.vni, b.listen_port, b.trunk_mtu_bytes)
    assert a.tunnel != b.tunnel
    assert a.endpoint == "198.51.100.1:51827"


def test_what_a_tunnel_carries_is_known_from_its_number() -> None:
    for low, here, there in ((True, MARNE, RENNES), (False, RENNES, MARNE)):
        plan = plan_trunk(wish(here=here, there=there), TrunkDriver.WIREGUARD_GO)
        end = tunnel_end(7, plan.tunnel, plan.tunnel_mtu_bytes, low=low)
        assert (str(end.here), str(end.there)) == (plan.tunnel_local, plan.tunnel_remote)
        vxlan = next(words for words in link_commands(plan) if "vxlan" in words)
        assert vxlan[vxlan.index("id") + 1] == str(end.vni)
        assert vxlan[vxlan.index("dstport") + 1] == str(end.udp_port)


def test_the_mtu_of_each_driver() -> None:
    secret = plan_trunk(wish(), TrunkDriver.WIREGUARD_KERNEL)
    clear = plan_trunk(wish(drivers=(TrunkDriver.NONE,)), TrunkDriver.NONE)
    assert (secret.tunnel_mtu_bytes, secret.trunk_mtu_bytes) == (1440, 1390)
    assert (secret.guest_mtu_bytes, clear.guest_mtu_bytes) == (1362, 1422)


def test_several_providers_make_several_trunks() -> None:
    plans = [plan_trunk(wish(number=n), TrunkDriver.WIREGUARD_GO) for n in (7, 8)]
    for field in ("tunnel", "port", "listen_port", "vni", "tunnel_local"):
        assert getattr(plans[0], field) != getattr(plans[1], field)


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("number", {"number": 0}),
        ("there.site_id", {"there": MARNE}),
        ("there.address", {"there": TrunkEnd(site_id="x", address="2001:db8::1", public_key="k")}),
        ("there.public_key", {"there": TrunkEnd(site_id="x", address="192.0.2.9")}),
        ("drivers", {"drivers": (TrunkDriver.WIREGUARD_GO, TrunkDriver.NONE)}),
    ],
)
def test_a_wrong_wish_is_refused_by_field(field: str, more: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as error:
        wish(**more)
    assert error.value.field == field


def test_a_trunk_promises_the_same_over_any_line_and_more_over_a_wider_one() -> None:
    """PPPoE, LTE, and IPv6 underneath: IP cuts what is too long, outside of the tunnel."""
    v6 = {
        "here": TrunkEnd(site_id="marne", address="2001:db8::1", public_key="k"),
        "there": TrunkEnd(site_id="nantes", address="2001:db8::2", public_key="k"),
    }
    for more in ({"path_mtu_bytes": 1492}, {"path_mtu_bytes": 1400}, v6):
        plan = plan_trunk(wish(**more), TrunkDriver.WIREGUARD_KERNEL)
        assert (plan.tunnel_mtu_bytes, plan.trunk_mtu_bytes) == (1440, 1390), more
        assert plan.guest_mtu_bytes == 1362
    bare = {"drivers": (TrunkDriver.NONE,), "path_mtu_bytes": 1400}
    assert plan_trunk(wish(**bare), TrunkDriver.NONE).trunk_mtu_bytes == 1390
    assert plan_trunk(wish(path_mtu_bytes=1600), TrunkDriver.WIREGUARD_GO).trunk_mtu_bytes == 1490


def test_a_path_too_narrow_for_ipv6_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="1200"):
        plan_trunk(wish(path_mtu_bytes=1200), TrunkDriver.WIREGUARD_KERNEL)


def test_nothing_longer_than_the_mtu_may_enter_a_trunk() -> None:
    commands = link_commands(plan_trunk(wish(), TrunkDriver.WIREGUARD_GO))
    assert ("ethtool", "-K", "ntr7", "tso", "off", "gso", "off") in commands
    assert ("ip", "link", "set", "ntr7", "mtu", "1390", "up") in commands


def test_the_wireguard_text_lets_one_peer_use_one_address() -> None:
    text = wireguard_config(plan_trunk(wish(), TrunkDriver.WIREGUARD_GO), "secret=")
    assert "AllowedIPs = 169.254.0.15/32" in text.splitlines()
    assert text.count("[Peer]") == 1
