"""What the API says, word for word (`*.txt` here; `pytest --rewrite` writes them anew)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.api.conversation import Federation, compare

from nuage.api.http import BODY_BYTES_MAX
from nuage.daemon.fencing import Machines, Outlets
from nuage.facility.memory import MemoryNode, MemoryOutlet, MemoryPdu
from nuage.facility.ports import BootDevice, PowerControl, PowerState, RackPdu
from nuage.ids import SiteId
from nuage.model.identity import Grant, Role
from nuage.model.infrastructure import Node
from nuage.model.volume import Volume, VolumeState

HERE = Path(__file__).parent
FRENCH = {"data_countries": ["FR"], "copies": 2, "copy_sites": 2, "ack_policy": "all"}


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite"))


async def build(federation: Federation, contract: object = None) -> str:
    """Build an IaaS and its administrator; return its id."""
    body = {"name": "acme", "contract": contract or FRENCH}
    status, answer = await federation.ask("POST", "/v1/iaas", body)
    assert status == 201, answer
    iaas_id: str = answer["result"]["id"]
    federation.tokens.know("tenant", Grant(Role.IAAS_ADMIN, iaas_id))
    federation.tokens.know("user", Grant(Role.IAAS_USER, iaas_id))
    federation.tokens.know("stranger", Grant(Role.IAAS_ADMIN, "iaas-of-others"))
    await federation.settle()
    return iaas_id


async def test_a_machine_from_contract_to_deletion(
    federation: Federation, *, rewrite: bool
) -> None:
    await build(federation)
    vms = "/v1/iaas/acme/vms"
    status, made = await federation.ask(
        "POST", vms, {"name": "web", "image": "guest", "site": "rennes"}, who="tenant"
    )
    assert status == 202, made
    await federation.settle()
    status, shown = await federation.ask("GET", f"{vms}/web", who="user")
    assert shown["result"]["value"]["state"] == "running", shown
    assert shown["result"]["site"] == "rennes"
    await federation.ask("GET", f"{vms}/web/decision", who="auditor")
    status, stopped = await federation.ask("POST", f"{vms}/web/stop", who="user")
    assert (status, stopped["site"]) == (202, "rennes")
    await federation.settle()
    await federation.ask("GET", "/v1/iaas/acme/quota", who="tenant")
    await federation.ask("DELETE", f"{vms}/web", who="user")
    await federation.settle()
    status, left = await federation.ask("GET", vms, who="user")
    assert left["result"] == []
    _, volumes = await federation.ask("GET", "/v1/iaas/acme/volumes", who="user")
    assert volumes["result"] == []
    compare(HERE / "machine.txt", federation.talk.lines, rewrite=rewrite)


async def test_a_machine_grows_no_further_than_its_node_has_room(federation: Federation) -> None:
    await build(federation)
    vms = "/v1/iaas/acme/vms"
    for name in ("web", "db"):
        body = {"name": name, "image": "guest", "site": "rennes", "near": ["web"] * (name == "db")}
        assert (await federation.ask("POST", vms, body, who="tenant"))[0] == 202
        await federation.settle()
    _, shown = await federation.ask("GET", f"{vms}/web", who="user")
    web = shown["result"]["value"]
    _, shown = await federation.ask("GET", f"/v1/nodes/{web['node_id']}")
    free_mib = shown["result"]["node"]["memory_mib"] - web["shape"]["memory_mib"]
    resize, shape = f"{vms}/web/shape", {"vcpu_count": 1, "memory_mib": free_mib + 1}
    status, told = await federation.ask("PUT", resize, {"shape": shape}, who="tenant")
    assert (status, told["error"]["code"]) == (409, "conflict"), told
    shape["memory_mib"] = free_mib
    status, told = await federation.ask("PUT", resize, {"shape": shape}, who="tenant")
    assert status == 200, told


async def test_a_volume_of_4096_byte_sectors(federation: Federation, *, rewrite: bool) -> None:
    await build(federation)
    volumes = "/v1/iaas/acme/volumes"
    body = {"name": "data", "size_bytes": 64 << 20, "sector_bytes": 520}
    assert (await federation.ask("POST", volumes, body, who="tenant"))[0] == 400
    body["sector_bytes"] = 4096
    status, made = await federation.ask("POST", volumes, body, who="tenant")
    assert (status, made["result"]["value"]["sector_bytes"]) == (202, 4096)
    lyon = federation.sites[SiteId("lyon")].site.index
    while any(volume.state is VolumeState.CREATING for volume in lyon.values(Volume)):
        await federation.settle()
    clone = {"name": "copy"}
    _, cloned = await federation.ask("POST", f"{volumes}/data/clone", clone, who="tenant")
    assert cloned["result"]["value"]["sector_bytes"] == 4096
    vm = {"name": "web", "volume": "data"}
    status, _ = await federation.ask("POST", "/v1/iaas/acme/vms", vm, who="tenant")
    assert status == 400
    await federation.settle()
    compare(HERE / "sectors.txt", federation.talk.lines, rewrite=rewrite)


async def test_a_hosts_volume_from_creation_to_deletion(
    federation: Federation, *, rewrite: bool
) -> None:
    await build(federation)
    volumes = "/v1/iaas/acme/volumes"
    body = {"name": "data", "size_bytes": 64 << 20}
    assert (await federation.ask("POST", volumes, body, who="tenant"))[0] == 202
    await federation.settle()
    data = f"{volumes}/data"
    assert (await federation.ask("GET", f"{data}/paths", who="user"))[0] == 409
    wrong = {"initiator": "no name of iSCSI"}
    assert (await federation.ask("POST", f"{data}/host", wrong, who="tenant"))[0] == 400
    host = {"initiator": "iqn.2026-01.org.example:host"}
    assert (await federation.ask("POST", f"{data}/host", host, who="stranger"))[0] == 403
    status, given = await federation.ask("POST", f"{data}/host", host, who="tenant")
    assert (status, len(given["result"]["paths"])) == (200, 2)
    await federation.settle()
    _, again = await federation.ask("POST", f"{data}/host", host, who="tenant")
    assert again["result"]["secret"] == given["result"]["secret"]
    assert given["result"]["target_secret"] == ""
    mutual = host | {"mutual": True}
    _, proven = await federation.ask("POST", f"{data}/host", mutual, who="tenant")
    assert proven["result"]["secret"] == given["result"]["secret"]
    assert len(proven["result"]["target_secret"]) == 32
    _, again = await federation.ask("POST", f"{data}/host", host, who="tenant")
    assert again["result"]["target_secret"] == proven["result"]["target_secret"]
    _, paths = await federation.ask("GET", f"{data}/paths", who="user")
    assert [path["state"] for path in paths["result"]] == ["active/optimized", "standby"]
    other = {"initiator": "iqn.2026-01.org.example:other"}
    assert (await federation.ask("POST", f"{data}/host", other, who="tenant"))[0] == 409
    assert (await federation.ask("DELETE", data, who="tenant"))[0] == 409
    assert (await federation.ask("POST", f"{data}/detach", who="tenant"))[0] == 200
    _, anew = await federation.ask("POST", f"{data}/host", host, who="tenant")
    assert anew["result"]["secret"] != given["result"]["secret"]
    assert anew["result"]["target_secret"] == ""
    await federation.ask("POST", f"{data}/detach", who="tenant")
    await federation.settle()
    assert (await federation.ask("DELETE", data, who="tenant"))[0] == 200
    compare(HERE / "host.txt", federation.talk.lines, rewrite=rewrite)


async def test_a_public_address_from_pool_to_pool(federation: Federation, *, rewrite: bool) -> None:
    await build(federation)
    pools, addresses = "/v1/address-pools", "/v1/iaas/acme/addresses"
    wrong = {"name": "public", "prefix": "203.0.113.1/24", "site": "zurich"}
    status, _ = await federation.ask("POST", pools, wrong)
    assert status == 400
    made = wrong | {"prefix": "203.0.113.0/30"}
    assert (await federation.ask("POST", pools, made, who="tenant"))[0] == 403
    assert (await federation.ask("POST", pools, made))[0] == 201
    assert (await federation.ask("POST", pools, made | {"name": "again"}))[0] == 409
    await federation.settle()
    vm = {"name": "web", "image": "guest", "site": "rennes"}
    await federation.ask("POST", "/v1/iaas/acme/vms", vm, who="tenant")
    await federation.settle()
    status, given = await federation.ask("POST", addresses, {}, who="tenant")
    assert (status, given["result"]["id"], given["site"]) == (201, "203.0.113.1", "zurich")
    await federation.settle()
    place = f"{addresses}/203.0.113.1"
    assert (await federation.ask("PUT", f"{place}/port", {"vm": "web"}, who="user"))[0] == 200
    await federation.settle()
    _, shown = await federation.ask("GET", addresses, who="user")
    (view,) = shown["result"]
    assert (view["vm"], view["vm_site"]) == ("web", "rennes")
    assert (await federation.ask("DELETE", place, who="tenant"))[0] == 409, "it is attached"
    assert (await federation.ask("PUT", f"{place}/port", {"vm": "web"}, who="stranger"))[0] == 403
    await federation.ask("DELETE", f"{place}/port", who="user")
    await federation.settle()
    assert (await federation.ask("DELETE", place, who="user"))[0] == 403
    assert (await federation.ask("DELETE", f"{pools}/public"))[0] == 409, "one is given out"
    await federation.ask("DELETE", place, who="tenant")
    await federation.settle()
    await federation.ask("DELETE", f"{pools}/public")
    compare(HERE / "public-address.txt", federation.talk.lines, rewrite=rewrite)


async def test_bad_requests_name_the_field_and_change_nothing(
    federation: Federation, *, rewrite: bool
) -> None:
    await build(federation)
    before = federation.revisions()
    vms = "/v1/iaas/acme/vms"
    cases: list[tuple[str, str, object]] = [
        ("POST", "/v1/iaas", {"name": "Not A Slug"}),
        ("POST", "/v1/iaas", {"name": "x", "contract": {"copies": 9}}),
        ("POST", "/v1/iaas", {"name": "x", "contract": {"data_countries": ["France"]}}),
        ("POST", "/v1/iaas", {"name": "x", "contract": {"copies": "two"}}),
        ("POST", "/v1/iaas", {"name": "x", "cidr": "10.0.0.0/30"}),
        ("POST", "/v1/iaas", {"name": "x", "colour": "red"}),
        ("POST", "/v1/iaas", {}),
        ("POST", "/v1/iaas", ["name"]),
    ]
    for verb, path, body in cases:
        status, answer = await federation.ask(verb, path, body)
        assert status == 400, answer
        assert answer["error"]["message"], answer
    for body in (
        {"name": "web"},
        {"name": "web", "image": "guest", "shape": {"vcpu_count": 0}},
        {"name": "web", "image": "guest", "volume": "disk"},
        {"name": "web", "image": "guest", "policy": "no-such"},
        {"name": "web", "image": "guest", "volume_bytes": 4096},
        {"name": "web", "image": "guest", "preference": 7},
        {"iaas": "other", "name": "web", "image": "guest"},
    ):
        status, answer = await federation.ask("POST", vms, body, who="tenant")
        assert status == 400, answer
        assert answer["error"].get("field"), answer
    for no_json in (b"{", b'{"name": "\xf6"}', b'{"name": ' + b"[" * 100_000):
        status, _ = await federation.ask("POST", vms, who="tenant", raw=no_json)
        assert status == 400
    status, _ = await federation.ask("GET", "/v1/iaas/acme/vms?colour=red", who="tenant")
    assert status == 400
    huge = b'{"name": "' + b"x" * BODY_BYTES_MAX + b'"}'
    status, _ = await federation.ask("POST", "/v1/iaas", raw=huge)
    assert status == 413
    status, _ = await federation.ask("GET", "/v1/nothing")
    assert status == 404
    status, _ = await federation.ask("PUT", "/v1/iaas", {})
    assert status == 405
    await federation.settle()
    assert federation.revisions() == before
    compare(HERE / "bad-requests.txt", federation.talk.lines, rewrite=rewrite)


async def test_refusals_say_whose_move_it_is(federation: Federation, *, rewrite: bool) -> None:
    await build(federation)
    vms = "/v1/iaas/acme/vms"
    ask = federation.ask
    assert (await ask("GET", vms, who=""))[0] == 401
    assert (await ask("GET", vms, who="forged"))[0] == 401
    assert (await ask("GET", vms, who="stranger"))[0] == 403
    assert (await ask("GET", f"{vms}/nothing", who="user"))[0] == 404
    assert (await ask("POST", "/v1/iaas", {"name": "acme"}))[0] == 409
    status, answer = await ask(
        "POST", "/v1/iaas", {"name": "far", "contract": {"data_countries": ["SE"]}}
    )
    assert (status, answer["error"]["rule"]) == (422, "data_countries")
    for wrong, told in (
        ({"copies": 2, "copy_sites": 2, "tier_min": 4}, 422),
        ({"sites": ["renes"]}, 404),
        ({"journal": {"window_s": -1}}, 400),
    ):
        status, answer = await ask("POST", "/v1/iaas", {"name": "far", "contract": wrong})
        assert status == told, answer
    status, answer = await ask(
        "POST", vms, {"name": "web", "image": "guest", "site": "zurich"}, who="tenant"
    )
    assert status == 422
    assert {r["rule"] for r in answer["error"]["refusals"]} >= {"data_countries", "site_wanted"}
    status, answer = await ask(
        "POST", vms, {"name": "big", "image": "guest", "shape": {"vcpu_count": 100}}, who="tenant"
    )
    assert status == 422
    assert all(r["rule"] and r["reason"] for r in answer["error"]["refusals"])
    nowhere = {"name": "web", "image": "guest", "site": "zuric"}
    status, answer = await ask("POST", vms, nowhere, who="tenant")
    assert status == 404
    assert "zurich" in answer["error"]["hint"]
    status, answer = await ask("POST", vms, {"name": "web", "image": "gest"}, who="tenant")
    assert (status, answer["error"]["hint"]) == (404, "`nuage image list` shows those you may use")
    image = {"name": "guest2", "iaas": "acme", "sha256": "abc"}
    status, answer = await ask("POST", "/v1/images", image, who="tenant")
    assert (status, answer["error"]["field"]) == (400, "sha256")
    assert (await ask("POST", "/v1/images", image | {"sha256": "a" * 64}, who="tenant"))[0] == 201
    await federation.settle()
    status, answer = await ask("POST", "/v1/images", image | {"sha256": ""}, who="tenant")
    assert status == 409
    assert "nuage image delete" in answer["error"]["hint"]
    few = {"vm_count": 0}
    await ask("PUT", "/v1/iaas/acme/contract", {"contract": {**FRENCH, "quota": few}})
    await federation.settle()
    status, answer = await ask("POST", vms, {"name": "web", "image": "guest"}, who="tenant")
    assert (status, answer["error"]["code"]) == (422, "quota_exceeded")
    compare(HERE / "refusals.txt", federation.talk.lines, rewrite=rewrite)


async def test_a_home_that_is_cut_off_is_named_at_once(
    federation: Federation, *, rewrite: bool
) -> None:
    await build(federation)
    body = {"name": "web", "image": "guest", "site": "rennes"}
    await federation.ask("POST", "/v1/iaas/acme/vms", body, who="tenant")
    await federation.settle()
    federation.sites["rennes"].crash()  # type: ignore[index]
    status, answer = await federation.ask("POST", "/v1/iaas/acme/vms/web/stop", who="tenant")
    assert (status, answer["error"]["site_id"]) == (503, "rennes")
    status, answer = await federation.ask("GET", "/v1/iaas/acme/vms/web", who="tenant")
    assert (status, answer["result"]["site"]) == (200, "rennes")
    compare(HERE / "cut-off.txt", federation.talk.lines, rewrite=rewrite)


async def test_the_quorum_tells_who_holds_a_lease_and_what_it_owns(federation: Federation) -> None:
    hub = federation.hub
    quorum = federation.sites["lyon"].site.quorum  # type: ignore[index]
    for name in ("vm-1", "vm-2"):
        await quorum.claim("vm", name, SiteId("lyon"), expected_epoch=0)
    del hub.state._leases[SiteId("rennes")]
    status, answer = await federation.ask("GET", "/v1/leases", at="lyon")
    assert status == 200, answer
    shown = {row["site_id"]: row for row in answer["result"]}
    assert shown["lyon"]["remaining_s"] > 0
    assert shown["lyon"]["owned"] == {"vm": 2}
    assert shown["rennes"] == {"site_id": "rennes", "remaining_s": None, "owned": {}}


async def test_roles_are_given_and_taken_by_who_may(
    federation: Federation, *, rewrite: bool
) -> None:
    """An IaaS administrator gives that IaaS's roles only; the last administrator stays one."""
    iaas_id = await build(federation)
    ask = federation.ask
    for name, role in (("ada", "nuage-admin"), ("bob", "iaas-user@acme")):
        user = {"name": name, "secret": "correct horse battery", "grants": [role]}
        assert (await ask("POST", "/v1/users", user))[0] == 201
        await federation.settle()
    path = "/v1/users/bob/grants"
    status, given = await ask("POST", path, {"give": ["iaas-admin@acme"]}, who="tenant")
    assert status == 200, given
    assert {g["role"] for g in given["result"]["grants"]} == {"iaas-user", "iaas-admin"}
    status, taken = await ask("POST", path, {"take": ["iaas-user@acme"]}, at="rennes")
    assert (status, taken["site"]) == (200, "lyon")
    assert taken["result"]["grants"] == [{"role": "iaas-admin", "scope": iaas_id}]
    refused: list[tuple[dict[str, list[str]], str, int]] = [
        ({"give": ["auditor"]}, "tenant", 403),
        ({"give": ["iaas-user@acme"]}, "stranger", 403),
        ({"give": ["iaas-user@acme"]}, "user", 403),
        ({"take": ["iaas-user@acme"]}, "admin", 409),
        ({"give": ["king"]}, "admin", 400),
        ({"give": ["operator@atlantis"]}, "admin", 400),
        ({}, "admin", 400),
    ]
    for roles, who, expected in refused:
        assert (await ask("POST", path, roles, who=who))[0] == expected
    last = {"take": ["nuage-admin"]}
    assert (await ask("POST", "/v1/users/ada/grants", last))[0] == 409
    assert (await ask("PATCH", "/v1/users/ada", {"disabled": True}))[0] == 409
    assert (await ask("POST", path, {"give": ["nuage-admin"]}))[0] == 200
    await federation.settle()
    assert (await ask("POST", "/v1/users/ada/grants", last))[0] == 200
    compare(HERE / "roles.txt", federation.talk.lines, rewrite=rewrite)


async def test_a_contract_changes_only_when_all_that_exists_lies_within_it(
    federation: Federation, *, rewrite: bool
) -> None:
    await build(federation)
    body = {"name": "web", "image": "guest", "site": "lyon"}
    await federation.ask("POST", "/v1/iaas/acme/vms", body, who="tenant")
    await federation.settle()
    path = "/v1/iaas/acme/contract"
    status, answer = await federation.ask("PUT", path, {"contract": {"sites": ["rennes"]}})
    assert status == 409, answer
    three = {**FRENCH, "copies": 3}
    status, answer = await federation.ask("PUT", path, {"contract": three})
    assert status == 422, "there is no third IO-node in France"
    assert {r["rule"] for r in answer["error"]["refusals"]} == {"data_countries"}
    status, _ = await federation.ask("PUT", path, {"contract": {**FRENCH, "tier_min": 2}})
    assert status == 200
    compare(HERE / "contract.txt", federation.talk.lines, rewrite=rewrite)


async def test_a_vm_goes_and_stays_where_its_owner_lets_it(federation: Federation) -> None:
    await build(federation)
    vms = "/v1/iaas/acme/vms"

    async def made(name: str, **rules: object) -> tuple[int, dict[str, Any]]:
        body = {"name": name, "image": "guest", **rules}
        status, answer = await federation.ask("POST", vms, body, who="tenant")
        await federation.settle()
        return status, answer

    status, answer = await made("fenced", fence=["rennes"])
    assert (status, answer["result"]["decision"]["elected_site"]) == (202, "rennes")
    status, answer = await made("banned", ban=["rennes"])
    assert (status, answer["result"]["decision"]["elected_site"]) == (202, "lyon")
    elected = answer["result"]["decision"]["elected"]
    rules_broken = {refusal["rule"] for refusal in answer["result"]["decision"]["refusals"]}
    assert "ban" in rules_broken
    status, answer = await made("nowhere", fence=["rennes"], ban=["rennes"])
    assert (status, answer["error"]["code"]) == (422, "no_candidate")
    assert (await made("unknown", fence=["atlantis"]))[0] == 404
    greedy = {"vcpu_count": 2, "memory_mib": 128, "preserved_vcpus": 3}
    assert (await made("greedy", shape=greedy))[0] == 400
    rules = f"{vms}/fenced/rules"
    status, answer = await federation.ask("PUT", rules, {"ban": [elected]}, who="tenant")
    vm = answer["result"]["value"]
    assert (status, vm["fence"], vm["ban"]) == (200, ["rennes"], [elected])
    status, answer = await federation.ask("PUT", rules, {"fence": []}, who="tenant")
    assert (answer["result"]["value"]["fence"], status) == ([], 200)
    assert (await federation.ask("PUT", rules, {"fence": []}, who="stranger"))[0] == 403


async def test_a_node_that_is_no_rbridge_says_so_and_names_those_that_are(
    federation: Federation,
) -> None:
    await federation.settle()
    status, answer = await federation.ask("GET", "/v1/nodes")
    nodes = {row["node"]["name"]: row["node"]["roles"] for row in answer["result"]}
    ionode = next(name for name, roles in nodes.items() if roles == ["ionode"])
    vnode = next(name for name, roles in nodes.items() if roles == ["vnode"])
    status, answer = await federation.ask("GET", f"/v1/fabric/{ionode}")
    assert (status, answer["error"]["field"]) == (400, "node")
    assert "no RBridge" in answer["error"]["message"]
    assert vnode in answer["error"]["hint"]
    assert ionode not in answer["error"]["hint"]


async def test_a_nodes_power_by_hand(federation: Federation, *, rewrite: bool) -> None:
    await build(federation)
    rennes = federation.sites[SiteId("rennes")]
    vnode, ionode = rennes.vnodes[0].node, rennes.ionodes[0].node
    machines = {
        node.node_id: MemoryNode(f"https://{node.name}", rennes.clock, state=PowerState.ON)
        for node in (vnode, ionode)
    }
    pdu = MemoryPdu("https://pdu", rennes.clock, {"1": MemoryOutlet("a node", 100.0)})

    @asynccontextmanager
    async def bmc(node: Node) -> AsyncIterator[PowerControl]:
        yield machines[node.node_id]

    @asynccontextmanager
    async def open_pdu() -> AsyncIterator[RackPdu]:
        yield pdu

    rennes.site.machines = Machines(bmc, Outlets({"r1": open_pdu}, rennes.clock))
    await rennes.site.save(replace(rennes.index.value(Node, vnode.node_id), outlets=("r1/1",)))
    await federation.settle()
    vms, power = "/v1/iaas/acme/vms", f"/v1/nodes/{vnode.name}/power"
    web = {"name": "web", "image": "guest", "site": "rennes"}
    assert (await federation.ask("POST", vms, web, who="tenant"))[0] == 202
    await federation.settle()
    federation.talk.lines.clear()

    assert (await federation.ask("GET", power, who="tenant"))[0] == 403
    assert (await federation.ask("POST", power, {"order": "off"}, who="auditor"))[0] == 403
    assert (await federation.ask("GET", power, who="operator"))[0] == 200
    _, told = await federation.ask("POST", power, {"order": "off"}, who="operator")
    assert "is in service" in told["error"]["message"]
    path = f"/v1/nodes/{vnode.name}/maintenance"
    await federation.ask("PUT", path, {"maintenance": True}, who="operator")
    _, told = await federation.ask("POST", power, {"order": "cycle"}, who="operator")
    assert "web is running there" in told["error"]["message"]
    wrong = {"order": "off", "boot": "network"}
    assert (await federation.ask("POST", power, wrong, who="operator"))[0] == 400
    assert (await federation.ask("POST", power, {"order": "explode"}, who="operator"))[0] == 400
    assert [each.state for each in machines.values()] == [PowerState.ON] * 2

    again = {"order": "cycle", "force": True, "boot": "network"}
    assert (await federation.ask("POST", power, again, who="operator"))[0] == 200
    machine = machines[vnode.node_id]
    assert (machine.cycles, machine.boot_device) == (1, BootDevice.NETWORK)
    machine.silent = True
    pull = {"order": "off", "force": True, "by_outlets": True}
    assert (await federation.ask("POST", power, pull, who="operator"))[0] == 200
    _, shown = await federation.ask("GET", power, who="operator")
    assert (shown["result"]["state"], shown["result"]["outlets"]) == ("", {"r1/1": False})
    assert (await federation.ask("POST", power, {"order": "on"}, who="operator"))[0] == 503

    path = f"/v1/nodes/{ionode.name}/confirm-off"
    assert (await federation.ask("POST", path, {}, who="operator"))[0] == 400
    path = f"/v1/nodes/{vnode.name}/confirm-off"
    _, told = await federation.ask("POST", path, {}, who="operator")
    assert "heard just now" in told["error"]["message"]
    compare(HERE / "node-power.txt", federation.talk.lines, rewrite=rewrite)
