"""Nodes off and on by their BMCs and outlets: what the guardian needs, and what an operator orders.

A BMC that answers is believed. One that does not may be as dead as its node, by the same lost
power: then the node's outlets can be switched off at the PDUs, and read back. That proves as much
only if `Node.outlets` names all that feed the node, so a site's operator has to say that it does
(``fence_by_outlets``).
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

import structlog

from nuage.clock import Clock
from nuage.daemon.hardware import OpenBmc, OpenPdu, comes_true, is_off
from nuage.errors import InvalidRequest, NuageError, TimedOut, Unavailable
from nuage.facility.ports import BootDevice, PowerOrder, PowerState
from nuage.ids import NodeId
from nuage.model.infrastructure import Node

OFF_TIMEOUT_S: Final = 20.0
log: Final = structlog.get_logger("fencing")


class Outlets:
    """The outlets that feed a site's nodes, at the PDUs of its racks."""

    def __init__(self, pdus: Mapping[str, OpenPdu], clock: Clock) -> None:
        self._pdus = pdus
        self._clock = clock

    async def states(self, node: Node) -> dict[str, bool | None]:
        """Return which of a node's outlets are on, as ``rack/number``; None where nobody tells.

        Raises:
            InvalidRequest: no outlets of it are known, or one is of a PDU that nobody reads.
            NuageError: a PDU does not answer.
        """
        found: dict[str, bool | None] = {}
        for rack, numbers in self._of(node).items():
            async with self._pdus[rack]() as pdu:
                told = {outlet.outlet_id: outlet.is_on for outlet in await pdu.outlets()}
            found |= {f"{rack}/{number}": told.get(number) for number in numbers}
        return found

    async def switch(self, node: Node, order: PowerOrder) -> None:
        """Switch all of a node's outlets.

        Raises:
            InvalidRequest: as `states`.
            NuageError: a PDU does not answer, or does not switch outlets.
        """
        for rack, numbers in self._of(node).items():
            async with self._pdus[rack]() as pdu:
                for number in numbers:
                    await pdu.switch_outlet(number, order)

    async def prove_off(self, node: Node) -> bool:
        """Have a node's outlets off; return False where they were so before.

        Raises:
            InvalidRequest: as `states`.
            Unavailable: its PDU does not tell whether an outlet is on.
            TimedOut: they stay on.
            NuageError: a PDU does not answer.
        """
        if await self._are_off(node):
            return False
        await self.switch(node, PowerOrder.OFF)
        if not await comes_true(lambda: self._are_off(node), self._clock, within_s=OFF_TIMEOUT_S):
            raise TimedOut(f"the outlets of {node.name} to be off", after_s=OFF_TIMEOUT_S)
        return True

    async def _are_off(self, node: Node) -> bool:
        states = await self.states(node)
        for outlet, is_on in states.items():
            if is_on is None:
                raise Unavailable(f"whether outlet {outlet} of {node.name} is on is not told")
        return not any(states.values())

    def _of(self, node: Node) -> dict[str, list[str]]:
        by_rack: dict[str, list[str]] = defaultdict(list)
        for name in node.outlets:
            rack, _, number = name.partition("/")
            by_rack[rack].append(number)
        if not by_rack:
            raise InvalidRequest(f"no outlets of {node.name} are known", field="node.outlets")
        if unknown := sorted(by_rack.keys() - self._pdus.keys()):
            raise InvalidRequest(
                f"{node.name} has outlets at {', '.join(unknown)}, whose PDU is not known",
                field="energy.pdus",
            )
        return by_rack


class NodeFence:
    """Switches nodes off and proves it, and on again (`guardian.Fence`, `SwitchOn`).

    `outlets` None: a node whose BMC is silent is not proven off.
    """

    def __init__(self, open_bmc: OpenBmc, clock: Clock, outlets: Outlets | None = None) -> None:
        self._open_bmc = open_bmc
        self._clock = clock
        self._outlets = outlets
        self._switched_off: set[NodeId] = set()
        self._unplugged: set[NodeId] = set()

    async def __call__(self, node: Node) -> bool:
        """Switch a node off and return whether its BMC, or else its outlets, confirm it."""
        try:
            return await self._is_off_by_bmc(node)
        except NuageError as error:
            if self._outlets is None or not node.outlets:
                raise
            log.warning("off by its outlets", fenced=node.node_id, bmc=error.message)
        if await self._outlets.prove_off(node):
            self._unplugged.add(node.node_id)
        return True

    async def _is_off_by_bmc(self, node: Node) -> bool:
        async with self._open_bmc(node) as machine:
            if await is_off(machine):
                return True
            self._switched_off.add(node.node_id)
            await machine.power_off(force=True)
            if not await comes_true(lambda: is_off(machine), self._clock, within_s=OFF_TIMEOUT_S):
                raise TimedOut(f"{node.name} to be off", after_s=OFF_TIMEOUT_S)
            return True

    async def switch_on(self, node: Node) -> bool:
        """Switch a node on that was switched off here; return False for one that was off before."""
        if node.node_id not in self._switched_off | self._unplugged:
            return False
        if node.node_id in self._unplugged and self._outlets is not None:
            await self._outlets.switch(node, PowerOrder.ON)
            self._switched_off.add(node.node_id)  # its board may wait for the button
            self._unplugged.discard(node.node_id)
        async with self._open_bmc(node) as machine:
            await machine.power_on()
        self._switched_off.discard(node.node_id)
        return True


class Machines:
    """The power of a site's nodes by an operator's hand (`iaas.site.Machines`)."""

    def __init__(self, open_bmc: OpenBmc, outlets: Outlets) -> None:
        self._open_bmc = open_bmc
        self._outlets = outlets

    async def power_state(self, node: Node) -> PowerState:
        """Return what a node's BMC says."""
        async with self._open_bmc(node) as machine:
            return await machine.power_state()

    async def outlet_states(self, node: Node) -> dict[str, bool | None]:
        """Return which of a node's outlets are on."""
        return await self._outlets.states(node)

    async def order(
        self, node: Node, order: PowerOrder, *, force: bool, boot: BootDevice | None
    ) -> None:
        """Have a node's BMC switch it; `boot` is what it boots from next."""
        async with self._open_bmc(node) as machine:
            if boot is not None:
                await machine.set_boot_device(boot)
            match order:
                case PowerOrder.ON:
                    await machine.power_on()
                case PowerOrder.OFF:
                    await machine.power_off(force=force)
                case PowerOrder.CYCLE:
                    await machine.power_cycle()

    async def order_outlets(self, node: Node, order: PowerOrder) -> None:
        """Switch all of a node's outlets."""
        await self._outlets.switch(node, order)
