"""Documents for network boot: what is rendered, and what is refused before."""

import shutil
import subprocess
from pathlib import Path

import pytest

from nuage.errors import InvalidRequest
from nuage.facility.provisioning import (
    BootMachine,
    BootNetwork,
    boot_files,
    read_network,
    write_boot_files,
)

V1 = BootMachine(
    name="marne-v1", mac="02:4e:01:01:14:00", address="10.1.101.20",
    kernel_url="http://10.1.101.10/vmlinuz", initrd_url="http://10.1.101.10/initrd",
    arguments="console=ttyS0",
)  # fmt: skip
IO1 = BootMachine(name="marne-io1", mac="02:4e:01:01:78:00", address="10.1.101.120")

BOOT = Path("/var/lib/nuage/boot")
EXAMPLE = Path(__file__).parents[3] / "examples/boot.toml"


def _network(*entries: BootMachine, subnet: str = "10.1.101.0/24") -> BootNetwork:
    return BootNetwork(
        interface="mgmt0", subnet=subnet, server="10.1.101.10", machines=entries,
    )  # fmt: skip


def test_a_machine_is_led_from_dhcp_to_its_own_kernel() -> None:
    files = boot_files(_network(V1, IO1), BOOT)
    assert "dhcp-host=02:4e:01:01:14:00,10.1.101.20,marne-v1,1h" in files["dnsmasq.conf"]
    assert "dhcp-ignore=tag:!known" in files["dnsmasq.conf"]
    script = files["tftp/node/02-4e-01-01-14-00.ipxe"]
    assert "kernel http://10.1.101.10/vmlinuz console=ttyS0\n" in script
    assert "sanboot" in files["tftp/node/02-4e-01-01-78-00.ipxe"]


def test_the_same_inventory_renders_the_same_bytes() -> None:
    assert boot_files(_network(V1, IO1), BOOT) == boot_files(_network(V1, IO1), BOOT)


@pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed")
def test_dnsmasq_accepts_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "dnsmasq.conf"
    path.write_text(boot_files(_network(V1, IO1), BOOT)["dnsmasq.conf"])
    outcome = subprocess.run(
        ["dnsmasq", "--test", "-C", str(path)], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mac": "02-4e-01-01-14-00"}, "mac"),
        ({"mac": "02:4e:01:01:14:00\ndhcp-script=/bin/sh"}, "mac"),
        ({"name": "Marne v1"}, "name"),
        ({"address": "10.1.101"}, "address"),
        ({"kernel_url": "file:///etc/passwd"}, "kernel_url"),
        ({"kernel_url": "http://a/b\nimgfree"}, "kernel_url"),
        ({"initrd_url": ""}, "initrd_url"),
        ({"arguments": "quiet\nshell"}, "arguments"),
    ],
)
def test_what_would_break_out_of_a_line_is_refused(change: dict[str, str], field: str) -> None:
    values = {
        "name": V1.name, "mac": V1.mac, "address": V1.address, "kernel_url": V1.kernel_url,
        "initrd_url": V1.initrd_url, "arguments": V1.arguments,
    }  # fmt: skip
    with pytest.raises(InvalidRequest) as caught:
        BootMachine(**(values | change))
    assert caught.value.field == field


def test_two_machines_never_share_an_address_or_leave_the_network() -> None:
    with pytest.raises(InvalidRequest) as caught:
        _network(V1, BootMachine(name="marne-v2", mac=IO1.mac, address=V1.address))
    assert caught.value.field == "machines[1].address"
    with pytest.raises(InvalidRequest) as caught:
        _network(V1, BootMachine(name="marne-v2", mac=V1.mac, address=IO1.address))
    assert caught.value.field == "machines[1].mac"
    with pytest.raises(InvalidRequest) as caught:
        _network(V1, subnet="10.2.0.0/24")
    assert caught.value.field == "machines[0].address"


def test_the_example_is_written_and_a_machine_that_leaves_loses_its_script(tmp_path: Path) -> None:
    network = read_network(EXAMPLE)
    write_boot_files(network, tmp_path)
    scripts = tmp_path / "tftp/node"
    assert len(list(scripts.iterdir())) == len(network.machines) == 2
    left = BootNetwork(
        interface="mgmt0", subnet=network.subnet, server=network.server,
        machines=network.machines[:1],
    )  # fmt: skip
    write_boot_files(left, tmp_path)
    assert [path.name for path in scripts.iterdir()] == ["02-4e-01-01-14-00.ipxe"]
    assert f"tftp-root={tmp_path}/tftp\n" in (tmp_path / "dnsmasq.conf").read_text()
    with pytest.raises(InvalidRequest, match="letters"):
        write_boot_files(left, tmp_path / "a b")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("kernel_url", "kernel", "unknown field `kernel`"),
        ('mac = "02:4e:01:01:14:00"', "mac = 7", "Expected `str`"),
        ("[[machines]]", "[[machines", "line"),
        ("10.0.100.20", "10.0.99.20", "outside"),
    ],
)
def test_a_wrong_inventory_is_told(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "boot.toml"
    text = EXAMPLE.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InvalidRequest, match=told):
        read_network(path)
    with pytest.raises(InvalidRequest, match="No such file"):
        read_network(tmp_path / "none.toml")
