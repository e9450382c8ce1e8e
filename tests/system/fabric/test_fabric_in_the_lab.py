"""The fabric in the product: guests of two datacenters on one segment, through cuts and moves."""

import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from tests.system.lab.able import GUEST, require_lab

from nuage.api.client import Client
from nuage.cli.address_demo import give_address
from nuage.cli.fabric_demo import (
    LOG,
    FabricDemo,
    fabric_demo,
    start_ping,
    stop_ping,
    wait_for_answers,
)
from nuage.cli.showing import inner, row_of, rows_of
from nuage.cli.tenant import Tenant
from nuage.errors import NuageError
from nuage.lab import kernel
from nuage.lab.assembly import admin_of, api_socket, assemble, disband
from nuage.lab.description import DEFAULT_DESCRIPTION, parse_description
from nuage.lab.lab import Lab
from nuage.network.runner import PacketSocket

# A lab and its guests need minutes on a machine that is busy with something else.
pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

CONTRACT = {
    "data_countries": ["FR"], "operator_countries": ["FR"], "copies": 1, "copy_sites": 1,
    "ack_policy": "all",
}  # fmt: skip
TENANTS = ("red", "blue")
NAMES = ("net1", "net2")
MARK = b"\x5a" * 16
EDGES = ("marne-edge1", "marne-edge2")
MARNE_LINES = ("s1", "s1e2")  # at each provider
LONGEST_PING = 1334  # a guest's MTU: its line, of 1492 bytes, takes two packets for it
GAP_MAX_MS = 1000.0  # a third of that on a quiet machine


require_lab(guest=True)


def _quiet(_text: str) -> None:
    pass


def _told(_what: str, _value: str) -> None:
    pass


@dataclass(frozen=True)
class Federation:
    """Two sites over PPPoE, the first with two edges; two tenants with the same addresses."""

    lab: Lab
    admin: Client
    user: Client

    def tenant(self, iaas: str) -> Tenant:
        """Return what types on a tenant's consoles."""
        return Tenant(self.user, iaas)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    name = f"t{os.getpid()}f"
    text = DEFAULT_DESCRIPTION.with_name("duo.toml").read_text(encoding="utf-8")
    text = text.replace('edges = ["node"]', 'edges = ["node", "node"]', 1)
    text = text.replace("[links]", "[links]\nwan_mtu_bytes = 1492")  # as PPPoE
    description = parse_description(text)
    lab = Lab.open(description, tmp_path_factory.mktemp("fabric"), name=name)
    lab.create_hardware()
    try:
        assemble(lab, _quiet)
        yield _settled(lab)
    finally:
        lab.destroy()
        disband(name)


def _settled(lab: Lab) -> Federation:
    site = lab.description.sites[0].id
    endpoint = f"unix:{api_socket(lab, site)}"
    admin, user = Client(endpoint), Client(endpoint)
    login = admin_of(lab)
    admin.log_in(login.name, login.secret)
    for tenant in TENANTS:
        admin.call("POST", "/v1/iaas", {"name": tenant, "owner": tenant, "contract": CONTRACT})
    secret = secrets.token_urlsafe(18)
    grants = [f"iaas-admin@{tenant}" for tenant in TENANTS]
    admin.call("POST", "/v1/users", {"name": "ada", "secret": secret, "grants": grants})
    user.log_in("ada", secret)
    image = row_of(admin.call("POST", "/v1/images", {"name": "guest"}))
    admin.upload(f"/v1/images/{image['id']}/data", GUEST, lambda _sent: None)
    return Federation(lab, admin, user)


@pytest.fixture
def red(federation: Federation) -> Tenant:
    """The red tenant: net1 and net2 run in two sites and meet, and no group is at their ports."""
    tenant = federation.tenant("red")
    _have_guests(tenant)
    for name in NAMES:
        tenant.put(f"{tenant.path(name)}/port", {"groups": []})
    if tenant.vm("net2")["site_id"] == tenant.vm("net1")["site_id"]:
        tenant.move("net2", "lyon")
    if not tenant.answers("net1", tenant.address("net2")):
        tenant.start_anew("net2")
    return tenant


def _have_guests(tenant: Tenant) -> None:
    """Create net1 and net2 where they are not there yet, and wait for their shells."""
    for name, site in zip(NAMES, ("marne", "lyon"), strict=True):
        tenant.create(name, image="guest", site=site)
    for name in NAMES:
        tenant.until(name)
        tenant.until_it_has_a_shell(name)


def test_guests_meet_over_trill_through_a_cut_and_a_move(
    federation: Federation, red: Tenant
) -> None:
    """Issue 4, points 3 to 7: what a user sees; the figures are told, not judged."""
    figures: dict[str, str] = {}
    fabric_demo(
        federation.user, federation.lab, admin=federation.admin, iaas=red.iaas,
        asker="net1", mover="net2", say=_quiet, note=_quiet,
        figure=lambda what, value: figures.update({what: value}),
    )  # fmt: skip
    assert "round trip between two datacenters" in figures
    assert "longest gap of a ping through a live migration" in figures
    assert "longest gap of its public address, from outside" in figures


def test_tenants_with_the_same_addresses_do_not_meet(federation: Federation, red: Tenant) -> None:
    blue = federation.tenant("blue")
    _have_guests(blue)
    address = blue.address("net2")
    assert address == red.address("net2")
    for tenant in (red, blue):
        told = tenant.type("net1", f"wget -qO- http://{address}/ || echo silent; hostname")
        assert f"net2 {address}" in told
    blue.type("net2", "ip link set eth0 down")
    told = red.type("net1", f"ping -c 3 -W 2 {address}")
    assert "3 packets received" in told, "the other tenant's machine is another machine"
    told = blue.type("net1", f"ping -c 2 -W 1 {address}")
    assert " 0 packets received" in told


def test_the_isp_sees_no_byte_of_a_tenant(federation: Federation, red: Tenant) -> None:
    address = red.address("net2")
    sockets = []
    for provider in federation.lab.description.providers:
        namespace = f"nuage.{federation.lab.description.name}.{provider}"
        sockets += [kernel.inside(namespace, partial(PacketSocket, port)) for port in MARNE_LINES]
    for one in sockets:
        while one.receive():
            pass
    told = red.type("net1", f"ping -c 20 -i 0.1 -p 5a -s {LONGEST_PING} {address}")
    assert "20 packets received" in told
    frames = [frame for one in sockets for frame in iter(one.receive, None)]
    for one in sockets:
        one.close()
    # Not all 20: what the sockets had no room for is lost to them.
    assert any(len(frame) > 600 for frame in frames), "the pings did pass here"
    assert not any(MARK in frame for frame in frames)


def test_an_edge_that_loses_its_daemon_forwards_on_and_keeps_its_nickname(
    federation: Federation, red: Tenant
) -> None:
    edge = "marne-edge1"
    address = red.address("net2")
    before = row_of(federation.admin.get(f"/v1/fabric/{edge}"))["nickname"]
    red.type("net1", f"(ping -c 400 -i 0.02 {address} >/data/kill 2>&1 &)")
    os.kill(_daemon(federation.lab, edge), signal.SIGKILL)
    deadline_s = time.monotonic() + 60.0
    while _nickname(federation, edge) != before:
        assert time.monotonic() < deadline_s, "the edge did not come back as it was"
    told = red.type("net1", "sleep 8; tail -2 /data/kill")
    lost = re.search(r"(\d+)% packet loss", told)
    assert lost is not None, told
    assert int(lost.group(1)) <= 5, told


def test_a_tunnel_whose_process_dies_is_made_anew_and_carries_again(
    federation: Federation, red: Tenant
) -> None:
    edge = "marne-edge1"
    if not _tunnels(federation.lab, edge):
        pytest.skip("the kernel's WireGuard has no process that could die")
    _kill_first_tunnel(federation, edge)
    _await(lambda: _trunk_states(federation, edge) == {"report"}, "all trunks up")
    federation.lab.cut("lyon", provider=federation.lab.description.providers[0])
    try:
        _await(lambda: _trunk_states(federation, edge) != {"report"}, "the cut is noticed")
        _kill_first_tunnel(federation, edge)
    finally:
        federation.lab.heal("lyon")
    _await(lambda: _trunk_states(federation, edge) == {"report"}, "all trunks up again")
    assert red.answers("net1", red.address("net2"))
    for name in _tunnels(federation.lab, edge):
        assert "tunnel_in" in _programs_on(federation.lab, edge, name), "the short way is back"


def test_two_edges_of_a_site_share_its_traffic_and_one_goes_on_for_both(
    federation: Federation, red: Tenant
) -> None:
    """A node sees both ways, flows take either, and nothing comes twice or goes round."""
    _await(lambda: all(_trunk_states(federation, e) == {"report"} for e in EDGES), "trunks up")
    address = red.address("net2")
    _await(partial(_has_choices, federation, set(EDGES)), "both are shortest ways")
    before = {edge: _transit(federation, edge) for edge in EDGES}
    fetch = f"wget -qO- http://{address}/ >/dev/null && echo here"
    told = red.type("net1", f"i=0; while [ $i -lt 24 ]; do {fetch}; i=$((i+1)); done | wc -l")
    assert "24" in told, "flows of one pair, told apart by their ports"
    _await(lambda: all(_transit(federation, e) - before[e] > 24 for e in EDGES), "both carry some")
    try:
        for edge, other in (EDGES, EDGES[::-1]):  # one of the two carries the ping
            gap_ms, answers = _gap(federation, red, partial(federation.lab.kill, edge))
            assert gap_ms <= GAP_MAX_MS, edge
            assert "DUP" not in answers
            _await(partial(_has_choices, federation, {other}), "one is left")
            federation.lab.power_on(edge)
            _await(partial(_has_choices, federation, set(EDGES)), "both are chosen again")
    finally:
        for edge in EDGES:
            federation.lab.power_on(edge)
    for node in (*EDGES, "lyon-edge1", "marne-v1", "lyon-v1"):
        assert "hop_count" not in inner(_fabric(federation, node), "drops")


def _gap(federation: Federation, tenant: Tenant, act: Callable[[], None]) -> tuple[float, str]:
    """Do something while net1 pings net2; return the longest gap, and lines of the answers."""
    admin, lab = federation.admin, federation.lab
    demo = FabricDemo(tenant, admin, tenant, admin, lab, *NAMES, _quiet, _quiet, _told)
    start_ping(demo, tenant.address("net2"))
    wait_for_answers(demo)
    act()
    wait_for_answers(demo)
    gap_ms = stop_ping(demo)
    return gap_ms, tenant.type("net1", f"grep DUP {LOG} | head -3")


def _fabric(federation: Federation, node: str) -> dict[str, object]:
    try:
        return row_of(federation.admin.get(f"/v1/fabric/{node}"))
    except NuageError:  # it has just got its power
        return {"trunks": [], "drops": {}}


def _transit(federation: Federation, node: str) -> int:
    return int(str(inner(_fabric(federation, node), "counters")["transit"]))


def _has_choices(federation: Federation, wanted: set[str]) -> bool:
    """Tell whether the node of net1 sends to that of net2 by these."""
    path = row_of(federation.user.get("/v1/iaas/red/path", source="net1", destination="net2"))
    steps = rows_of(inner(path, "answer")["steps"])
    return bool(steps) and steps[0]["choices"] == sorted(wanted)


def _kill_first_tunnel(federation: Federation, node: str) -> None:
    """Kill the process of the tunnel over the first provider, and wait until there is another."""
    tunnel, pid = min(_tunnels(federation.lab, node).items())
    os.kill(pid, signal.SIGKILL)
    _await(lambda: _tunnels(federation.lab, node).get(tunnel, pid) != pid, "a new process")


def _trunk_states(federation: Federation, node: str) -> set[object]:
    trunks = rows_of(_fabric(federation, node)["trunks"])
    return {trunk["state"] for trunk in trunks if trunk["provider"]}


def _tunnels(lab: Lab, node: str) -> dict[str, int]:
    """Return wireguard-go's processes by their tunnel."""
    found = {}
    for pid, words in _processes(lab, node):
        if words[0].endswith("wireguard-go"):
            found[words[1]] = pid
    return found


def _programs_on(lab: Lab, node: str, interface: str) -> str:
    show = ["tc", "filter", "show", "dev", interface, "ingress"]
    command = ["ip", "netns", "exec", lab.namespace(node), *show]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _processes(lab: Lab, node: str) -> Iterator[tuple[int, list[str]]]:
    done = subprocess.run(
        ["ip", "netns", "pids", lab.namespace(node)], capture_output=True, text=True, check=True
    )
    for pid in map(int, done.stdout.split()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            continue  # it has ended meanwhile
        if len(words) > 1:
            yield pid, words


def _daemon(lab: Lab, node: str) -> int:
    for pid, words in _processes(lab, node):
        if "nuage.cli.main" in words and "edge" in words:
            return pid
    raise AssertionError(f"{node} has no daemon")


def _nickname(federation: Federation, node: str) -> object:
    try:
        return row_of(federation.admin.get(f"/v1/fabric/{node}"))["nickname"]
    except NuageError:
        time.sleep(0.2)  # noqa: TID251 - waits for a process
        return None


def test_a_port_in_a_group_takes_what_the_group_says(federation: Federation, red: Tenant) -> None:
    address = red.address("net2")
    rule = {"protocol": "tcp", "port_first": 80, "port_last": 80}
    federation.user.call("POST", "/v1/iaas/red/security-groups", {"group": "web", "rules": [rule]})
    red.put(f"{red.path('net2')}/port", {"groups": ["web"]})
    time.sleep(1.0)  # noqa: TID251 - waits for a node
    told = red.type("net1", f"ping -c 2 -W 1 {address} | tail -2; wget -qO- http://{address}/")
    assert " 0 packets received" in told
    assert f"net2 {address}" in told


def test_a_public_address_is_reached_by_the_other_provider_when_one_swallows_all(
    federation: Federation, red: Tenant
) -> None:
    mine, theirs = (
        give_address(red, federation.lab, federation.admin, vm=name, site="marne") for name in NAMES
    )
    for name, address in zip(NAMES, (mine, theirs), strict=True):
        red.type(name, f"ip addr add {address}/32 dev eth0")
    _await(lambda: " 0 packets" not in _ping(red, mine, theirs), "net1 reaches net2's address")
    told = red.type("net1", f"ping -c 2 -W 1 {theirs}")
    assert " 0 packets received" in told, "from a private address nothing leaves the segment"
    provider = federation.lab.description.providers[0]
    federation.lab.cut("lyon", provider=provider)
    try:
        _await(lambda: "do not answer probes" in _why(federation, theirs), "probes find the cut")
        told = _ping(red, mine, theirs)
        assert " 0 packets received" not in told, told
    finally:
        federation.lab.heal("lyon")
    _await(lambda: "priority 1" in _why(federation, theirs), "the first way is taken again")


def _ping(tenant: Tenant, source: str, destination: str) -> str:
    return tenant.type("net1", f"ping -c 3 -i 0.5 -W 2 -I {source} {destination} | tail -3")


def _why(federation: Federation, destination: str) -> str:
    path = "/v1/iaas/red/path"
    answer = row_of(federation.user.get(path, source="net1", destination=destination))
    return str(inner(answer, "answer")["reason"])


def _await(is_so: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 60.0
    while not is_so():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.5)  # noqa: TID251 - waits for daemons
