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
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

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


@dataclass(frozen=True, slots=True, kw_only=True)
class BootEntry:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BootNetwork:
    """The closed network on which machines boot."""

    interface: str
    subnet: str
    server: str
    tftp_directory: str
    entries: tuple[BootEntry, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,15}", self.interface):
            raise InvalidRequest(f"{self.interface!r} is not an interface", field="interface")
        if not re.fullmatch(r"/[A-Za-z0-9._/-]+", self.tftp_directory):
            raise InvalidRequest(
                f"{self.tftp_directory!r} is not an absolute path", field="tftp_directory"
            )
        try:
            network = ipaddress.IPv4Network(self.subnet)
        except ValueError as error:
            raise InvalidRequest(f"{self.subnet!r}: {error}", field="subnet") from error
        if len(self.entries) > NODES_MAX:
            raise InvalidRequest(f"more than {NODES_MAX} machines", field="entries")
        used: dict[str, str] = {_address(self.server, "server"): "the server"}
        for index, entry in enumerate(self.entries):
            if ipaddress.IPv4Address(entry.address) not in network:
                raise InvalidRequest(
                    f"{entry.address} is outside {network}", field=f"entries[{index}].address"
                )
            for value, field in ((entry.address, "address"), (entry.mac, "mac")):
                if value in used:
                    raise InvalidRequest(
                        f"{value} belongs to {used[value]}", field=f"entries[{index}].{field}"
                    )
                used[value] = entry.name


def boot_files(network: BootNetwork) -> dict[str, str]:
    """Return every file to write: `dnsmasq.conf`, and scripts below the TFTP directory."""
    scripts = {f"tftp/node/{_hyphens(e.mac)}.ipxe": node_script(e) for e in network.entries}
    return {
        "dnsmasq.conf": dnsmasq_configuration(network),
        "tftp/boot.ipxe": first_script(),
        **scripts,
    }


def dnsmasq_configuration(network: BootNetwork) -> str:
    """Return dnsmasq's configuration: DHCP for known machines, TFTP, no DNS."""
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
        f"tftp-root={network.tftp_directory}",
        f"dhcp-match=set:ipxe,{IPXE_OPTION}",
        *(f"dhcp-match=set:efi,option:client-arch,{number}" for number in EFI_ARCHITECTURES),
        f"dhcp-boot=tag:!ipxe,tag:!efi,{BIOS_LOADER},,{network.server}",
        f"dhcp-boot=tag:!ipxe,tag:efi,{EFI_LOADER},,{network.server}",
        f"dhcp-boot=tag:ipxe,boot.ipxe,,{network.server}",
    ]
    lines += [
        f"dhcp-host={entry.mac},{entry.address},{entry.name},{LEASE_TIME}"
        for entry in network.entries
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


def node_script(entry: BootEntry) -> str:
    """Return a machine's script."""
    if not entry.kernel_url:
        return f"#!ipxe\n# {entry.name}: its own disk\nsanboot --no-describe --drive 0x80 || exit\n"
    arguments = f" {entry.arguments}" if entry.arguments else ""
    return (
        "#!ipxe\n"
        f"# {entry.name}\n"
        f"kernel {entry.kernel_url}{arguments}\n"
        f"initrd {entry.initrd_url}\n"
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
