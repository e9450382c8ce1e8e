"""During an upgrade `nuage node list` names what is behind."""

from typing import Any

from nuage.cli.sites import behind


def node(name: str, version: str, **daemons: str) -> dict[str, Any]:
    return {"node": {"name": name, "version": version}, "status": {"daemon_versions": daemons}}


def test_nothing_is_said_of_nodes_that_are_alike() -> None:
    assert behind([]) == []
    assert behind([node("a", ""), {"node": {"name": "b", "version": ""}, "status": None}]) == []
    assert behind([node("a", "0.2.0", x="0.2.0"), node("b", "0.2.0")]) == []


def test_agents_and_storage_daemons_that_are_behind_are_named() -> None:
    told = behind([
        node("a", "0.10.0"), node("b", "0.9.1"), node("c", ""),
        node("d", "0.10.0", x="0.10.0", y="", z="0.9.1"),
    ])  # fmt: skip
    assert told == [
        "b: its agent is of 0.9.1, not 0.10.0: restart it",
        "c: its agent is of a version before 0.2, not 0.10.0: restart it",
        "d: storage daemons of a version before 0.2, 0.9.1, not 0.10.0: drain or reboot it",
    ]
