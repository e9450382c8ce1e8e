"""Network boot of bare machines, as documents: dnsmasq (DHCP and TFTP) and iPXE scripts.

For the closed management network of a container (paper §IV: nodes boot by PXE). Declarative: the
same inventory renders the same bytes, and whoever applies them replaces the files as a whole.
Only machines of the inventory are answered; any other stays as silent to us as we to it.

The first stage (`undionly.kpxe`, `ipxe.efi`) comes from the TFTP directory and is the
distribution's iPXE; it then asks for `boot.ipxe`, which leads to the machine's own script by
its MAC.
"""

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from nuage.errors import InvalidRequest
from nuage.model.infrastructure import require_slug

LEASE_TIME: Final = "1h"
BIOS_LOADER: Final = "undionly.kpxe"
EFI_LOADER: Final = "ipxe.efi"
# RFC 4578 §2.1: 7 and 9 are 64-bit UEFI (both are in use), 0 is BIOS.
EFI_ARCHITECTURES: Final = (7, 9)
IPXE_OPTION: Final = 175  # only iPXE sends it
NODES_MAX: Final = 168  # of one container
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class BootMachine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one machine boots: from its disk, or a kernel and initial RAM disk by HTTP."""

    name: str
    mac: str
    address: str
    kernel_url: str = ""
    initrd_url: str = ""
    arguments: str = ""

    def __post_init__(self) -> None:
        require_slug(self.name, "name")
        if not _MAC.fullmatch(self.mac):
            raise InvalidRequest(
                f"{self.mac!r} is not a MAC such as 02:4e:01:01:14:00", field="mac"
            )
        _address(self.address, "address")
        if bool(self.kernel_url) != bool(self.initrd_url):
            raise InvalidRequest(
                "a kernel and its initial RAM disk go together", field="initrd_url"
            )
        for field in ("kernel_url", "initrd_url"):
            _url(getattr(self, field), field)
        if any(ord(character) < 32 for character in self.arguments):
            raise InvalidRequest("kernel arguments are one line of text", field="arguments")


class BootNetwork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The closed network on which machines boot."""

    interface: str
    subnet: str
    server: str
    machines: tuple[BootMachine, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,15}", self.interface):
            raise InvalidRequest(f"{self.interface!r} is not an interface", field="interface")
        try:
            network = ipaddress.IPv4Network(self.subnet)
        except ValueError as error:
            raise InvalidRequest(f"{self.subnet!r}: {error}", field="subnet") from error
        if len(self.machines) > NODES_MAX:
            raise InvalidRequest(f"more than {NODES_MAX} machines", field="machines")
        used: dict[str, str] = {_address(self.server, "server"): "the server"}
        for index, machine in enumerate(self.machines):
            if ipaddress.IPv4Address(machine.address) not in network:
                raise InvalidRequest(
                    f"{machine.address} is outside {network}", field=f"machines[{index}].address"
                )
            for value, field in ((machine.address, "address"), (machine.mac, "mac")):
                if value in used:
                    raise InvalidRequest(
                        f"{value} belongs to {used[value]}", field=f"machines[{index}].{field}"
                    )
                used[value] = machine.name


def read_network(path: Path) -> BootNetwork:
    """Return the network that a TOML file describes (`examples/boot.toml`).

    Raises:
        InvalidRequest: it cannot be read, or names what no machine boots from.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(document, BootNetwork)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidRequest(f"{path}: {error}", field="inventory") from None


def write_boot_files(network: BootNetwork, directory: Path) -> None:
    """Write all files below `directory`; scripts of machines that have left are removed.

    Raises:
        InvalidRequest: dnsmasq cannot be told of `directory`.
    """
    files = boot_files(network, directory)
    for script in (directory / "tftp/node").glob("*.ipxe"):
        if str(script.relative_to(directory)) not in files:
            script.unlink(missing_ok=True)
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)


def boot_files(network: BootNetwork, directory: Path) -> dict[str, str]:
    """Return every file to write below `directory`: `dnsmasq.conf`, and scripts in `tftp`."""
    scripts = {f"tftp/node/{_hyphens(e.mac)}.ipxe": node_script(e) for e in network.machines}
    return {
        "dnsmasq.conf": dnsmasq_configuration(network, directory.absolute() / "tftp"),
        "tftp/boot.ipxe": first_script(),
        **scripts,
    }


def dnsmasq_configuration(network: BootNetwork, tftp_directory: Path) -> str:
    """Return dnsmasq's configuration: DHCP for known machines, TFTP, no DNS."""
    if not re.fullmatch(r"/[A-Za-z0-9._/-]+", str(tftp_directory)):
        raise InvalidRequest(
            f"{str(tftp_directory)!r}: letters, digits, '.', '_' and '-' alone", field="directory"
        )
    subnet = ipaddress.IPv4Network(network.subnet)
    lines = [
        "# Rendered from the inventory; changes here are overwritten.",
        "port=0",
        f"interface={network.interface}",
        "bind-interfaces",
        "except-interface=lo",
        "dhcp-authoritative",
        "log-dhcp",
        f"dhcp-range={subnet.network_address},static,{subnet.netmask},{LEASE_TIME}",
        "dhcp-ignore=tag:!known",
        "enable-tftp",
        f"tftp-root={tftp_directory}",
        f"dhcp-match=set:ipxe,{IPXE_OPTION}",
        *(f"dhcp-match=set:efi,option:client-arch,{number}" for number in EFI_ARCHITECTURES),
        f"dhcp-boot=tag:!ipxe,tag:!efi,{BIOS_LOADER},,{network.server}",
        f"dhcp-boot=tag:!ipxe,tag:efi,{EFI_LOADER},,{network.server}",
        f"dhcp-boot=tag:ipxe,boot.ipxe,,{network.server}",
    ]
    lines += [
        f"dhcp-host={each.mac},{each.address},{each.name},{LEASE_TIME}" for each in network.machines
    ]
    return "\n".join(lines) + "\n"


def first_script() -> str:
    """Return the script that leads each machine to its own, and to its disk if it has none."""
    return (
        "#!ipxe\n"
        "chain --autofree node/${mac:hexhyp}.ipxe || goto disk\n"
        ":disk\n"
        "sanboot --no-describe --drive 0x80 || exit\n"
    )


def node_script(machine: BootMachine) -> str:
    """Return a machine's script."""
    if not machine.kernel_url:
        return (
            f"#!ipxe\n# {machine.name}: its own disk\nsanboot --no-describe --drive 0x80 || exit\n"
        )
    arguments = f" {machine.arguments}" if machine.arguments else ""
    return (
        "#!ipxe\n"
        f"# {machine.name}\n"
        f"kernel {machine.kernel_url}{arguments}\n"
        f"initrd {machine.initrd_url}\n"
        "boot\n"
    )


def _hyphens(mac: str) -> str:
    """Return a MAC as iPXE's `hexhyp` writes it."""
    return mac.replace(":", "-")


def _address(text: str, field: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise InvalidRequest(f"{text!r} is not an IPv4 address", field=field) from error


def _url(text: str, field: str) -> None:
    if not text:
        return
    parts = urlsplit(text)
    plain = all(33 <= ord(character) < 127 for character in text)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise InvalidRequest(f"{text!r} is not an http(s) URL", field=field)
