"""What a tenant meets at the door of its network: groups, segments, and whose events it reads."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp.test_utils import TestClient, TestServer
from tests.scenario.api.conversation import Federation, NoFiles

from nuage.api.consoles import Consoles
from nuage.api.events import EventRing
from nuage.api.http import Doors, build_application
from nuage.errors import Conflict, NotFound
from nuage.iaas.fabric import AskPath, find_path, vm_meant
from nuage.iaas.site import Nodes
from nuage.ids import IaasId, SiteId, UserId
from nuage.model.fabric import PathAnswer
from nuage.model.identity import Grant, Role
from nuage.model.network import Port
from nuage.model.vm import Vm, VmState
from nuage.trust.permissions import Principal

CONTRACT = {"data_countries": ["FR"], "copies": 1, "copy_sites": 1, "ack_policy": "local"}


async def tenant_of(federation: Federation, name: str) -> IaasId:
    """Build an IaaS and let `name` administer it."""
    _, answer = await federation.ask("POST", "/v1/iaas", {"name": name, "contract": CONTRACT})
    iaas_id = IaasId(answer["result"]["id"])
    federation.tokens.know(name, Grant(Role.IAAS_ADMIN, iaas_id))
    return iaas_id


async def test_a_new_groups_rule_may_name_the_group_itself(federation: Federation) -> None:
    await tenant_of(federation, "acme")
    groups = "/v1/iaas/acme/security-groups"
    body = {"group": "web", "rules": [{"remote_group": "web"}]}
    status, answer = await federation.ask("POST", groups, body, who="acme")
    assert status == 201, answer
    group = answer["result"]["value"]
    assert [rule["remote_group"] for rule in group["rules"]] == [group["group_id"]]
    body = {"group": "db", "rules": [{"remote_group": "nosuch"}]}
    assert (await federation.ask("POST", groups, body, who="acme"))[0] == 404


async def test_a_segment_of_addresses_that_no_host_can_have_is_refused(
    federation: Federation,
) -> None:
    await tenant_of(federation, "acme")
    for cidr in ("127.0.0.0/24", "224.0.0.0/24", "169.254.0.0/16", "0.0.0.0/0", "2001:db8::/64"):
        body = {"name": "odd", "cidr": cidr}
        status, answer = await federation.ask("POST", "/v1/iaas/acme/segments", body, who="acme")
        assert (status, answer["error"]["field"]) == (400, "cidr"), answer


async def test_an_address_of_the_segment_means_the_vm_that_has_it(federation: Federation) -> None:
    await tenant_of(federation, "acme")
    await federation.settle()
    vm = {"name": "web", "image": "guest", "site": "lyon"}
    assert (await federation.ask("POST", "/v1/iaas/acme/vms", vm, who="acme"))[0] == 202
    await federation.settle()
    index = federation.sites[SiteId("lyon")].index
    (port,) = (each for each in index.values(Port) if each.vm_id is not None)
    own, free = port.addresses[0].split("/")[0], "10.0.15.200"
    site, source = federation.sites[SiteId("lyon")].site, index.named(Vm, "web", port.iaas_id)

    def meant(destination: str) -> Vm | None:
        return vm_meant(site, AskPath(iaas="acme", source="web", destination=destination), source)

    assert meant(own) == meant("web") == source
    assert meant("203.0.113.9") is None
    with pytest.raises(NotFound, match=free):
        meant(free)
    with pytest.raises(Conflict, match="is the gateway of default: the node of web itself is"):
        meant("10.0.0.1")


async def test_a_way_says_what_keeps_frames_from_being_answered(federation: Federation) -> None:
    """A machine that is off, groups at both ends, and no address to leave the segment with."""
    await tenant_of(federation, "acme")
    await federation.settle()
    for name in ("web", "db"):
        vm = {"name": name, "image": "guest", "site": "lyon"}
        assert (await federation.ask("POST", "/v1/iaas/acme/vms", vm, who="acme"))[0] == 202
    await federation.settle()
    site = federation.sites[SiteId("lyon")].site

    async def notes(destination: str = "db") -> tuple[str, ...]:
        body = AskPath(iaas="acme", source="web", destination=destination)
        return (await find_path(site, Principal(UserId("acme"), "acme", ()), body)).notes

    async def known(*_asked: object, **_limits: object) -> PathAnswer:
        return PathAnswer(reason="the directory says: on this node")

    site.nodes = cast(Nodes, SimpleNamespace(ask=known))
    assert await notes() == ()
    vm_id = site.index.named(Vm, "db", site.index.iaas_named("acme").iaas_id).vm_id
    await site.save(replace(site.index.value(Vm, vm_id), state=VmState.STOPPED))
    assert await notes() == ("db is stopped",)

    for group, rules in (
        ("sql", [{"protocol": "tcp", "port_first": 5432, "port_last": 5432}]),
        ("shy", [{"ingress": False, "protocol": "udp", "remote": "192.0.2.0/24"}]),
    ):
        body = {"group": group, "rules": rules}
        await federation.ask("POST", "/v1/iaas/acme/security-groups", body, who="acme")
    await federation.settle()
    for name, group in (("db", "sql"), ("web", "shy")):
        path = f"/v1/iaas/acme/vms/{name}/port"
        status, told = await federation.ask("PUT", path, {"groups": [group]}, who="acme")
        assert status == 200, told
    await federation.settle()
    assert await notes() == (
        "web's groups let out to there: nothing but answers",
        "db's groups let in from there: tcp:5432, and answers",
    )
    (note,) = await notes("203.0.113.9")
    assert note.startswith("web has no public IPv4 address")


async def test_a_group_in_use_names_the_vms_whose_ports_are_in_it(federation: Federation) -> None:
    await tenant_of(federation, "acme")
    await federation.settle()
    groups = "/v1/iaas/acme/security-groups"
    assert (await federation.ask("POST", groups, {"group": "let-in"}, who="acme"))[0] == 201
    vm = {"name": "web", "image": "guest"}
    assert (await federation.ask("POST", "/v1/iaas/acme/vms", vm, who="acme"))[0] == 202
    await federation.settle()
    port = {"groups": ["let-in"]}
    assert (await federation.ask("PUT", "/v1/iaas/acme/vms/web/port", port, who="acme"))[0] == 200
    await federation.settle()
    status, answer = await federation.ask("DELETE", f"{groups}/let-in", who="acme")
    assert status == 409
    assert answer["error"]["message"] == "security group let-in is in use by web"


async def test_the_door_of_events_shows_a_tenant_its_own_lines(federation: Federation) -> None:
    acme, rival = await tenant_of(federation, "acme"), await tenant_of(federation, "rival")
    site = federation.sites[SiteId("lyon")]
    ring = EventRing(site.site_id, site.clock)
    for number, owner in enumerate((acme, rival, acme)):
        ring.announce("vm", f"vm-{number}", "created", "", "", owner)
    doors = Doors(
        site=site.site, dispatcher=site.dispatcher, issuer=federation.tokens, images=NoFiles(),
        consoles=Consoles(site.site, site.dispatcher), events=ring, audit=NoFiles(),
        metrics=lambda: b"",
    )  # fmt: skip
    async with TestClient(TestServer(build_application(doors))) as client:
        for who, shown in (
            ("acme", ["vm-0", "vm-2"]), ("rival", ["vm-1"]), ("admin", ["vm-0", "vm-1", "vm-2"]),
        ):  # fmt: skip
            headers = {"Authorization": f"Bearer {who}"}
            answer = await client.get("/v1/events?last=9&follow=0", headers=headers)
            assert [line["id"] for line in (await answer.json())["result"]] == shown
