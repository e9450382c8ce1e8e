from pathlib import Path

import pytest
from tests.unit.placement.placement_builders import site

from nuage.daemon.configuration import (
    ControllerConfiguration,
    EnergyConfiguration,
    SourceConfiguration,
    load,
    render,
)
from nuage.errors import InvalidRequest

CONTROLLER = ControllerConfiguration(
    state_dir=Path("/var/lib/nuage"), trust_dir=Path("/etc/nuage/trust"), datacenter=site("marne"),
    channel_listen="10.1.1.1:7000", join_listen="10.1.1.1:7001", api_listen=("unix:/run/api",),
    energy=EnergyConfiguration(
        pdus={"r1": "https://10.1.1.240", "r2": "snmp://10.1.1.241"},
        snmp_login_file=Path("/etc/nuage/snmp.json"),
        sources={
            "eco2mix": SourceConfiguration(),
            "day-ahead": SourceConfiguration(key_file=Path("/etc/nuage/entsoe.key")),
        },
    ),
)  # fmt: skip


def test_what_is_rendered_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "controller.toml"
    path.write_text(render(CONTROLLER))
    assert load(path, ControllerConfiguration) == CONTROLLER


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("key_file", "keyfile", "energy: sources.day-ahead: no key 'keyfile'"),
        ("snmp_login_file", "snmp_login", "energy: no key 'snmp_login'"),
    ],
)
def test_a_mistyped_key_is_named_however_deep_it_lies(
    tmp_path: Path, before: str, after: str, told: str
) -> None:
    path = tmp_path / "controller.toml"
    path.write_text(render(CONTROLLER).replace(before, after))
    with pytest.raises(InvalidRequest, match=told):
        load(path, ControllerConfiguration)
