"""Use cases on the power of nodes: what an operator orders by hand, and what they have seen.

Whatever takes power away asks for maintenance first, so that nothing new is placed there and the
silence is no loss; and it is refused while the node is in use, unless it is forced.
"""

from dataclasses import dataclass

from nuage.errors import Conflict, InvalidRequest, NuageError, Unavailable
from nuage.facility.ports import BootDevice, PowerOrder
from nuage.iaas.disks import NameNode
from nuage.iaas.operations import Operation, OperationTable, node_home, node_scope
from nuage.iaas.site import Machines, Site
from nuage.ids import NodeId
from nuage.model.infrastructure import Node, NodePower, NodeRole
from nuage.model.vm import Vm, VmState
from nuage.model.volume import Volume
from nuage.trust.permissions import Principal

AT_REST = (VmState.STOPPED, VmState.DELETED, VmState.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerView:
    """What BMC and PDUs say. `state` is empty where the BMC does not, and `failures` say why.

    `outlets` has ``rack/number``, and whether it is on; None where the PDU does not tell.
    """

    node: Node
    state: str
    outlets: dict[str, bool | None]
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderPower:
    """Switch a node. `boot` is what it boots from, this time; `by_outlets` asks its PDUs.

    `force` takes the power away without asking the operating system, whatever runs there.
    """

    node: NodeId
    order: PowerOrder
    force: bool = False
    boot: BootDevice | None = None
    by_outlets: bool = False


async def show_power(site: Site, _principal: Principal, body: NameNode) -> PowerView:
    """Show what BMC and PDUs of a node say now."""
    machines, node = _machines(site), site.index.value(Node, body.node)
    failures: list[str] = []
    state, outlets = "", {}
    try:
        state = (await machines.power_state(node)).value
    except NuageError as error:
        failures.append(error.message)
    if node.outlets:
        try:
            outlets = await machines.outlet_states(node)
        except NuageError as error:
            failures.append(error.message)
    return PowerView(node=node, state=state, outlets=outlets, failures=tuple(failures))


async def order_power(site: Site, principal: Principal, body: OrderPower) -> None:
    """Switch a node on, off, or off and on.

    Raises:
        InvalidRequest: it shall boot from something, but does not boot.
        Conflict: it is in service, in use, or this site's only controller.
        NuageError: BMC or PDU do not obey.
    """
    machines, node = _machines(site), site.index.value(Node, body.node)
    if body.boot is not None and (body.order is PowerOrder.OFF or body.by_outlets):
        raise InvalidRequest("what to boot from goes with `on` or `cycle` by the BMC", field="boot")
    if body.order is PowerOrder.ON and node.power is NodePower.OFF and not body.by_outlets:
        if site.steering is None:
            raise Unavailable(f"site {site.site_id} keeps no energy")
        site.steering.wake(node.node_id, f"{principal.name} asked")
        return
    if body.order is not PowerOrder.ON:
        _require_idle(site, node, force=body.force)
    if body.by_outlets:
        await machines.order_outlets(node, body.order)
    else:
        await machines.order(node, body.order, force=body.force, boot=body.boot)
    told = {PowerOrder.ON: "on", PowerOrder.OFF: "off", PowerOrder.CYCLE: "off and on"}[body.order]
    by = " at its outlets" if body.by_outlets else ""
    text = f"{principal.name} switches node {node.name} {told}{by}"
    site.announce("node", node.node_id, "power", text)


async def confirm_off(site: Site, principal: Principal, body: NameNode) -> None:
    """Take an operator's word for it that a silent V-node is off: its VMs start elsewhere.

    Raises:
        InvalidRequest: it is no V-node.
        Conflict: it was heard just now.
    """
    node = site.index.value(Node, body.node)
    if NodeRole.VNODE not in node.roles:
        raise InvalidRequest(f"{node.name} is no V-node", field="node")
    if site.confirm_off is None:
        raise Unavailable(f"site {site.site_id} watches no nodes")
    await site.confirm_off(node, principal.name)


def _require_idle(site: Site, node: Node, *, force: bool) -> None:
    if NodeRole.CONTROLLER in node.roles:
        raise Conflict(
            f"{node.name} runs a controller of {site.site_id}, which could not switch it on again",
            hint="use its BMC directly",
        )
    if not node.maintenance:
        raise Conflict(
            f"{node.name} is in service: its silence would be taken for a loss",
            hint=f"first `nuage node maintenance {node.name} on`",
        )
    if (use := _use(site, node)) and not force:
        raise Conflict(f"{node.name} is in use: {use}", hint="empty it first, or --force")


def _use(site: Site, node: Node) -> str:
    for vm in site.index.on_node(Vm, node.node_id):
        if vm.state not in AT_REST:
            return f"{vm.name} is {vm.state.value} there"
    if NodeRole.EDGE in node.roles:
        return f"it carries all that {node.site_id} says to other sites"
    if copies := len(site.index.on_node(Volume, node.node_id)):
        return f"it has {copies} {'copy' if copies == 1 else 'copies'} of volumes"
    return ""


def _machines(site: Site) -> Machines:
    if site.machines is None:
        raise Unavailable(f"site {site.site_id} has no way to its nodes' BMCs")
    return site.machines


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="node.power.show",
            verb="GET",
            path="/v1/nodes/{node}/power",
            body=NameNode,
            result=PowerView,
            action="node.read",
            summary="Ask a node's BMC and PDUs for its power",
            run=show_power,
            scope=node_scope,
            home=node_home,
        )
    )
    table.add(
        Operation(
            name="node.power",
            verb="POST",
            path="/v1/nodes/{node}/power",
            body=OrderPower,
            result=type(None),
            action="node.maintain",
            summary="Switch a node on, off, or off and on",
            run=order_power,
            scope=node_scope,
            home=node_home,
        )
    )
    table.add(
        Operation(
            name="node.confirm-off",
            verb="POST",
            path="/v1/nodes/{node}/confirm-off",
            body=NameNode,
            result=type(None),
            action="node.maintain",
            summary="Say that a silent V-node was seen to be off: its VMs start elsewhere",
            run=confirm_off,
            scope=node_scope,
            home=node_home,
        )
    )
