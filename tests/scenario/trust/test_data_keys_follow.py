"""Somebody who could know data keys is revoked: new keys follow, or are asked of their holder."""

from dataclasses import replace

from tests.scenario.api.conversation import Federation

from nuage.iaas.rekeying import KeyWatch
from nuage.ids import IaasId, SiteId
from nuage.model.iaas import IaasKey
from nuage.model.identity import Grant, Role
from nuage.model.infrastructure import Node
from nuage.model.volume import Volume

LYON, RENNES = SiteId("lyon"), SiteId("rennes")
TENANT_KEY = "5a" * 32


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
