"""The files of `examples/` name every key, and say truly what it is when it is left out."""

import re
import tomllib
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, get_type_hints

import pytest

from nuage.daemon.configuration import (
    ControllerConfiguration,
    DiskConfiguration,
    EdgeConfiguration,
    IonodeConfiguration,
    VnodeConfiguration,
    load,
)
from nuage.model.infrastructure import Node

EXAMPLES: Final = Path(__file__).parents[3] / "examples"
CLASSES: Final = {
    "controller": ControllerConfiguration, "edge": EdgeConfiguration,
    "ionode": IonodeConfiguration, "vnode": VnodeConfiguration,
}  # fmt: skip
# What the federation says of a site or a node, or a daemon of itself, and no file.
TOLD_ELSEWHERE: Final = {
    "number", "maintenance", "draining", "power", "lines", "trunk_key", "revoked_generation",
    "version", "lost_disks",
}  # fmt: skip
# Of all nodes only V-nodes give processors and memory; an edge says `bare_trunks` for its lines.
V_NODES_ALONE: Final = {"cpu_count", "memory_mib"}
COMMENTED: Final = re.compile(r"^#(\w+ = .*)$", re.MULTILINE)
FORM: Final = re.compile(r"^#(\w+) = .*# e\.g\.", re.MULTILINE)


@pytest.mark.parametrize("role", CLASSES)
def test_an_example_is_taken_as_it_stands(role: str) -> None:
    load(EXAMPLES / f"{role}.toml", CLASSES[role])


@pytest.mark.parametrize("role", CLASSES)
def test_an_example_names_every_key_and_its_default(role: str, tmp_path: Path) -> None:
    text = (EXAMPLES / f"{role}.toml").read_text()
    whole = tmp_path / f"{role}.toml"
    whole.write_text(COMMENTED.sub(r"\1", text))
    load(whole, CLASSES[role])
    said = tomllib.loads(whole.read_text())
    left_out = {match.partition(" =")[0] for match in COMMENTED.findall(text)}
    compare(CLASSES[role], said, defaults=left_out - set(FORM.findall(text)), role=role)


def compare(cls: Any, said: dict[str, Any], *, defaults: set[str], role: str) -> None:
    """Check a table of a file against its class: keys, and what stands there as a default."""
    hints = get_type_hints(cls)
    expected = {field.name for field in fields(cls)}
    if "site_id" in expected:
        expected -= TOLD_ELSEWHERE
    if cls is Node:
        expected -= {"bare_trunks"} | (set() if role == "vnode" else V_NODES_ALONE)
    assert said.keys() == expected, cls
    for field in fields(cls):
        value = said.get(field.name)
        if field.name == "disks":
            for table in said["disks"].values():
                compare(DiskConfiguration, table, defaults=defaults, role=role)
        elif isinstance(value, dict) and is_dataclass(hints[field.name]):
            compare(hints[field.name], value, defaults=defaults, role=role)
        elif field.name in defaults & said.keys():
            assert value == default_of(field), field.name


def default_of(field: Field[Any]) -> object:
    """Return a field's default as TOML has it."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    default = field.default
    assert default is not MISSING, field.name
    value = getattr(default, "value", default)
    return list(value) if isinstance(value, tuple) else value
