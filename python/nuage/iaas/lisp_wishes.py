"""Records → what each node does for public addresses (LISP). Pure, as all of `fabric_wishes`.

V-nodes are told which addresses their ports have, edges which site may register which address.
A site may register an address while its VM is there or on its way there: so a node that is taken
over can draw the addresses of its own site only.
"""

import hmac
from typing import Final

from nuage.iaas.epochs import EPOCH_STEP, quorum_part
from nuage.iaas.fabric_keys import FabricKeySet
from nuage.iaas.index import FederationIndex
from nuage.ids import NodeId, SiteId
from nuage.model.fabric import EidWish, LispWish, ProxyWish, RegistrableWish
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.network import AddressPool, Port, PublicAddress
from nuage.model.status import Migration
from nuage.model.vm import Vm
from nuage.trust.shared_secrets import SharedSecrets

LOCAL_STEPS: Final = 64  # of a map-version between two owners; more moves inside a site stay equal
VERSIONS: Final = 4095  # 12 bits on a circle; 0 says nothing (RFC 9302)
OWN_PROXY: Final = 1
FOREIGN_PROXY: Final = 2
KEY_IDS: Final = 256  # RFC 9301 §5.6: eight bits


def site_key(secrets: SharedSecrets, site_id: SiteId, generation: int = 0) -> str:
    """Return a site's key for its registers, in hexadecimal, of a generation (`fabric_keys`)."""
    key = hmac.digest(secrets.of(generation), b"fabric:lisp", "sha256")
    label = site_id + (f":{generation}" if generation else "")  # no site's id has a colon
    return hmac.digest(key, label.encode(), "sha256").hex()


def version_of(epoch: int) -> int:
    """Return the map-version of an epoch: 1 to 4095, later on the circle for later owners."""
    local = min(epoch % EPOCH_STEP, LOCAL_STEPS - 1)
    return (quorum_part(epoch) * LOCAL_STEPS + local) % VERSIONS + 1


def lisp_wish(
    index: FederationIndex,
    node: Node,
    local: list[Vm],
    secrets: SharedSecrets,
    keys: FabricKeySet,
) -> LispWish | None:
    """Return a node's part in carrying public addresses; None while there are none."""
    pools = sorted(pool.prefix for pool in index.values(AddressPool))
    edges = sorted(
        (n for n in index.values(Node) if NodeRole.EDGE in n.roles and n.address),
        key=lambda n: (n.site_id != node.site_id, n.node_id),
    )
    if not pools or not edges:
        return None
    is_edge = NodeRole.EDGE in node.roles
    sites = {n.site_id for n in index.values(Node)} if is_edge else {node.site_id}
    return LispWish(
        servers=tuple((edge.address, *(line.address for line in edge.lines)) for edge in edges),
        proxies=tuple(
            ProxyWish(
                address=edge.address,
                priority=OWN_PROXY if edge.site_id == node.site_id else FOREIGN_PROXY,
            )
            for edge in edges
        ),
        lines=tuple(
            line.address for edge in edges if edge.site_id == node.site_id for line in edge.lines
        ),
        pools=tuple(pools),
        eids=tuple(eid for vm in local for eid in _eids(index, vm, node.node_id)),
        registrable=_registrable(index) if is_edge else (),
        site_keys={s: site_key(secrets, s, keys.generation) for s in sorted(sites)},
        key_id=keys.generation % KEY_IDS,
        old_site_keys={
            old % KEY_IDS: {s: site_key(secrets, s, old) for s in sorted(sites)}
            for old in keys.accepted
        },
    )


def _eids(index: FederationIndex, vm: Vm, node_id: NodeId) -> list[EidWish]:
    arrival = index.find_value(Migration, vm.vm_id)
    comes = arrival is not None and arrival.target_node == node_id and vm.node_id != node_id
    epoch = arrival.target_epoch if arrival is not None and comes else vm.epoch
    return [
        EidWish(
            address=each.address,
            port_id=each.port_id,
            version=version_of(epoch),
            arriving=comes,
        )
        for each in index.of_iaas(PublicAddress, vm.iaas_id)
        if each.port_id is not None and each.port_id in vm.ports
    ]


def _registrable(index: FederationIndex) -> tuple[RegistrableWish, ...]:
    found = []
    for each in index.values(PublicAddress):
        port = None if each.port_id is None else index.find_value(Port, each.port_id)
        vm = None if port is None or port.vm_id is None else index.find_value(Vm, port.vm_id)
        if vm is None:
            continue
        target = None if vm.migrating_to is None else index.find_value(Node, vm.migrating_to)
        sites = {vm.site_id, None if target is None else target.site_id} - {None}
        found.append(
            RegistrableWish(
                address=each.address,
                sites=tuple(sorted(site_id for site_id in sites if site_id is not None)),
            )
        )
    return tuple(sorted(found, key=lambda wish: wish.address))
