"""People see the names that they gave, where the API speaks in ids."""

from typing import cast

from click.testing import CliRunner

from nuage.api.client import Client
from nuage.cli.fabric import group_group
from nuage.cli.iaas import user_group
from nuage.cli.session import Session
from nuage.cli.sites import node_group
from nuage.cli.storage import volume_group

ACME = {"id": "iaas-1", "value": {"name": "acme"}}
WEB = {"id": "vm-1", "value": {"name": "web1"}}
VOLUME = {
    "name": "data", "state": "ready", "size_bytes": 1 << 30, "vm_id": "vm-1", "head": "io1",
    "replicas": [{"node_id": "io1"}], "failure": "",
}  # fmt: skip
GRANTS = [{"role": "nuage-admin", "scope": "*"}, {"role": "iaas-admin", "scope": "iaas-1"}]
ADA = {"name": "ada", "user_id": "user-1", "disabled": False, "site": "marne", "grants": GRANTS}
RULE = {
    "ingress": True, "protocol": "tcp", "port_first": 443, "port_last": 443, "remote": "",
    "remote_group": None,
}  # fmt: skip
RANGE = RULE | {"port_first": 8000, "port_last": 8010}
GROUP = {"name": "web", "group_id": "sg-1", "rules": [RULE, RANGE]}


class Answers:
    """Answers each path as told."""

    def __init__(self, answers: dict[str, object]) -> None:
        self._answers = answers

    def get(self, path: str, **_query: object) -> object:
        return self._answers[path]

    def call(self, _verb: str, path: str, _body: object = None) -> object:
        return self._answers[path]


def session_of(**answers: object) -> Session:
    told = {f"/v1/{path.replace('__', '/')}": answer for path, answer in answers.items()}
    return Session(_client=cast(Client, Answers(told)))


def test_volumes_name_the_vm_that_has_them() -> None:
    session = session_of(
        iaas__acme__volumes=[{"id": "vol-1", "value": VOLUME}], iaas__acme__vms=[WEB]
    )
    told = CliRunner().invoke(volume_group, ["list", "--iaas", "acme"], obj=session)
    assert told.exit_code == 0, told.output
    assert "web1" in told.output
    assert "vm-1" not in told.output


def test_roles_name_the_iaas_and_say_from_when_they_count() -> None:
    session = session_of(users=[ADA], iaas=[ACME], users__ada__grants=ADA)
    told = CliRunner().invoke(user_group, ["list"], obj=session)
    assert "nuage-admin@*, iaas-admin@acme" in told.output
    told = CliRunner().invoke(user_group, ["grant", "ada", "iaas-admin@acme"], obj=session)
    assert "iaas-admin@acme" in told.output
    assert "nuage login ada" in told.output


def test_a_rule_of_one_port_is_shown_as_it_is_typed() -> None:
    group = GROUP | {"rules": [RULE, RANGE, RULE | {"remote_group": "sg-1"}]}
    session = session_of(**{"iaas__acme__security-groups": [{"id": "sg-1", "value": group}]})
    told = CliRunner().invoke(group_group, ["list", "--iaas", "acme"], obj=session)
    assert "in tcp:443; in tcp:8000-8010; in tcp:443 from group:web" in told.output


def test_a_node_shows_its_orphans() -> None:
    node = {"name": "v1", "site_id": "marne", "rack_id": "r1", "roles": ["vnode"], "address": ""}
    answer = {
        "node": node | {"maintenance": False},
        "status": {"connected": True, "orphans": ["vm-9"], "unreadable": ["vm-8"]},
        "vm_count": 0, "copy_count": 0, "shares": [], "names": {}, "service": "in service",
    }  # fmt: skip
    told = CliRunner().invoke(node_group, ["show", "v1"], obj=session_of(nodes__v1=answer))
    assert told.exit_code == 0, (told.output, told.exception)
    assert "vm-9" in told.output
    assert "unreadable" in told.output
    assert "vm-8" in told.output
