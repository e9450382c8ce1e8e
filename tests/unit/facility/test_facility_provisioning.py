"""Documents for network boot: what is rendered, and what is refused before."""

import shutil
import subprocess
from pathlib import Path

import pytest

from nuage.errors import InvalidRequest
from nuage.facility.provisioning import BootEntry, BootNetwork, boot_files

V1 = BootEntry(
    name="marne-v1", mac="02:4e:01:01:14:00", address="10.1.101.20",
    kernel_url="http://10.1.101.10/vmlinuz", initrd_url="http://10.1.101.10/initrd",
    arguments="console=ttyS0",
)  # fmt: skip
IO1 = BootEntry(name="marne-io1", mac="02:4e:01:01:78:00", address="10.1.101.120")


def _network(*entries: BootEntry, subnet: str = "10.1.101.0/24") -> BootNetwork:
    return BootNetwork(
        interface="mgmt0", subnet=subnet, server="10.1.101.10",
        tftp_directory="/var/lib/nuage/tftp", entries=entries,
    )  # fmt: skip


def test_a_machine_is_led_from_dhcp_to_its_own_kernel() -> None:
    files = boot_files(_network(V1, IO1))
    assert "dhcp-host=02:4e:01:01:14:00,10.1.101.20,marne-v1,1h" in files["dnsmasq.conf"]
    assert "dhcp-ignore=tag:!known" in files["dnsmasq.conf"]
    script = files["tftp/node/02-4e-01-01-14-00.ipxe"]
    assert "kernel http://10.1.101.10/vmlinuz console=ttyS0\n" in script
    assert "sanboot" in files["tftp/node/02-4e-01-01-78-00.ipxe"]


def test_the_same_inventory_renders_the_same_bytes() -> None:
    assert boot_files(_network(V1, IO1)) == boot_files(_network(V1, IO1))


@pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed")
def test_dnsmasq_accepts_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "dnsmasq.conf"
    path.write_text(boot_files(_network(V1, IO1))["dnsmasq.conf"])
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
        BootEntry(**(values | change))
    assert caught.value.field == field


def test_two_machines_never_share_an_address_or_leave_the_network() -> None:
    with pytest.raises(InvalidRequest) as caught:
        _network(V1, BootEntry(name="marne-v2", mac=IO1.mac, address=V1.address))
    assert caught.value.field == "entries[1].address"
    with pytest.raises(InvalidRequest) as caught:
        _network(V1, BootEntry(name="marne-v2", mac=V1.mac, address=IO1.address))
    assert caught.value.field == "entries[1].mac"
    with pytest.raises(InvalidRequest) as caught:
        _network(V1, subnet="10.2.0.0/24")
    assert caught.value.field == "entries[0].address"
