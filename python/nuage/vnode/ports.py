"""Plugging a VM's network card into the node's network: the port, and a plain bridge behind it.

`PortPlug` is what the network room implements for TRILL segments. `BridgePlug` is the plain case:
one Linux bridge per segment label in the agent's network namespace, a tap per port. It filters
nothing; anti-spoofing belongs to the segment's data plane.
"""

import asyncio
import hashlib
from typing import Final, Protocol

from nuage.errors import Unavailable
from nuage.ids import PortId, VmId
from nuage.model.desired import PortWish

IP_TIMEOUT_S: Final = 10.0


class PortPlug(Protocol):
    """Where taps come from. Both acts may be repeated without harm."""

    async def plug(self, vm_id: VmId, port: PortWish) -> str:
        """Return the name of a tap in the agent's namespace that reaches the port's segment."""
        ...

    async def unplug(self, vm_id: VmId, port_id: PortId) -> None:
        """Remove the port's tap; nothing happens when there is none."""
        ...


class NoPlug:
    """No network: cards are there and their cables are out."""

    async def plug(self, vm_id: VmId, port: PortWish) -> str:  # noqa: ARG002 - the port's shape
        """Return no tap."""
        return ""

    async def unplug(self, vm_id: VmId, port_id: PortId) -> None:
        """Do nothing."""


def tap_name(port_id: PortId) -> str:
    """Return a port's tap name, within the kernel's 15 characters."""
    return f"tap{hashlib.sha256(port_id.encode()).hexdigest()[:10]}"


def bridge_name(label: int) -> str:
    """Return a segment's bridge name; 24 bits in hexadecimal fit 15 characters."""
    return f"nuage-br{label:x}"


class BridgePlug:
    """Taps on a Linux bridge per segment, through `ip`."""

    async def plug(self, vm_id: VmId, port: PortWish) -> str:  # noqa: ARG002 - the port's shape
        """Return the port's tap, on its segment's bridge."""
        tap, bridge = tap_name(port.port_id), bridge_name(port.label)
        await _ip(f"link add {bridge} type bridge\ntuntap add {tap} mode tap vnet_hdr", force=True)
        await _ip(
            f"link set {bridge} up\n"
            f"link set {tap} mtu {port.mtu_bytes} master {bridge}\n"
            f"link set {tap} up"
        )
        return tap

    async def unplug(self, vm_id: VmId, port_id: PortId) -> None:  # noqa: ARG002
        """Remove the port's tap. A bridge stays for the segment's other ports."""
        await _ip(f"link del {tap_name(port_id)}", force=True)


async def _ip(batch: str, *, force: bool = False) -> None:
    """Run lines of `ip`; with `force`, what is there already (or gone already) is no error."""
    process = await asyncio.create_subprocess_exec(
        "ip", *(["-force"] if force else []), "-batch", "-",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(IP_TIMEOUT_S):
        _, told = await process.communicate(batch.encode() + b"\n")
    if process.returncode != 0 and not force:
        raise Unavailable(f"the network cannot be plugged: {told.decode().strip()}")
