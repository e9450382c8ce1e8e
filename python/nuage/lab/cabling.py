"""Which namespaces, cables, addresses and routes a lab needs: pure, as lines for `ip -batch`.

The topology of a site::

    outside ── isp1 (the first provider): a host that is nobody's

    isp1 ──────┐            each ─ is a veth pair, shaped at both ends by tc tbf
    isp2 ───┐  │
           wan2 wan1
           [edge] eth0 ──┐
    [vnode] eth0 ────────┤ br0 ┐
    [ionode] eth0 ───────┤     │ [switch] routes between the two, and nowhere else
    [controller] eth0 ───┘     │
    [bmc] eth0 ────────── brm ─┘

Of two edges each has a line of its own to each provider. Nodes send to the rack switch then, which
sends on to the first edge that has power, as two routers with VRRP would take it.

A node's namespace and cables exist while the node has its power: a power cycle empties the
kernel's network state as it does in a machine, and its neighbours see the link go down.
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from nuage.lab import addresses as at
from nuage.lab.description import (
    EDGES_MAX,
    SITES_MAX,
    LabDescription,
    NodeDescription,
    PduDescription,
)
from nuage.model.infrastructure import NodeRole

BURST_BYTES_MIN: Final = 128 * 1024  # two GSO packets
BURST_SHARE_S: Final = 0.008  # tbf refills at least this often at 125 Hz and faster
ROUTE_TABLE_OF_PROVIDER: Final = 100  # + provider number
OUTSIDE_PORT: Final = "outside"
ROUTE_TABLE_OF_OWN_LINES: Final = 50  # what a provider delivers for another
ROUTE_TABLE_OF_EDGES: Final = 60  # of a rack switch: what nodes send elsewhere
RULE_OF_EDGES: Final = 33_000  # behind the main table, which knows what is near


@dataclass(slots=True)
class CablePlan:
    """What to run, in this order: namespaces, cables, then each namespace's own lines."""

    namespaces: list[str] = field(default_factory=list)
    forwarding: set[str] = field(default_factory=set)
    cables: list[str] = field(default_factory=list)
    ip_lines: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    tc_lines: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def fabric_plan(lab: LabDescription) -> CablePlan:
    """Return what is there whether nodes have power or not: switches, BMC networks, providers."""
    plan = CablePlan()
    for site_number, site in enumerate(lab.sites, start=1):
        _switch(plan, lab, site.id, site_number)
    for number, provider in enumerate(lab.providers, start=1):
        namespace = at.namespace(lab.name, provider)
        plan.namespaces.append(namespace)
        plan.forwarding.add(namespace)
        plan.ip_lines[namespace].append("link set lo up")
        _routes_between_providers(plan, lab, number)
    _outside(plan, lab)
    for left, right in itertools.combinations(range(1, len(lab.providers) + 1), 2):
        _peering(plan, lab, left, right)
    return plan


def node_plan(lab: LabDescription, node: NodeDescription) -> CablePlan:
    """Return what a node needs when it gets its power."""
    plan = CablePlan()
    namespace = at.namespace(lab.name, node.name)
    switch = at.namespace(lab.name, at.switch_name(node.site))
    plan.namespaces.append(namespace)
    port = node_port(node)
    mac = at.mac_address(lab, node.site_number, node.host)
    plan.cables.append(_cable(lab, (namespace, "eth0", mac), (switch, port)))
    plan.ip_lines[switch] += [f"link set {port} master br0 up"]
    lines = plan.ip_lines[namespace]
    lines += [
        "link set lo up",
        f"addr add {at.address(lab, node)}/24 dev eth0",
        "link set eth0 up",
        f"route replace {at.management_subnet(lab, node.site_number)}"
        f" via 10.{lab.number}.{node.site_number}.{at.SWITCH_HOST}",
    ]
    for name, where in (("eth0", namespace), (port, switch)):
        _shape(plan, where, name, lab.links.node_mbit)
    edges = lab.edges(node.site)
    if node.role is NodeRole.EDGE:
        plan.forwarding.add(namespace)
        for provider in range(1, len(lab.providers) + 1):
            _wan(plan, lab, node, provider)
        if len(edges) > 1:
            plan.ip_lines[switch].append(
                f"route replace default via {at.address(lab, node)} dev br0 metric {node.host}"
                f" table {ROUTE_TABLE_OF_EDGES}"
            )
    else:
        gateway = 1 if len(edges) == 1 else at.SWITCH_HOST
        lines.append(f"route replace default via 10.{lab.number}.{node.site_number}.{gateway}")
    return plan


def lines_without(lab: LabDescription, node: NodeDescription) -> dict[str, list[str]]:
    """Return what other namespaces forget of a node that loses its power."""
    if node.role is not NodeRole.EDGE or len(lab.edges(node.site)) == 1:
        return {}
    switch = at.namespace(lab.name, at.switch_name(node.site))
    return {switch: [f"route flush table {ROUTE_TABLE_OF_EDGES} via {at.address(lab, node)}"]}


def far_ends(lab: LabDescription, node: NodeDescription) -> dict[str, str]:
    """Return the ports at which a node's cables end, by namespace: its switch, its providers."""
    ends = {at.namespace(lab.name, at.switch_name(node.site)): node_port(node)}
    if node.role is NodeRole.EDGE:
        port = wan_port(node)
        ends |= {at.namespace(lab.name, provider): port for provider in lab.providers}
    return ends


def node_port(node: NodeDescription) -> str:
    """Return the name, at the switch, of its cable to a node."""
    return f"p{node.host}"


def _cable(
    lab: LabDescription, end: tuple[str, str, str], other: tuple[str, str], *, mtu_bytes: int = 0
) -> str:
    namespace, name, mac = end
    mtu_bytes = mtu_bytes or lab.links.mtu_bytes
    return (
        f"link add name {name} address {mac} mtu {mtu_bytes} netns {namespace}"
        f" type veth peer name {other[1]} mtu {mtu_bytes} netns {other[0]}"
    )


def _shape(plan: CablePlan, namespace: str, name: str, mbit: int) -> None:
    if mbit:
        burst_bytes = max(BURST_BYTES_MIN, int(mbit * 125_000 * BURST_SHARE_S))
        plan.tc_lines[namespace].append(
            f"qdisc replace dev {name} root tbf rate {mbit}mbit burst {burst_bytes} latency 50ms"
        )


def _switch(plan: CablePlan, lab: LabDescription, site: str, site_number: int) -> None:
    switch = at.namespace(lab.name, at.switch_name(site))
    bmc = at.namespace(lab.name, at.bmc_name(site))
    plan.namespaces += [switch, bmc]
    plan.forwarding.add(switch)
    mac = at.mac_address(lab, site_number, at.SWITCH_HOST, 1)
    plan.cables.append(_cable(lab, (bmc, "eth0", mac), (switch, "bmc")))
    bridge_macs = [at.mac_address(lab, site_number, at.SWITCH_HOST, port) for port in (2, 3)]
    gateway = f"10.{lab.number}.{100 + site_number}.{at.SWITCH_HOST}"
    plan.ip_lines[switch] += [
        "link set lo up",
        # MACs of their own: a bridge without one takes a port's, and changes it when that
        # node's power goes, which leaves every neighbour with a wrong address for a while.
        f"link add name br0 address {bridge_macs[0]} mtu {lab.links.mtu_bytes} type bridge",
        f"link add name brm address {bridge_macs[1]} type bridge",
        f"addr add 10.{lab.number}.{site_number}.{at.SWITCH_HOST}/24 dev br0",
        f"addr add {gateway}/24 dev brm",
        "link set br0 up",
        "link set brm up",
        "link set bmc master brm up",
        f"rule add iif br0 lookup {ROUTE_TABLE_OF_EDGES} priority {RULE_OF_EDGES}",
    ]
    devices: list[NodeDescription | PduDescription] = [*lab.nodes(), *lab.pdus()]
    devices = [device for device in devices if device.site == site]
    plan.ip_lines[bmc] += [
        "link set lo up",
        *(f"addr add {at.bmc_address(lab, device)}/24 dev eth0" for device in devices),
        "link set eth0 up",
        f"route replace default via {gateway}",
    ]


def wan_port(edge: NodeDescription) -> str:
    """Return the name, at the provider's, of its line to an edge."""
    return f"s{edge.site_number}" + ("" if edge.host == 1 else f"e{edge.host}")


def wan_lines(lab: LabDescription, node: NodeDescription, provider: int) -> list[str]:
    """Return the provider's own lines of `ip` for its line to an edge (again after a cut)."""
    site_number, number = node.site_number, node.host
    ours, edge = at.wan_addresses(lab, site_number, provider, number)
    port = wan_port(node)
    line = f"{ours.rpartition('.')[0]}.{4 * site_number}/30"
    rank = SITES_MAX * (number - 1) + site_number
    return [
        f"addr replace {ours}/30 dev {port}",
        f"link set {port} up",
        f"route replace {at.site_subnet(lab, site_number)} via {edge} dev {port}"
        f" metric {9 + number}",
        # For another provider's traffic, from table 50: down an own line or not at all, never
        # back to a provider, or two providers would play ping-pong with a dead site's packets.
        f"route replace {line} dev {port} table {ROUTE_TABLE_OF_OWN_LINES}",
        f"route replace {at.site_subnet(lab, site_number)} via {edge} dev {port}"
        f" metric {9 + number} table {ROUTE_TABLE_OF_OWN_LINES}",
        # Every edge takes public addresses; the next one does when this line is dead.
        f"route replace {at.public_prefix(lab)} via {edge} dev {port} metric {100 + rank}",
    ]


def _wan(plan: CablePlan, lab: LabDescription, node: NodeDescription, provider: int) -> None:
    edge_namespace = at.namespace(lab.name, node.name)
    isp = at.namespace(lab.name, lab.providers[provider - 1])
    port, wan = wan_port(node), f"wan{provider}"
    theirs, ours = at.wan_addresses(lab, node.site_number, provider, node.host)
    mac = at.mac_address(lab, node.site_number, node.host, provider)
    line_bytes = lab.links.wan_mtu_bytes
    plan.cables.append(_cable(lab, (edge_namespace, wan, mac), (isp, port), mtu_bytes=line_bytes))
    plan.ip_lines[isp] += wan_lines(lab, node, provider)
    table = ROUTE_TABLE_OF_PROVIDER + provider
    lines = [
        f"addr add {ours}/30 dev {wan}",
        f"link set {wan} up",
        f"route replace default via {theirs} dev {wan} metric {10 * provider}",
        *(
            f"route replace {at.wan_prefix(lab, provider, edge)} via {theirs} dev {wan} metric 5"
            for edge in range(1, EDGES_MAX + 1)
        ),
        # What leaves with this line's address leaves by this line: both stay usable apart.
        f"route replace default via {theirs} dev {wan} table {table}",
        f"rule add from {ours} lookup {table} priority {table}",
    ]
    plan.ip_lines[edge_namespace] += lines
    for name, where in ((wan, edge_namespace), (port, isp)):
        _shape(plan, where, name, lab.links.wan_mbit)


def _peering(plan: CablePlan, lab: LabDescription, left: int, right: int) -> None:
    names = [at.namespace(lab.name, lab.providers[number - 1]) for number in (left, right)]
    mac = at.mac_address(lab, 0, left, right)
    plan.cables.append(_cable(lab, (names[0], f"x{right}", mac), (names[1], f"x{left}")))
    ends = at.peering_addresses(lab, left, right)
    for namespace, port, address in zip(names, (f"x{right}", f"x{left}"), ends, strict=True):
        plan.ip_lines[namespace][1:1] = [f"addr add {address}/30 dev {port}", f"link set {port} up"]


def _outside(plan: CablePlan, lab: LabDescription) -> None:
    """A host on the internet, behind the first provider."""
    host, isp = (at.namespace(lab.name, name) for name in (at.OUTSIDE, lab.providers[0]))
    theirs, ours = at.outside_addresses(lab)
    plan.namespaces.append(host)
    mac = at.mac_address(lab, 0, 0, 1)
    plan.cables.append(_cable(lab, (host, "eth0", mac), (isp, OUTSIDE_PORT)))
    plan.ip_lines[isp] += [
        f"addr add {theirs}/30 dev {OUTSIDE_PORT}",
        f"link set {OUTSIDE_PORT} up",
        f"route replace {theirs.removesuffix('1')}0/30 dev {OUTSIDE_PORT}"
        f" table {ROUTE_TABLE_OF_OWN_LINES}",
    ]
    plan.ip_lines[host] += [
        "link set lo up",
        f"addr add {ours}/30 dev eth0",
        "link set eth0 up",
        f"route replace default via {theirs}",
    ]


def _routes_between_providers(plan: CablePlan, lab: LabDescription, provider: int) -> None:
    """Give a provider ways through the others: to their lines, and to sites as second choice."""
    namespace = at.namespace(lab.name, lab.providers[provider - 1])
    for other in range(1, len(lab.providers) + 1):
        if other == provider:
            continue
        pair = at.peering_addresses(lab, min(provider, other), max(provider, other))
        via = pair[1] if other > provider else pair[0]
        plan.ip_lines[namespace] += [
            *(
                f"route replace {at.wan_prefix(lab, other, edge)} via {via}"
                for edge in range(1, EDGES_MAX + 1)
            ),
            *([f"route replace 10.{lab.number}.238.0/30 via {via}"] if other == 1 else []),
            f"rule add iif x{other} lookup {ROUTE_TABLE_OF_OWN_LINES}"
            f" priority {ROUTE_TABLE_OF_OWN_LINES}",
            f"route replace unreachable default table {ROUTE_TABLE_OF_OWN_LINES}",
        ]
        plan.ip_lines[namespace] += [
            f"route replace {at.site_subnet(lab, site_number)} via {via} metric {20 + other}"
            for site_number in range(1, len(lab.sites) + 1)
        ]


def cut_ruleset(lab: LabDescription, provider: int, cuts: "frozenset[Cut]") -> str:
    """Return the nftables ruleset of a provider that swallows what crosses the silent cuts."""
    lines = ["table inet cuts", "delete table inet cuts", "table inet cuts {"]
    drops: list[str] = []
    for cut in sorted(cuts):
        if cut.how != "blackhole" or cut.provider not in (0, provider):
            continue
        if cut.other:
            left, right = (_networks(lab, site) for site in (cut.site, cut.other))
            drops += [
                f"ip saddr {{ {left} }} ip daddr {{ {right} }} drop",
                f"ip saddr {{ {right} }} ip daddr {{ {left} }} drop",
            ]
        else:
            ports = [wan_port(edge) for edge in lab.edges(cut.site)]
            drops += [f'{way} "{port}" drop' for port in ports for way in ("iifname", "oifname")]
    for chain in ("input", "forward", "output"):
        hook = f"type filter hook {chain} priority 0; policy accept;"
        lines += [f"chain {chain} {{ {hook}", *_fitting(chain, drops), "}"]
    lines.append("}")
    return "\n".join(lines) + "\n"


def _fitting(chain: str, drops: list[str]) -> list[str]:
    """Return the rules that a chain may hold: input knows no way out, output no way in."""
    unfit = {"input": "oifname", "output": "iifname"}.get(chain, "\0")
    return [rule for rule in drops if not rule.startswith(unfit)]


def _networks(lab: LabDescription, site: str) -> str:
    number = lab.site_number(site)
    lines = [
        at.wan_addresses(lab, number, each, edge.host)[1]
        for edge in lab.edges(site)
        for each in range(1, len(lab.providers) + 1)
    ]
    return ", ".join([at.site_subnet(lab, number), *lines])


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """A cut in force. `provider` 0 means all; `other` names the far site of a cut pair.

    `how` is ``carrier`` (the line is dead and both ends see it) or ``blackhole`` (the line
    looks well and delivers nothing).
    """

    site: str
    other: str = ""
    provider: int = 0
    how: str = "blackhole"

    def words(self) -> str:
        """Return the cut as a person says it."""
        lines = f"line {self.provider}" if self.provider else "all lines"
        towards = f" to {self.other}" if self.other else ""
        what = "dead" if self.how == "carrier" else "silently swallowing"
        return f"{lines} of {self.site}{towards} {what}"
