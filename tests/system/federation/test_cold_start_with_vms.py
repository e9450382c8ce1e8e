"""A whole federation with running machines loses its power at one stroke, and gets it back."""

import os
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Final

import pytest
from tests.system.lab.able import GUEST, require_lab

from nuage.api.client import Client
from nuage.cli.showing import row_of
from nuage.cli.tenant import Tenant
from nuage.errors import NuageError
from nuage.lab.assembly import admin_of, api_socket, assemble, disband
from nuage.lab.cgroup import Cgroup
from nuage.lab.description import DEFAULT_DESCRIPTION
from nuage.lab.lab import Lab

# Guests boot twice without KVM, on a machine that may be busy with something else.
pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

BACK_WAIT_S: Final = 240.0
# What a site does while it is cut off, by IaaS: after a loss of power each site is, for a while.
RULES: Final = {"stayers": "stay", "movers": "fail-over"}
VMS: Final = {"stayers": "marne", "movers": "lyon"}


require_lab(guest=True)


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    name, where = (
        f"t{os.getpid()}c",
        tmp_path_factory.mktemp("c"),
    )  # short: QEMU's sockets lie below
    made = Lab.open(DEFAULT_DESCRIPTION.with_name("duo.toml"), where, name=name)
    made.create_hardware()
    try:
        assemble(made, lambda _text: None)
        yield made
    finally:
        made.destroy()
        disband(name)


def _tenants(lab: Lab) -> dict[str, Tenant]:
    """Build an IaaS under each rule, its disks in both sites, and return who administers it."""
    endpoint = f"unix:{api_socket(lab, 'marne')}"
    admin, user, login = Client(endpoint), Client(endpoint), admin_of(lab)
    admin.log_in(login.name, login.secret)
    for iaas, rule in RULES.items():
        contract = {"copies": 2, "copy_sites": 2, "ack_policy": "all", "cut_off": rule}
        admin.call("POST", "/v1/iaas", {"name": iaas, "contract": contract})
    secret = secrets.token_urlsafe(18)
    grants = [f"iaas-admin@{iaas}" for iaas in RULES]
    admin.call("POST", "/v1/users", {"name": "ada", "secret": secret, "grants": grants})
    user.log_in("ada", secret)
    image = row_of(admin.call("POST", "/v1/images", {"name": "guest"}))
    admin.upload(f"/v1/images/{image['id']}/data", GUEST, lambda _sent: None)
    return {iaas: Tenant(user, iaas) for iaas in RULES}


@dataclass
class Guests:
    """The QEMU processes of a lab, and on which nodes each VM had one at the same time."""

    lab: Lab
    most: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _done: Event = field(default_factory=Event)

    def now(self) -> dict[str, set[str]]:
        """Return the nodes on which each VM has a process."""
        cgroup, found = Cgroup.of_lab(self.lab.description.name), defaultdict(set)
        for node in self.lab.description.nodes():
            for pid in cgroup.child(node.name).pids():
                command = _command(pid)
                vm = re.search(r"\bvm-[0-9a-f]+", command)
                if "qemu-system" in command.partition("\0")[0] and vm is not None:
                    found[vm.group()].add(node.name)
        return found

    def watch(self) -> None:
        while not self._done.wait(0.1):
            for vm, nodes in self.now().items():
                self.most[vm] = max(self.most[vm], nodes, key=len)

    def __enter__(self) -> "Guests":
        self._thread = Thread(target=self.watch)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._done.set()
        self._thread.join()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""  # it has ended


def _is_back(tenant: Tenant, word: str) -> bool:
    try:
        told = tenant.type("vm", "cat /data/letter", wait_s=5.0)
    except NuageError:
        return False
    assert word in told, "an acknowledged write is gone"
    return True


def test_running_machines_come_back_once_with_their_disks_whole(lab: Lab) -> None:
    """`nuage lab kill all`, then `nuage lab power all on`: nobody does anything else."""
    tenants = _tenants(lab)
    for iaas, tenant in tenants.items():
        tenant.create("vm", image="guest", site=VMS[iaas])
    word = secrets.token_hex(8)
    for tenant in tenants.values():
        tenant.until("vm")
        tenant.until_it_has_a_shell("vm")
        tenant.type("vm", f"echo {word} > /data/letter; sync")
    guests = Guests(lab)
    ran = set(guests.now())
    assert len(ran) == len(tenants)

    lab.order_all(lab.named("all"), "kill")
    assert guests.now() == {}
    with guests:
        lab.order_all(lab.named("all"), "on")
        away, deadline_s = dict(tenants), time.monotonic() + BACK_WAIT_S
        while away and time.monotonic() < deadline_s:
            away = {iaas: each for iaas, each in away.items() if not _is_back(each, word)}
            time.sleep(0.2)  # noqa: TID251 - real processes

    assert not away, {iaas: each.vm("vm") for iaas, each in away.items()}
    assert set(guests.now()) == ran
    assert all(len(nodes) == 1 for nodes in guests.most.values()), guests.most
