"""What a guest reads about itself at its first boot: the config drive of cloud-init.

Two layouts: ``cidata`` (NoCloud: meta-data, user-data, network-config) and ``config-2``
(OpenStack's config drive). Documents are written as JSON, which is YAML, except the network
document of NoCloud, which is written one key a line for guests without a YAML parser.
"""

import ipaddress
import json
from collections.abc import Sequence
from enum import Enum
from typing import Final

from nuage.errors import InvalidRequest
from nuage.model.desired import PortWish, VmWish
from nuage.vnode.iso9660 import build_iso

USER_DATA_BYTES_MAX: Final = 65_535  # as OpenStack's API bounds it, and a drive stays small


class SeedLayout(Enum):
    """Where cloud-init looks; the value is the drive's volume label."""

    NO_CLOUD = "cidata"
    CONFIG_DRIVE = "config-2"


def build_seed(wish: VmWish, layout: SeedLayout = SeedLayout.NO_CLOUD) -> bytes:
    """Return the ISO image of the VM's config drive; the same wish gives the same bytes.

    Raises:
        InvalidRequest: user data is too large, or a port's addresses are none.
    """
    user_data = wish.user_data.encode()
    if len(user_data) > USER_DATA_BYTES_MAX:
        raise InvalidRequest(
            f"user data has {len(user_data)} bytes, {USER_DATA_BYTES_MAX} at most",
            field="user_data",
        )
    if layout is SeedLayout.NO_CLOUD:
        files = {
            "meta-data": _meta_data(wish).encode(),
            "user-data": user_data or b"#cloud-config\n{}\n",
            "network-config": network_config(wish.ports).encode(),
        }
    else:
        folder = "openstack/latest"
        files = {
            f"{folder}/meta_data.json": _meta_data_json(wish),
            f"{folder}/network_data.json": _network_data_json(wish.ports),
        }
        if user_data:
            files[f"{folder}/user_data"] = user_data
    return build_iso(layout.value, files)


def _meta_data(wish: VmWish) -> str:
    lines = [f"instance-id: {json.dumps(wish.vm_id)}", f"local-hostname: {json.dumps(wish.name)}"]
    if wish.ssh_keys:
        lines.append("public-keys:")
        lines += [f"  - {json.dumps(key)}" for key in wish.ssh_keys]
    return "\n".join(lines) + "\n"


def network_config(ports: Sequence[PortWish]) -> str:
    """Return cloud-init's network-config (version 2) for `ports`.

    A port without addresses asks by DHCP.
    """
    lines = ["version: 2", "ethernets:" if ports else "ethernets: {}"]
    for index, port in enumerate(ports):
        lines += [f"  port{index}:", "    match:", f'      macaddress: "{port.mac}"']
        lines.append(f"    mtu: {port.mtu_bytes}")
        if not port.addresses:
            lines.append("    dhcp4: true")
            continue
        lines.append("    addresses:")
        lines += [f'      - "{address}"' for address in _with_prefix(port)]
        if port.gateway:
            lines += ["    routes:", '      - to: "default"', f'        via: "{port.gateway}"']
    return "\n".join(lines) + "\n"


def _with_prefix(port: PortWish) -> list[str]:
    """Return the addresses with their prefix length; a bare IPv4 address gets /24, IPv6 /64."""
    try:
        return [
            address
            if "/" in str(ipaddress.ip_interface(address)) and "/" in address
            else f"{address}/{24 if ipaddress.ip_address(address).version == 4 else 64}"
            for address in port.addresses
        ]
    except ValueError as error:
        raise InvalidRequest(f"port {port.port_id}: {error}", field="ports.addresses") from error


def _meta_data_json(wish: VmWish) -> bytes:
    keys = {f"key{index}": key for index, key in enumerate(wish.ssh_keys)}
    document = {
        "uuid": wish.vm_id, "name": wish.name, "hostname": wish.name, "public_keys": keys,
    }  # fmt: skip
    return json.dumps(document, indent=1).encode()


def _network_data_json(ports: Sequence[PortWish]) -> bytes:
    links = [
        {"id": f"port{index}", "type": "phy", "ethernet_mac_address": port.mac,
         "mtu": port.mtu_bytes}
        for index, port in enumerate(ports)
    ]  # fmt: skip
    networks: list[dict[str, str | list[dict[str, str]]]] = []
    for index, port in enumerate(ports):
        if not port.addresses:
            networks.append({"id": f"net{index}", "link": f"port{index}", "type": "ipv4_dhcp"})
        for address in _with_prefix(port):
            interface = ipaddress.ip_interface(address)
            anywhere = "0.0.0.0" if interface.version == 4 else "::"
            routes = (
                [{"network": anywhere, "netmask": anywhere, "gateway": port.gateway}]
                if port.gateway
                else []
            )
            networks.append(
                {
                    "id": f"net{index}",
                    "link": f"port{index}",
                    "type": f"ipv{interface.version}",
                    "ip_address": str(interface.ip),
                    "netmask": str(interface.netmask),
                    "routes": routes,
                }
            )
    return json.dumps({"links": links, "networks": networks, "services": []}, indent=1).encode()
