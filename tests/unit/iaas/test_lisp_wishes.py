"""What nodes are told of public addresses: who has which, who may say so, and by which way."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from tests.unit.iaas.iaas_makers import LYON, MARNE, port
from tests.unit.iaas.test_fabric_wishes import edge, index_at, plugged

from nuage.daemon.lisp_gate import outside_of, ruleset
from nuage.errors import InvalidRequest, QuotaExceeded
from nuage.iaas.epochs import FIRST_EPOCH, next_local, next_owner
from nuage.iaas.fabric_keys import FabricKeySet
from nuage.iaas.fabric_wishes import FabricContext, concerned_rbridges, fabric_wish
from nuage.iaas.index import FederationIndex
from nuage.iaas.lisp_wishes import site_key, version_of
from nuage.iaas.public_addresses import free_address, overlap, parse_prefix
from nuage.ids import NodeId, PoolId, PortId
from nuage.model.fabric import LispWish
from nuage.model.network import AddressPool, PublicAddress
from nuage.model.record import Noun
from nuage.model.status import Migration
from nuage.model.vm import VmState
from nuage.network.map_server import version_is_older
from nuage.trust.shared_secrets import SharedSecrets

POOL = AddressPool(pool_id=PoolId("pool-1"), name="public", prefix="203.0.113.0/24")
SECRETS = SharedSecrets({0: b"k" * 32})


def owned(port_number: int | None = 1, last: int = 5) -> PublicAddress:
    return PublicAddress(
        address=f"203.0.113.{last}",
        iaas_id=port(1).iaas_id,
        pool_id=POOL.pool_id,
        port_id=None if port_number is None else PortId(f"port-{port_number}"),
    )


def lisp_of(index: FederationIndex, node_id: str) -> LispWish | None:
    context = FabricContext(index, index.site_id, FabricKeySet(""), SECRETS)
    return fabric_wish(context, NodeId(node_id), 1).lisp


def world(*more: Noun) -> tuple[Noun, ...]:
    return (edge("marne"), edge("lyon"), POOL, *more)


def test_without_a_pool_or_an_edge_nobody_carries_public_addresses() -> None:
    assert lisp_of(index_at(MARNE, edge("marne")), "marne-vnode-1") is None
    assert lisp_of(index_at(MARNE, POOL), "marne-vnode-1") is None


def test_a_node_has_the_addresses_of_its_ports_and_the_key_of_its_site_alone() -> None:
    index = index_at(MARNE, *world(plugged(1, "marne"), port(1), owned(), owned(None, 6)))
    wish = lisp_of(index, "marne-vnode-1")
    assert wish is not None
    (eid,) = wish.eids
    assert (eid.address, eid.port_id, eid.arriving) == ("203.0.113.5", "port-1", False)
    assert wish.site_keys == {MARNE: site_key(SECRETS, MARNE)}
    assert wish.registrable == ()
    assert wish.servers[0][0] == "10.0.0.9"
    assert "site_keys" not in repr(wish), "keys are in no log"


def test_a_sites_key_rolls_with_the_fabrics() -> None:
    index = index_at(MARNE, *world())
    keys = FabricKeySet("", generation=3, accepted=(2, 4))
    wish = fabric_wish(FabricContext(index, MARNE, keys, SECRETS), NodeId("marne-edge-9"), 1).lisp
    assert wish is not None
    sites = (LYON, MARNE)
    assert (wish.key_id, wish.site_keys) == (3, {s: site_key(SECRETS, s, 3) for s in sites})
    assert wish.old_site_keys == {
        old: {s: site_key(SECRETS, s, old) for s in sites} for old in (2, 4)
    }
    assert len({site_key(SECRETS, s, g) for s in sites for g in range(9)}) == 18


def test_an_edge_knows_which_site_may_register_an_address_and_a_move_allows_both() -> None:
    vm = plugged(1, "marne")
    index = index_at(MARNE, *world(vm, port(1), owned(), owned(None, 6)))
    wish = lisp_of(index, "marne-edge-9")
    assert wish is not None
    assert [(r.address, r.sites) for r in wish.registrable] == [("203.0.113.5", (MARNE,))]
    assert set(wish.site_keys) == {MARNE, LYON}
    moving = replace(vm, state=VmState.MIGRATING, migrating_to=NodeId("lyon-vnode-1"))
    wish = lisp_of(index_at(MARNE, *world(moving, port(1), owned())), "marne-edge-9")
    assert wish is not None
    assert wish.registrable[0].sites == (LYON, MARNE)


def test_the_target_of_a_move_gets_the_address_under_the_epoch_to_come() -> None:
    vm = plugged(1, "marne", state=VmState.MIGRATING, migrating_to=NodeId("lyon-vnode-1"))
    arrival = Migration(
        vm_id=vm.vm_id, source_site=MARNE, source_node=NodeId("marne-vnode-1"),
        target_node=NodeId("lyon-vnode-1"), source_epoch=vm.epoch,
        target_epoch=next_owner(vm.epoch),
    )  # fmt: skip
    index = index_at(LYON, *world(vm, port(1), owned(), arrival))
    wish = lisp_of(index, "lyon-vnode-1")
    assert wish is not None
    (eid,) = wish.eids
    assert (eid.version, eid.arriving) == (version_of(next_owner(vm.epoch)), True)


def test_later_owners_have_later_versions_all_around_the_circle() -> None:
    epoch = FIRST_EPOCH
    for _ in range(200):
        later = next_owner(next_local(next_local(epoch)))
        for a, b in ((epoch, next_local(epoch)), (next_local(epoch), later)):
            assert version_is_older(version_of(a), version_of(b))
        epoch = later
    many = FIRST_EPOCH + 5000
    assert version_is_older(version_of(many), version_of(next_owner(many)))


def test_a_public_address_concerns_the_edges_and_the_nodes_of_its_iaas() -> None:
    index = index_at(MARNE, *world(plugged(1, "marne"), port(1), owned()))
    everyone = {"marne-edge-9", "marne-vnode-1"}
    assert concerned_rbridges(index, MARNE, owned()) == everyone
    assert concerned_rbridges(index, MARNE, POOL) == everyone
    assert concerned_rbridges(index, MARNE, plugged(1, "marne")) == everyone


def test_a_port_may_send_from_its_public_address() -> None:
    index = index_at(MARNE, *world(plugged(1, "marne"), port(1), owned()))
    context = FabricContext(index, MARNE, FabricKeySet(""), SECRETS)
    (rules,) = fabric_wish(context, NodeId("marne-vnode-1"), 1).ports
    assert rules.public_addresses == ("203.0.113.5",)


def test_a_pool_gives_its_lowest_free_address_until_it_is_empty() -> None:
    pool = replace(POOL, prefix="203.0.113.8/30")
    assert free_address(pool, set()) == "203.0.113.9"
    assert free_address(pool, {"203.0.113.9"}) == "203.0.113.10"
    with pytest.raises(QuotaExceeded):
        free_address(pool, {"203.0.113.9", "203.0.113.10"})
    wrong = ("203.0.113.8/24", "10.0.0.0/8", "2000::/3", "fe80::/64", "224.0.0.0/24", "ff00::/16")
    for prefix in (*wrong, "2001:db8:77::1/64", "x"):
        with pytest.raises(InvalidRequest):
            parse_prefix(prefix)


def test_a_pool_of_ipv6_is_as_good_and_is_not_counted_through() -> None:
    assert parse_prefix("2001:db8:77::/64") == IPv6Network("2001:db8:77::/64")
    pool = replace(POOL, prefix="2001:db8::/32")
    assert free_address(pool, set()) == "2001:db8::1"
    assert free_address(pool, {"2001:db8::1", "2001:db8::2"}) == "2001:db8::3"
    assert not overlap(IPv6Network("2001:db8::/32"), IPv4Network("0.0.0.0/0"))
    assert overlap(IPv6Network("2001:db8::/32"), IPv6Network("2001:db8:77::/64"))


def test_what_is_outside_of_the_pools_is_all_the_rest() -> None:
    pools = ("203.0.113.0/24", "198.51.100.0/28")
    left = outside_of(pools)
    assert sum(prefix.num_addresses for prefix in left) == 2**32 - 256 - 16
    assert not any(prefix.overlaps(IPv4Network(pool)) for prefix in left for pool in pools)
    assert any(IPv4Address("8.8.8.8") in prefix for prefix in left)
    six = [prefix for prefix in outside_of(("2001:db8:77::/64",)) if prefix.version == 6]
    assert sum(prefix.num_addresses for prefix in six) == 2**128 - 2**64
    assert not any(prefix.version == 6 for prefix in left), "nobody has an address to send from"


def test_no_guest_reaches_the_sites_network_by_the_gate() -> None:
    rules = ruleset(("203.0.113.0/24",), ("wan1", "wan2"))
    assert 'iifname "nlisp0" oifname != { "wan1", "wan2" } drop' in rules
    assert 'iifname "nlisp0" ip saddr != { 203.0.113.0/24 } drop' in rules
    assert 'iifname "nlisp0" meta nfproto ipv6 drop' in rules, "no pool of that family"
    both = ruleset(("203.0.113.0/24", "2001:db8:77::/64"), ("wan1",))
    assert 'iifname "nlisp0" ip6 saddr != { 2001:db8:77::/64 } drop' in both
    for family in ("ipv4", "ipv6"):
        assert f'iifname "nlisp0" meta nfproto {family} drop' in ruleset((), ())
