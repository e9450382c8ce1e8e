"""Which data keys are due once somebody was revoked, and what those that follow open."""

from dataclasses import replace

import pytest
from tests.unit.iaas.iaas_makers import IAAS, MARNE, iaas, node, record, volume

from nuage.errors import Forbidden, Locked
from nuage.iaas.index import FederationIndex
from nuage.iaas.rekeying import due_generation
from nuage.ids import NodeId
from nuage.model.iaas import KEY_SHREDDED
from nuage.model.infrastructure import NodeRole
from nuage.model.volume import Erasure, ReplicaPlace
from nuage.trust.datakeys import Keyring, key_id_of
from nuage.trust.shared_secrets import SharedSecrets

SECRETS = SharedSecrets({0: b"shared"})
TENANT_KEY = "5a" * 32
KEEPER = NodeId("marne-ionode-1")


def index_with(generation: int) -> FederationIndex:
    index = FederationIndex(MARNE)
    keeper = replace(node("marne", NodeRole.IONODE), revoked_generation=generation)
    stranger = replace(node("marne", NodeRole.IONODE, 2), revoked_generation=9)
    for value in (iaas(), keeper, stranger, volume(1, places=(("marne", KEEPER),))):
        index.put(record(value))
    return index


def test_a_key_is_followed_when_who_kept_its_copies_was_revoked_since_it_was_made() -> None:
    key = Keyring(SECRETS).make(IAAS, generation=3)
    assert due_generation(index_with(0), key, 0) is None, "another's node was"
    assert due_generation(index_with(3), key, 0) is None
    assert due_generation(index_with(4), key, 0) == 4
    assert due_generation(index_with(0), key, 4) == 4, "a datacenter could unseal every key"
    assert due_generation(index_with(4), replace(key, key_id=KEY_SHREDDED), 4) is None


def test_a_node_that_is_still_to_erase_its_copy_counts_too() -> None:
    index = index_with(4)
    key = Keyring(SECRETS).make(IAAS, generation=3)
    place = ReplicaPlace(node_id=KEEPER, site_id=MARNE)
    moved = volume(1, places=(("marne", "elsewhere"),))
    index.put(record(moved, revision=2))
    assert due_generation(index, key, 0) is None
    erasure = Erasure(
        volume_id=moved.volume_id, iaas_id=IAAS, name="disk", label=1, places=(place,),
        is_deleted=False,
    )  # fmt: skip
    index.put(record(erasure))
    assert due_generation(index, key, 0) == 4


def test_the_next_key_opens_those_before_it_and_they_do_not_open_it() -> None:
    ring = Keyring(SECRETS)
    first = ring.make(IAAS)
    second = ring.make_next(first, generation=1)
    third = ring.make_next(second, generation=2)
    assert third.generation == 2
    (oldest,) = Keyring(SECRETS).data_keys(first)
    keys = Keyring(SECRETS).data_keys(third)
    assert [key_id_of(key) for key in keys] == [third.key_id, second.key_id, first.key_id]
    assert keys[2] == oldest
    for key in keys:
        assert key.hex() not in third.sealed + third.earlier
    with pytest.raises(Locked):
        ring.make_next(replace(third, key_id=KEY_SHREDDED, sealed="", earlier=""), generation=3)


def test_only_the_tenants_key_makes_the_next_of_a_tenants_and_opens_it_elsewhere() -> None:
    ring, other = Keyring(SECRETS), Keyring(SECRETS)
    first = ring.make(IAAS, TENANT_KEY)
    other.unlock(first, TENANT_KEY)
    with pytest.raises(Forbidden):
        ring.make_next(first, "00" * 32, generation=1)
    second = ring.make_next(first, TENANT_KEY, generation=1)
    assert other.data_keys(second) == (), "it has only the one before"
    other.unlock(second, TENANT_KEY)
    assert other.data_keys(second) == ring.data_keys(second)
    assert len(other.data_keys(second)) == 2
