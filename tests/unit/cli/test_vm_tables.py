"""What is shown of VMs: where they are reached, what they have, and how old that is."""

import pytest
from click.testing import CliRunner
from tests.unit.cli.test_names_for_ids import session_of

from nuage.cli.fabric import port_command
from nuage.cli.vms import vm_group

VALUE = {
    "name": "web", "state": "running", "wish": "running", "failure": "", "node_id": "v1",
    "site_id": "lyon", "migrating_to": None, "shape": {"vcpu_count": 1, "memory_mib": 256},
    "volumes": ["vol-1"], "ports": ["port-1"], "downtime_ms": 0,
    "fence": [], "ban": [], "near": [], "apart": [],
}  # fmt: skip
VM = {"id": "vm-1", "site": "lyon", "age_s": 0.2, "epoch": 1048576, "value": VALUE}
PORT = {
    "vm_id": "vm-1", "addresses": ["10.0.1.2/20"], "mac": "02:00:00:00:00:01", "rate_mbit": 0,
    "security_groups": ["sg-1"],
}  # fmt: skip
PORTS = [{"id": "port-1", "value": PORT}]
VOLUMES = [{"id": "vol-1", "value": {"name": "web-boot"}}]


@pytest.mark.parametrize(("age_s", "state"), [(0.2, "running  "), (61.0, "running 61 s ago")])
def test_the_list_has_the_address_and_says_what_is_old(age_s: float, state: str) -> None:
    vms = [VM | {"age_s": age_s}]
    session = session_of(iaas__acme__vms=vms, iaas__acme__ports=PORTS)
    told = CliRunner().invoke(vm_group, ["list", "--iaas", "acme"], obj=session)
    assert told.exit_code == 0, (told.output, told.exception)
    assert "10.0.1.2" in told.output
    assert state in told.output
    assert "1048576" not in told.output


def test_a_pipe_gets_a_row_a_line_and_no_colours() -> None:
    failed = VM | {"value": VALUE | {"failure": "why " * 100, "state": "failed"}}
    session = session_of(iaas__acme__vms=[failed], iaas__acme__ports=PORTS)
    told = CliRunner().invoke(vm_group, ["list", "--iaas", "acme"], obj=session)
    assert len(told.output.splitlines()) == 3
    assert "\x1b" not in told.output


def test_one_vm_names_its_volumes_and_its_address() -> None:
    session = session_of(
        iaas__acme__vms__web=VM, iaas__acme__ports=PORTS, iaas__acme__volumes=VOLUMES
    )
    told = CliRunner().invoke(vm_group, ["show", "web", "--iaas", "acme"], obj=session)
    assert told.exit_code == 0, (told.output, told.exception)
    assert "address  10.0.1.2" in told.output
    assert "volumes  web-boot" in told.output


def test_a_port_is_shown_where_nothing_is_to_change() -> None:
    groups = {"iaas__acme__security-groups": [{"id": "sg-1", "value": {"name": "open"}}]}
    session = session_of(iaas__acme__vms__web=VM, iaas__acme__ports=PORTS, **groups)
    told = CliRunner().invoke(port_command, ["web", "--iaas", "acme"], obj=session)
    assert told.exit_code == 0, (told.output, told.exception)
    for line in ("address  10.0.1.2/20", "groups   open", "rate     of the contract's class"):
        assert line in told.output


def test_a_vm_without_rules_says_where_it_may_run() -> None:
    session = session_of(iaas__acme__vms__web__rules=VM)
    told = CliRunner().invoke(vm_group, ["rules", "web", "--iaas", "acme"], obj=session)
    assert told.output == "web may run wherever its contract allows\n"


def test_what_is_done_is_told_as_json_when_that_is_asked() -> None:
    session = session_of(iaas__acme__vms__web__stop=VM)
    assert CliRunner().invoke(vm_group, ["stop", "web", "-i", "acme"], obj=session).output == (
        "web stops\n"
    )
    session.as_json = True
    told = CliRunner().invoke(vm_group, ["stop", "web", "-i", "acme"], obj=session)
    assert '"id": "vm-1"' in told.output
