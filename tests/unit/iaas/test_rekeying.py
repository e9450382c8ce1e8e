"""Whose data keys are followed by new ones once somebody was revoked, and what those open."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.scenario.api.conversation import Federation
from tests.unit.iaas.iaas_makers import IAAS, MARNE, iaas, node, record, volume

from nuage.errors import Forbidden, Locked
from nuage.iaas.index import FederationIndex
from nuage.iaas.rekeying import KeyWatch, due_generation
from nuage.ids import IaasId, NodeId, SiteId
from nuage.model.iaas import KEY_SHREDDED, IaasKey
from nuage.model.identity import Grant, Role
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.volume import Erasure, ReplicaPlace, Volume
from nuage.trust.datakeys import Keyring, key_id_of
from nuage.trust.shared_secrets import SharedSecrets

SECRETS = SharedSecrets({0: b"shared"})
LYON, RENNES = SiteId("lyon"), SiteId("rennes")
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


@pytest.fixture
async def federation() -> AsyncIterator[Federation]:
    bench = Federation()
    await bench.open()
    yield bench
    await bench.close()


async def test_a_revocation_is_followed_by_a_new_key_and_one_of_a_tenant_is_asked_for(
    federation: Federation,
) -> None:
    ids = []
    for name, tenant_key in (("own", ""), ("held", TENANT_KEY)):
        body = {"name": name, "encrypted": True, "tenant_key": tenant_key}
        status, answer = await federation.ask("POST", "/v1/iaas", body)
        assert status == 201, answer
        ids.append(IaasId(answer["result"]["id"]))
        grants = [Grant(Role.IAAS_ADMIN, iaas_id) for iaas_id in ids]
        federation.tokens.know("tenant", *grants)
        await federation.settle()
        body = {"name": "data", "size_bytes": 64 << 20}
        status, _ = await federation.ask("POST", f"/v1/iaas/{name}/volumes", body, who="tenant")
        assert status == 202
    await federation.settle()
    home, elsewhere = federation.sites[LYON], federation.sites[RENNES]
    told: list[str] = []
    home.site.announce = lambda _kind, _id, what, _text: told.append(what)
    watch = KeyWatch(home.site)
    await watch.look()
    before = [home.index.value(IaasKey, iaas_id) for iaas_id in ids]
    for keeper in {v.head for v in home.index.values(Volume)}:
        distrusted = replace(home.index.value(Node, keeper or ""), revoked_generation=1)
        await federation.sites[distrusted.site_id].site.save(distrusted)
    await federation.settle()
    for _ in range(2):
        await watch.look()
        home.site.keyring.forget(ids[1])  # its controller started anew, say
    await federation.settle()
    own, held = (elsewhere.index.value(IaasKey, iaas_id) for iaas_id in ids)
    assert held == before[1], "nobody here can seal its next one"
    assert told.count("key-known") == 1
    assert (own.earlier != "", own.key_id != before[0].key_id) == (True, True)
    assert len(elsewhere.site.keyring.data_keys(own)) == 2
    body = {"tenant_key": TENANT_KEY}
    status, answer = await federation.ask("POST", "/v1/iaas/held/rekey", body, who="tenant")
    assert status == 200, answer
    assert answer["result"]["silent"] == []
    await federation.settle()
    held = elsewhere.index.value(IaasKey, ids[1])
    assert held.key_id == answer["result"]["key_id"] != before[1].key_id
    assert len(elsewhere.site.keyring.data_keys(held)) == 2, "it was unlocked there with it"
    told.clear()
    await watch.look()
    assert told == [], "once is enough"
