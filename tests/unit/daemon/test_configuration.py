from pathlib import Path

import pytest
from tests.unit.iaas.iaas_makers import node
from tests.unit.placement.placement_builders import site

from nuage.daemon.configuration import (
    STATE_DIR_BYTES_MAX,
    ControllerConfiguration,
    EnergyConfiguration,
    IonodeConfiguration,
    SourceConfiguration,
    load,
    render,
)
from nuage.errors import InvalidRequest
from nuage.model.infrastructure import NodeRole

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


def test_a_state_directory_too_long_for_a_storage_daemons_socket_is_refused() -> None:
    """Else the daemon never starts, and what it should serve waits for ever."""

    def ionode(state_dir: Path) -> IonodeConfiguration:
        return IonodeConfiguration(
            node=node("marne", NodeRole.IONODE), controller="10.1.1.1:7000",
            state_dir=state_dir, trust_dir=Path("/etc/nuage/trust"), data_dir=Path("/srv"),
        )  # fmt: skip

    longest = Path("/" + "d" * (STATE_DIR_BYTES_MAX - 1))
    assert len(f"{ionode(longest).state_dir}/daemons/iaas-0123456789abcdef.sock") == 107
    with pytest.raises(InvalidRequest, match="leaves no room") as refused:
        ionode(Path(f"{longest}d"))
    assert refused.value.field == "state_dir"


@pytest.mark.parametrize("ratio", ["0.0", "-1", "0.05", "101", "nan", "inf"])
def test_a_ratio_that_nobody_can_mean_is_refused_before_anything_starts(
    tmp_path: Path, ratio: str
) -> None:
    path = tmp_path / "ionode.toml"
    said = render(IonodeConfiguration(
        node=node("marne", NodeRole.IONODE), controller="10.1.1.1:7000",
        state_dir=Path("/var/lib"), trust_dir=Path("/etc"), data_dir=Path("/srv"),
    ))  # fmt: skip
    assert "overcommit_ratio = 4.0" in said
    path.write_text(said.replace("overcommit_ratio = 4.0", f"overcommit_ratio = {ratio}"))
    with pytest.raises(InvalidRequest, match=r"overcommit_ratio .* is not within 0\.1 and 100"):
        load(path, IonodeConfiguration)
    path.write_text(said.replace("overcommit_ratio = 4.0", "overcommit_ratio = 1"))
    assert load(path, IonodeConfiguration).overcommit_ratio == 1.0
