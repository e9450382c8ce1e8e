"""Use cases on the fabric: how a node sees it, which way frames go, what ports let through."""

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final, TypeVar

from nuage.errors import Conflict, InvalidRequest, NotFound
from nuage.iaas.fabric_wishes import rules_of
from nuage.iaas.machines import port_of, vm_of
from nuage.iaas.operations import Operation, OperationTable, Shown, anywhere, iaas_scope
from nuage.iaas.showing import show
from nuage.iaas.site import Site
from nuage.ids import SecurityGroupId, SiteId, new_id
from nuage.model.fabric import AskFabric, EidQuestion, FabricReport, PathAnswer, PathQuestion
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.network import GroupRule, Port, PublicAddress, SecurityGroup, Segment
from nuage.model.vm import Vm, VmState
from nuage.network.forwarding import Direction
from nuage.network.security_group import RULES_PER_PORT_MAX, SecurityRule
from nuage.trust.permissions import Principal, Scope

B = TypeVar("B")
R = TypeVar("R")
ASK_TIMEOUT_S: Final = 5.0
RATE_MBIT_MAX: Final = 100_000
SPEAKING: Final = frozenset({VmState.RUNNING, VmState.MIGRATING})


# How a node sees the fabric, and which way a frame goes -----------------------------------------


@dataclass(frozen=True, slots=True)
class NameRBridge:
    """Name a V-node or an edge."""

    node: str


def is_rbridge(node: Node) -> bool:
    """Tell whether a node is part of the fabric."""
    return not {NodeRole.VNODE, NodeRole.EDGE}.isdisjoint(node.roles)


async def show_fabric(site: Site, _principal: Principal, body: NameRBridge) -> FabricReport:
    """Ask a node how it sees the fabric.

    Raises:
        InvalidRequest: it is a node of another kind.
    """
    node = site.index.named(Node, body.node)
    if not is_rbridge(node):
        names = ", ".join(sorted(each.name for each in site.index.values(Node) if is_rbridge(each)))
        raise InvalidRequest(
            f"{node.name} is no RBridge: V-nodes and edges are",
            field="node",
            hint=f"there is {names}",
        )
    return await site.nodes.ask(
        node.node_id, "fabric.view", AskFabric(), FabricReport, timeout_s=ASK_TIMEOUT_S
    )


def node_home(site: Site, body: NameRBridge) -> SiteId | None:
    """Let the site of the node answer."""
    return site.index.named(Node, body.node).site_id


def node_scope(site: Site, body: NameRBridge) -> Scope | None:
    """Ask for the role on the node's site."""
    return Scope(site_id=site.index.named(Node, body.node).site_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPath:
    """Which way would a frame from one VM to another go? `traced` sends probes too.

    `destination` is a VM, by name or by its address in the source's segment; or an address
    elsewhere: then the answer says which way a packet from a public address of the source
    takes (LISP).
    """

    iaas: str
    source: str
    destination: str
    traced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPath:
    """A way through the fabric, from one VM to another or (without segment) to an address.

    `notes`: what keeps frames from being answered, however good the way is.
    """

    source: str
    source_node: str
    destination: str
    destination_node: str
    segment: str
    answer: PathAnswer
    notes: tuple[str, ...] = ()


async def find_path(site: Site, _principal: Principal, body: AskPath) -> ShownPath:
    """Ask the source's node where it would send a frame, and why."""
    source = vm_of(site, body.iaas, body.source)
    if source.node_id is None:
        raise Conflict(f"{source.name} is on no node yet")
    destination = vm_meant(site, body, source)
    if destination is None:
        answer = await site.nodes.ask(
            source.node_id, "fabric.eid", EidQuestion(address=body.destination), PathAnswer,
            timeout_s=ASK_TIMEOUT_S,
        )  # fmt: skip
        return ShownPath(
            source=source.name,
            source_node=source.node_id,
            destination=body.destination,
            destination_node=answer.steps[-1].node_id if answer.steps else "",
            segment="",
            answer=answer,
            notes=(*_silent(source), *_kept_in(site, source, body.destination)),
        )
    port, own = port_of(site, destination), port_of(site, source)
    segment = site.index.value(Segment, port.segment_id)
    if port.segment_id != own.segment_id:
        raise Conflict(
            f"{source.name} and {destination.name} are in different segments",
            hint="frames do not leave a segment; a gateway between them would",
        )
    question = PathQuestion(label=segment.label, mac=port.mac, traced=body.traced)
    answer = await site.nodes.ask(
        source.node_id, "fabric.path", question, PathAnswer, timeout_s=ASK_TIMEOUT_S
    )
    return ShownPath(
        source=source.name,
        source_node=source.node_id,
        destination=destination.name,
        destination_node=destination.node_id or "",
        segment=segment.name,
        answer=answer,
        notes=(
            *_silent(source, destination),
            *_let_out(site, source, own, port.addresses[0]),
            *_let_in(site, destination, port, own.addresses[0]),
        ),
    )


def _silent(*vms: Vm) -> tuple[str, ...]:
    return tuple(f"{vm.name} is {vm.state.value}" for vm in vms if vm.state not in SPEAKING)


def _kept_in(site: Site, source: Vm, destination: str) -> tuple[str, ...]:
    """Say what keeps packets to an address beyond the segment from leaving."""
    port, version = port_of(site, source), ip_address(destination).version
    public = [
        each
        for each in site.index.of_iaas(PublicAddress, source.iaas_id)
        if each.port_id == port.port_id and ip_address(each.address).version == version
    ]
    if not public:
        own = "its own addresses are the segment's, which nothing leaves from"
        return (f"{source.name} has no public IPv{version} address: {own}",)
    return _let_out(site, source, port, destination)


def _let_out(site: Site, vm: Vm, port: Port, to: str) -> tuple[str, ...]:
    what = _allowed(site, port, to, ingress=False)
    return () if what is None else (f"{vm.name}'s groups let out to there: {what}",)


def _let_in(site: Site, vm: Vm, port: Port, of: str) -> tuple[str, ...]:
    what = _allowed(site, port, of, ingress=True)
    return () if what is None else (f"{vm.name}'s groups let in from there: {what}",)


def _allowed(site: Site, port: Port, remote: str, *, ingress: bool) -> str | None:
    """Return what may begin between a port and an address, as people write it; None: all."""
    address = ip_interface(remote).ip
    segment = site.index.value(Segment, port.segment_id)
    allowed = {
        (rule.protocol, rule.port_first, rule.port_last)
        for rule in rules_of(site.index, port, segment)
        if rule.ingress is ingress and (not rule.remote or address in ip_network(rule.remote))
    }
    if any(protocol == "any" for protocol, _, _ in allowed):
        return None
    told = ", ".join(_rule_text(*rule) for rule in sorted(allowed))
    return f"{told}, and answers" if told else "nothing but answers"


def _rule_text(protocol: str, first: int, last: int) -> str:
    if (first, last) == (0, 65535):
        return protocol
    return f"{protocol}:{first}" if first == last else f"{protocol}:{first}-{last}"


def vm_meant(site: Site, body: AskPath, source: Vm) -> Vm | None:
    """Return the VM that the question names; None: it asks for an address beyond the segment.

    Raises:
        NotFound: no VM of that name, or none that has this address of the segment.
        Conflict: it is the segment's gateway.
    """
    try:
        address = ip_address(body.destination)
    except ValueError:
        return vm_of(site, body.iaas, body.destination)
    segment = site.index.value(Segment, port_of(site, source).segment_id)
    if address not in ip_network(segment.cidr):
        return None
    if str(address) == segment.gateway:
        raise Conflict(
            f"{address} is the gateway of {segment.name}: the node of {source.name} itself is",
            hint="name an address beyond it to see where a packet would go",
        )
    for port in site.index.of_iaas(Port, source.iaas_id):
        if port.segment_id != segment.segment_id or port.vm_id is None:
            continue
        if address in {ip_interface(each).ip for each in port.addresses}:
            return site.index.value(Vm, port.vm_id)
    raise NotFound("vm", str(address), hint=f"{segment.name} is {segment.cidr}: nobody is there")


def path_home(site: Site, body: AskPath) -> SiteId | None:
    """Let the site that runs the source answer."""
    return vm_of(site, body.iaas, body.source).site_id


# Security groups and rates ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NameIaasOfGroups:
    """Ask for an IaaS's security groups."""

    iaas: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleText:
    """A rule as people write it. `remote` is a prefix, `remote_group` a group's name."""

    ingress: bool = True
    protocol: str = "any"
    remote: str = ""
    remote_group: str = ""
    port_first: int = 0
    port_last: int = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class PutGroup:
    """Make a security group, or give one other rules."""

    iaas: str
    group: str
    rules: tuple[RuleText, ...] = ()


@dataclass(frozen=True, slots=True)
class NameGroup:
    """Name a security group."""

    iaas: str
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPort:
    """Say what the port of a VM lets through; what is None stays as it is."""

    iaas: str
    vm: str
    groups: tuple[str, ...] | None = None
    rate_mbit: int | None = None


async def list_groups(
    site: Site, _principal: Principal, body: NameIaasOfGroups
) -> list[Shown[SecurityGroup]]:
    """Show an IaaS's security groups."""
    iaas = site.index.iaas_named(body.iaas)
    groups = site.index.of_iaas(SecurityGroup, iaas.iaas_id)
    return [show(site, group) for group in sorted(groups, key=lambda g: g.name)]


async def create_group(site: Site, _principal: Principal, body: PutGroup) -> Shown[SecurityGroup]:
    """Make a security group."""
    iaas = site.index.iaas_named(body.iaas)
    unruled = SecurityGroup(
        group_id=SecurityGroupId(new_id("sg", site.entropy)),
        iaas_id=iaas.iaas_id,
        name=body.group,
    )
    group = replace(unruled, rules=_rules(site, unruled, body.rules))
    if site.index.is_name_taken(SecurityGroup, body.group, iaas.iaas_id):
        raise Conflict(f"there is a security group {body.group!r} already")
    await site.save(group, unique_name=True)
    site.announce("security-group", group.group_id, "created", f"security group {group.name}")
    return show(site, group)


async def change_group(site: Site, _principal: Principal, body: PutGroup) -> Shown[SecurityGroup]:
    """Give a group other rules; ports in it follow at once."""
    group = _group(site, body.iaas, body.group)
    changed = replace(group, rules=_rules(site, group, body.rules))
    await site.save(changed)
    site.announce("security-group", group.group_id, "changed", f"security group {group.name}")
    return show(site, changed)


async def delete_group(site: Site, _principal: Principal, body: NameGroup) -> None:
    """Delete a group that no port is in and no rule names."""
    group = _group(site, body.iaas, body.group)
    ports = [p for p in site.index.of_iaas(Port, group.iaas_id) if _is_in(p, group)]
    others = [
        other.name
        for other in site.index.of_iaas(SecurityGroup, group.iaas_id)
        if other != group and any(rule.remote_group == group.group_id for rule in other.rules)
    ]
    if ports or others:
        machines = (site.index.value(Vm, port.vm_id).name for port in ports if port.vm_id)
        held = ", ".join([*machines, *others])
        raise Conflict(f"security group {group.name} is in use by {held}")
    await site.delete(group)


async def set_port(site: Site, _principal: Principal, body: SetPort) -> Shown[Port]:
    """Put a VM's port into groups, or limit its rate."""
    vm = vm_of(site, body.iaas, body.vm)
    port = port_of(site, vm)
    if body.rate_mbit is not None:
        if not 0 <= body.rate_mbit <= RATE_MBIT_MAX:
            raise InvalidRequest(f"a rate is 0 to {RATE_MBIT_MAX} Mbit/s", field="rate_mbit")
        port = replace(port, rate_mbit=body.rate_mbit)
    if body.groups is not None:
        groups = tuple(_group(site, body.iaas, name) for name in body.groups)
        if sum(len(group.rules) for group in groups) > RULES_PER_PORT_MAX:
            raise InvalidRequest(f"a port has at most {RULES_PER_PORT_MAX} rules", field="groups")
        port = replace(port, security_groups=tuple(group.group_id for group in groups))
    record = site.index.find("port", port.port_id)
    await site.save_moving(port, epoch=0 if record is None else record.epoch)
    site.announce("port", port.port_id, "changed", f"the port of {vm.name} changed")
    return show(site, port)


def _is_in(port: Port, group: SecurityGroup) -> bool:
    return group.group_id in port.security_groups


def _group(site: Site, iaas: str, name: str) -> SecurityGroup:
    return site.index.named(SecurityGroup, name, site.index.iaas_named(iaas).iaas_id)


def _rules(site: Site, group: SecurityGroup, texts: tuple[RuleText, ...]) -> tuple[GroupRule, ...]:
    """Return the rules of `group`, which they may name before it is entered."""
    if len(texts) > RULES_PER_PORT_MAX:
        raise InvalidRequest(f"a group has at most {RULES_PER_PORT_MAX} rules", field="rules")
    rules = []
    for text in texts:
        SecurityRule(  # checks protocol, prefix and ports
            direction=Direction.INGRESS if text.ingress else Direction.EGRESS,
            protocol=text.protocol,
            remote=text.remote,
            remote_group=text.remote_group,
            port_first=text.port_first,
            port_last=text.port_last,
        )
        named = None
        if text.remote_group == group.name:
            named = group.group_id
        elif text.remote_group:
            named = site.index.named(SecurityGroup, text.remote_group, group.iaas_id).group_id
        rules.append(
            GroupRule(
                ingress=text.ingress,
                protocol=text.protocol,
                remote=str(ip_network(text.remote)) if text.remote else "",
                remote_group=named,
                port_first=text.port_first,
                port_last=text.port_last,
            )
        )
    return tuple(rules)


def group_home(site: Site, body: PutGroup | NameGroup) -> SiteId | None:
    """Let the site that made the group answer."""
    group = _group(site, body.iaas, body.group)
    return site.index.home("security-group", group.group_id)


def port_home(site: Site, body: SetPort) -> SiteId | None:
    """Let the site that runs the VM answer."""
    return site.index.home("port", port_of(site, vm_of(site, body.iaas, body.vm)).port_id)


GROUPS: Final = "/v1/iaas/{iaas}/security-groups"


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="fabric.show",
            verb="GET",
            path="/v1/fabric/{node}",
            body=NameRBridge,
            result=FabricReport,
            action="node.read",
            summary="Tell how a V-node or an edge sees the fabric",
            run=show_fabric,
            scope=node_scope,
            home=node_home,
        )
    )
    table.add(
        Operation(
            name="fabric.path",
            verb="GET",
            path="/v1/iaas/{iaas}/path",
            body=AskPath,
            result=ShownPath,
            action="port.read",
            summary="Tell which way frames between two VMs go; traced=true sends probes",
            run=find_path,
            scope=iaas_scope,
            home=path_home,
        )
    )
    table.add(
        Operation(
            name="group.list",
            verb="GET",
            path=GROUPS,
            body=NameIaasOfGroups,
            result=list[Shown[SecurityGroup]],
            action="segment.read",
            summary="List security groups",
            run=list_groups,
            scope=iaas_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="group.create",
            verb="POST",
            path=GROUPS,
            body=PutGroup,
            result=Shown[SecurityGroup],
            action="segment.write",
            summary="Make a security group",
            run=create_group,
            scope=iaas_scope,
            home=anywhere,
            status=201,
        )
    )
    table.add(
        Operation(
            name="group.change",
            verb="PUT",
            path=GROUPS + "/{group}",
            body=PutGroup,
            result=Shown[SecurityGroup],
            action="segment.write",
            summary="Give a security group other rules",
            run=change_group,
            scope=iaas_scope,
            home=group_home,
            is_one_write=True,
        )
    )
    table.add(
        Operation(
            name="group.delete",
            verb="DELETE",
            path=GROUPS + "/{group}",
            body=NameGroup,
            result=type(None),
            action="segment.write",
            summary="Delete a security group that nothing uses",
            run=delete_group,
            scope=iaas_scope,
            home=group_home,
        )
    )
    table.add(
        Operation(
            name="port.set",
            verb="PUT",
            path="/v1/iaas/{iaas}/vms/{vm}/port",
            body=SetPort,
            result=Shown[Port],
            action="port.write",
            summary="Put a VM's port into security groups, or limit its rate",
            run=set_port,
            scope=iaas_scope,
            home=port_home,
            is_one_write=True,
        )
    )
