"""Which of a node's trunks let plain frames go past their VXLAN ports (docs/design/dataplane.md).

Acts. Without its short way a trunk carries all the same: a failure is told, not raised.
"""

import structlog

from nuage.daemon.fabric_memory import TrunkMemory
from nuage.daemon.fabric_trunks import rack_under, tunnel_under
from nuage.errors import Unavailable
from nuage.model.fabric import LinkWish, SiteTrunkWish
from nuage.network.forwarding import ForwardingPlane, PortNumber
from nuage.network.kernel_plane import KernelPlane

log = structlog.get_logger("fabric")


class ShortWays:
    """The short ways of one node's trunks. `address`: the node's own in its rack."""

    def __init__(self, site_id: str, address: str) -> None:
        self._site_id = site_id
        self._address = address
        self._looked_at: set[PortNumber] = set()

    def take_tunnel(
        self, plane: ForwardingPlane, number: PortNumber, memory: TrunkMemory, wish: SiteTrunkWish
    ) -> None:
        """Let plain frames go past the VXLAN port of a trunk that lies over a tunnel."""
        if not memory.tunnel or not isinstance(plane, KernelPlane):
            return
        try:
            plane.bind_tunnel(number, tunnel_under(wish, memory.tunnel, self._site_id))
        except (OSError, Unavailable) as error:
            log.warning("no short way", trunk=memory.interface, error=str(error))

    async def take_link(
        self, plane: ForwardingPlane, number: PortNumber, memory: TrunkMemory, wish: LinkWish
    ) -> None:
        """Let plain frames go past the VXLAN port of a link in the rack; once, until it is lost."""
        if number in self._looked_at or not isinstance(plane, KernelPlane):
            return
        self._looked_at.add(number)
        try:
            end = await rack_under(wish, self._address)
            if end is None:
                plane.unbind_tunnel(number)
            else:
                plane.bind_tunnel(number, end)
        except (OSError, Unavailable) as error:
            plane.unbind_tunnel(number)
            log.warning("no short way", trunk=memory.interface, error=str(error))

    def lost(self, number: PortNumber) -> None:
        """Look anew at what a link lies over when it is served again: it may be another card."""
        self._looked_at.discard(number)
