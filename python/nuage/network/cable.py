"""Cables: trunks that are a network card of this node and nothing else: TRILL on Ethernet.

Pure. Between two nodes of a site that are joined by a cable of their own, TRILL needs no IP below
it: its frames go out of the card as they are. Only there can XDP help: a tunnel's port has no
driver that could run a program.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nuage.errors import InvalidRequest
from nuage.network.mtu import GUEST_BYTES_MIN, Wrapping, guest_mtu, trunk_mtu

INTERFACE_BYTES_MAX: Final = 15
CABLE: Final = "cable"  # how such a trunk is kept, beside `trunk.TrunkDriver`


@dataclass(frozen=True, slots=True)
class Cabling:
    """Which card leads to which node of the site. `xdp`: the cards' drivers run our program."""

    interfaces: Mapping[str, str] = field(default_factory=dict)
    xdp: bool = False


NO_CABLES: Final = Cabling()


def cabling_of(cables: Iterable[str], *, xdp: bool) -> Cabling:
    """Return what a node's configuration says, each cable written ``node=interface``.

    Raises:
        InvalidRequest: one is not, two go to one node or out of one card, or XDP is asked for
            without a cable that it could be on.
    """
    interfaces: dict[str, str] = {}
    for text in cables:
        node_id, _, interface = text.partition("=")
        if not node_id or not 0 < len(interface.encode()) <= INTERFACE_BYTES_MAX:
            raise InvalidRequest(f"{text!r} is not node=interface", field="cables")
        if node_id in interfaces or interface in interfaces.values():
            raise InvalidRequest(
                f"{text!r}: a cable leads from one card to one node", field="cables"
            )
        interfaces[node_id] = interface
    if xdp and not interfaces:
        raise InvalidRequest(
            "XDP needs a cable: the ports of VXLAN and WireGuard have no driver to run it",
            field="cable_xdp",
            hint="name the cards that lead straight to other nodes in `cables`, or leave it out",
        )
    return Cabling(interfaces, xdp)


def cable_mtu(interface: str, card_bytes: int) -> int:
    """Return what a trunk carries whose card takes `card_bytes`.

    Raises:
        InvalidRequest: less than a guest needs.
    """
    bytes_max = trunk_mtu(card_bytes, Wrapping(encrypted=False, bare=True))
    if guest_mtu(bytes_max) < GUEST_BYTES_MIN:
        raise InvalidRequest(
            f"{interface} takes frames of {card_bytes} bytes, which leaves a guest "
            f"{guest_mtu(bytes_max)} of the {GUEST_BYTES_MIN} that it needs",
            field="cables",
            hint=f"ip link set {interface} mtu 1500",
        )
    return bytes_max
