"""How `nuage group list` and `nuage vm show` tell what a port has and lets through."""

from typing import Any, cast

import pytest
from click.testing import CliRunner

from nuage.api.client import Client
from nuage.cli.fabric import group_group
from nuage.cli.session import Session
from nuage.cli.vms import vm_group

WEB = "sg-0123456789abcdef"


def rule(**changes: object) -> dict[str, object]:
    return {
        "ingress": True, "protocol": "tcp", "remote": "", "remote_group": None,
        "port_first": 0, "port_last": 65535, **changes,
    }  # fmt: skip


class Tenant:
    """What a site answers."""

    def __init__(self, *rules: dict[str, object]) -> None:
        self._group = {"id": WEB, "value": {"name": "web", "group_id": WEB, "rules": list(rules)}}

    def get(self, path: str, **_query: object) -> object:
        port = {"mac": "02:00:00:00:00:01", "addresses": ["10.0.0.2/24"], "security_groups": [WEB]}
        if path.endswith("/security-groups"):
            return [self._group]
        if path.endswith("/ports"):
            return [
                {"id": "port-1", "value": {**port, "vm_id": "vm-1"}},
                {"id": "port-2", "value": {**port, "vm_id": "vm-2", "addresses": ["10.0.0.3/24"]}},
            ]
        if path.endswith("/volumes"):
            return []
        vm = {
            "name": "a", "state": "running", "wish": "running", "failure": "",
            "node_id": "marne-v1", "site_id": "marne", "migrating_to": None, "volumes": [],
            "ports": ["port-1"],
            "shape": {"vcpu_count": 1, "memory_mib": 128}, "downtime_ms": 0.0, "near": [],
            "apart": [], "fence": [], "ban": [], "preference": 0.0,
        }  # fmt: skip
        return {"id": "vm-1", "value": vm, "epoch": 1, "age_s": 0.0, "site": "marne"}


def told(command: Any, tenant: Tenant, *words: str) -> str:
    session = Session(_client=cast(Client, tenant))
    done = CliRunner().invoke(command, [*words, "-i", "acme"], obj=session)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (rule(), "in tcp"),
        (rule(port_first=80, port_last=80), "in tcp:80"),
        (rule(port_first=1024), "in tcp:1024-65535"),
        (rule(port_last=1023), "in tcp:0-1023"),
        (rule(protocol="any", remote_group=WEB), "in any from group:web"),
        (rule(ingress=False, remote="10.0.0.2/32"), "out tcp to 10.0.0.2/32"),
    ],
)
def test_a_rule_is_shown_as_it_is_given(given: dict[str, object], shown: str) -> None:
    assert told(group_group, Tenant(given), "list").splitlines()[-1].endswith(f"  {shown}")


def test_a_vm_is_shown_with_the_address_that_others_reach_it_by() -> None:
    lines = told(vm_group, Tenant(), "show", "a").splitlines()
    (address,) = [line for line in lines if line.startswith("address")]
    assert address.split(maxsplit=1)[1] == ("10.0.0.2  MAC 02:00:00:00:00:01, in 1 security group")
