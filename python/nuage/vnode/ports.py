"""Plugging a VM's network card into the node's network: what `daemon.fabric` does for TRILL."""

import hashlib
from collections.abc import Collection
from typing import Protocol

from nuage.ids import PortId, VmId
from nuage.model.desired import PortWish


class PortPlug(Protocol):
    """Where taps come from. Both acts may be repeated without harm."""

    async def plug(self, vm_id: VmId, port: PortWish) -> str:
        """Return the name of a tap in the agent's namespace that reaches the port's segment."""
        ...

    async def unplug(self, vm_id: VmId, port_ids: Collection[PortId] = ()) -> None:
        """Remove the taps of these ports, and what others the VM has here, if there are any."""
        ...


class NoPlug:
    """No network: cards are there and their cables are out."""

    async def plug(self, vm_id: VmId, port: PortWish) -> str:  # noqa: ARG002 - the port's shape
        """Return no tap."""
        return ""

    async def unplug(self, vm_id: VmId, port_ids: Collection[PortId] = ()) -> None:
        """Do nothing."""


def tap_name(port_id: PortId) -> str:
    """Return a port's tap name, within the kernel's 15 characters."""
    return f"tap{hashlib.sha256(port_id.encode()).hexdigest()[:10]}"
