"""What is left once an IaaS is taken down: nothing of it, wherever it was made."""

from tests.scenario.api.conversation import Federation
from tests.scenario.api.test_tenant_network import tenant_of

from nuage.ids import SiteId
from nuage.model.identity import User
from nuage.model.network import SecurityGroup, Segment

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
