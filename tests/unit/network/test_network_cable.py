"""What a node's configuration says of its cables."""

import pytest

from nuage.errors import InvalidRequest
from nuage.network.cable import cable_mtu, cabling_of


def test_cables_lead_from_a_card_to_a_node() -> None:
    cabling = cabling_of(("lyon-v1=eth2", "lyon-edge1=enp3s0f0"), xdp=True)
    assert cabling.interfaces == {"lyon-v1": "eth2", "lyon-edge1": "enp3s0f0"}
    assert cabling.xdp
    assert cabling_of((), xdp=False).interfaces == {}


@pytest.mark.parametrize(
    "cables",
    [
        ("eth2",),
        ("=eth2",),
        ("lyon-v1=",),
        ("lyon-v1=a-name-that-is-too-long",),
        ("lyon-v1=eth2", "lyon-v1=eth3"),
        ("lyon-v1=eth2", "lyon-v2=eth2"),
    ],
)
def test_a_cable_that_leads_nowhere_is_refused(cables: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        cabling_of(cables, xdp=False)
    assert refused.value.field == "cables"


def test_xdp_without_a_cable_is_refused_and_says_why() -> None:
    with pytest.raises(InvalidRequest, match="VXLAN and WireGuard have no driver") as refused:
        cabling_of((), xdp=True)
    assert refused.value.field == "cable_xdp"


def test_a_card_must_take_what_a_guest_needs() -> None:
    assert cable_mtu("eth2", 1500) == 1500
    assert cable_mtu("eth2", 1308) == 1308
    with pytest.raises(InvalidRequest, match="1279 of the 1280"):
        cable_mtu("eth2", 1307)
