"""What is left once an IaaS is taken down: nothing of it, wherever it was made."""

import asyncio

from tests.scenario.api.conversation import Federation
from tests.scenario.api.test_tenant_network import tenant_of

from nuage.iaas.erasure import CopyErased, copy_erased
from nuage.ids import IaasId, NodeId, SiteId, VolumeId
from nuage.model.iaas import PastIaas
from nuage.model.identity import User
from nuage.model.network import SecurityGroup, Segment
from nuage.model.volume import Erasure, ReplicaPlace
from nuage.trust.permissions import Principal

ELSEWHERE = SiteId("rennes")


async def test_an_iaas_takes_what_other_sites_made_for_it_along(federation: Federation) -> None:
    iaas_id = await tenant_of(federation, "acme")
    await federation.settle()
    doors = "/v1/iaas/acme"
    body = {"name": "back", "cidr": "10.9.0.0/24"}
    status, made = await federation.ask("POST", f"{doors}/segments", body, who="acme", at=ELSEWHERE)
    assert (status, made["site"]) == (201, ELSEWHERE)
    group = {"group": "web"}
    await federation.ask("POST", f"{doors}/security-groups", group, who="acme", at=ELSEWHERE)
    user = {
        "name": "ann",
        "secret": "correct horse battery",
        "grants": ["iaas-user@acme", "auditor"],
    }
    status, _ = await federation.ask("POST", "/v1/users", user, at=ELSEWHERE)
    assert status == 201
    await federation.settle()
    assert (await federation.ask("DELETE", doors))[0] in (200, 204)
    await federation.settle()
    for site in federation.sites.values():
        assert not site.index.of_iaas(Segment, iaas_id)
        assert not site.index.of_iaas(SecurityGroup, iaas_id)
        (ann,) = (each for each in site.index.values(User) if each.name == "ann")
        assert [grant.role.value for grant in ann.grants] == ["auditor"]


async def test_who_could_trace_an_iaas_may_prove_its_past_and_nobody_else(
    federation: Federation,
) -> None:
    iaas_id = await tenant_of(federation, "acme")
    await tenant_of(federation, "other")
    await federation.settle()
    user = {"name": "eve", "secret": "correct horse battery", "grants": ["iaas-admin@acme"]}
    assert (await federation.ask("POST", "/v1/users", user, at=ELSEWHERE))[0] == 201
    await federation.settle()
    assert (await federation.ask("DELETE", "/v1/iaas/acme"))[0] in (200, 204)
    await federation.settle()
    site = federation.sites[ELSEWHERE]
    (eve,) = (each for each in site.index.values(User) if each.name == "eve")
    assert eve.grants == ()
    federation.tokens.principals["eve"] = Principal(eve.user_id, "eve", ())
    status, told = await federation.ask("GET", "/v1/deleted-iaas", who="eve", at=ELSEWHERE)
    assert status == 200
    assert [(past["iaas_id"], past["name"]) for past in told["result"]] == [(iaas_id, "acme")]
    check = f"/v1/iaas/{iaas_id}/check"
    assert (await federation.ask("GET", check, who="eve"))[0] != 403
    assert (await federation.ask("GET", check, who="other"))[0] == 403
    _, told = await federation.ask("GET", "/v1/deleted-iaas", who="other")
    assert told["result"] == []
    doors = f"/v1/iaas/{iaas_id}/vms"
    assert (await federation.ask("GET", doors, who="eve"))[0] == 404


async def test_an_iaas_that_could_not_be_taken_down_at_once_still_has_its_auditors(
    federation: Federation,
) -> None:
    """A site that cannot be reached leaves it standing, when the roles of another have gone."""
    iaas_id = await tenant_of(federation, "acme")
    await federation.settle()
    for name, home in (("eve", SiteId("rennes")), ("zoe", SiteId("zurich"))):
        user = {"name": name, "secret": "correct horse battery", "grants": ["iaas-admin@acme"]}
        assert (await federation.ask("POST", "/v1/users", user, at=home))[0] == 201
    await federation.settle()
    federation.wires.cut("lyon", "zurich")
    assert (await federation.ask("DELETE", "/v1/iaas/acme"))[0] in (503, 504)
    _, told = await federation.ask("GET", "/v1/deleted-iaas")
    assert told["result"] == []
    federation.wires.heal()
    await federation.settle()
    assert (await federation.ask("DELETE", "/v1/iaas/acme"))[0] in (200, 204)
    await federation.settle()
    for site in federation.sites.values():
        people = [each for each in site.index.values(User) if each.name in {"eve", "zoe"}]
        (past,) = site.index.values(PastIaas)
        assert past.iaas_id == iaas_id
        assert past.auditors == tuple(sorted(each.user_id for each in people))
        assert [each.grants for each in people] == [(), ()]


async def test_a_segment_goes_once_no_vm_is_in_it(federation: Federation) -> None:
    await tenant_of(federation, "acme")
    await federation.settle()
    doors = "/v1/iaas/acme"
    body = {"name": "back", "cidr": "10.9.0.0/24"}
    await federation.ask("POST", f"{doors}/segments", body, who="acme", at=ELSEWHERE)
    await federation.settle()
    vm = {"name": "web", "image": "guest", "segment": "back"}
    assert (await federation.ask("POST", f"{doors}/vms", vm, who="acme"))[0] == 202
    await federation.settle()
    status, told = await federation.ask("DELETE", f"{doors}/segments/back", who="acme")
    assert (status, told["error"]["message"]) == (409, "segment back is in use by web")
    assert (await federation.ask("DELETE", f"{doors}/segments/back", who="stranger"))[0] == 401
    await federation.ask("DELETE", f"{doors}/vms/web", who="acme")
    await federation.settle()
    assert (await federation.ask("DELETE", f"{doors}/segments/back", who="acme"))[0] == 200
    await federation.settle()
    _, listed = await federation.ask("GET", f"{doors}/segments", who="acme")
    assert [each["value"]["name"] for each in listed["result"]] == ["default"]


async def test_nodes_that_have_erased_at_one_moment_are_both_struck_out(
    federation: Federation,
) -> None:
    site = federation.sites[SiteId("lyon")].site
    places = tuple(
        ReplicaPlace(site_id=SiteId("lyon"), node_id=NodeId(f"io{number}")) for number in range(3)
    )
    volume_id = VolumeId("vol-1")
    await site.save(
        Erasure(
            volume_id=volume_id, iaas_id=IaasId("iaas-1"), name="data", label=0, places=places,
            is_deleted=True, volume_epoch=1,
        )
    )  # fmt: skip
    said = (CopyErased(volume_id=volume_id, node_id=place.node_id) for place in places)
    await asyncio.gather(*(copy_erased(site, each) for each in said))
    assert site.index.find_value(Erasure, volume_id) is None
