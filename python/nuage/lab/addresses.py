"""The lab's names and addresses, worked out from the description. Pure arithmetic.

========================  =====================================================
``10.L.s.h``              site s (1 for the first), host h: edges 1 and 2,
                          controllers 10 and up, V-nodes 20 and up, IO-nodes 120
                          and up; 254 is the rack switch
``10.L.100+s.h``          the management network: the BMC of host h; PDUs 240
                          and up. Reached inside the site only: no provider
                          knows a way there
``10.L.240+p.4s+1, +2``   line of provider p to site s, a /30: provider, edge; to
                          its second edge in 244+p
``10.L.239.…``            lines between providers
``10.L.238.1, .2``        line of the first provider to the outside host, which is
                          nobody's: it stands for the internet
``198.18.L.0/24``         public addresses, which the providers route to the sites'
                          edges, the first site's first
========================  =====================================================

L is the description's `number`. These addresses exist inside the lab's namespaces only, so
two labs may use the same ones.
"""

from typing import Final

from nuage.lab.description import PROVIDERS_MAX, LabDescription, NodeDescription, PduDescription

REDFISH_PORT: Final = 443
SNMP_PORT: Final = 161
SWITCH_HOST: Final = 254
OUTSIDE: Final = "outside"  # the name of the host that is no part of the federation


def namespace_prefix(lab_name: str) -> str:
    """Return how every namespace of the lab begins; no lab's name can contain the dot."""
    return f"nuage.{lab_name}."


def namespace(lab_name: str, node_name: str) -> str:
    """Return the network namespace of a node, a switch, a provider or a site's BMCs."""
    return namespace_prefix(lab_name) + node_name


def switch_name(site: str) -> str:
    """Return the name of the site's rack switch."""
    return f"{site}-switch"


def bmc_name(site: str) -> str:
    """Return the name of the namespace on which the site's BMCs and PDUs answer."""
    return f"{site}-bmc"


def address(lab: LabDescription, node: NodeDescription) -> str:
    """Return the node's address on its site's network."""
    return f"10.{lab.number}.{node.site_number}.{node.host}"


def site_subnet(lab: LabDescription, site_number: int) -> str:
    """Return the network of a site."""
    return f"10.{lab.number}.{site_number}.0/24"


def management_subnet(lab: LabDescription, site_number: int) -> str:
    """Return the network on which BMCs and PDUs of a site answer."""
    return f"10.{lab.number}.{100 + site_number}.0/24"


def bmc_address(lab: LabDescription, device: NodeDescription | PduDescription) -> str:
    """Return the management address of a node's BMC or of a PDU."""
    return f"10.{lab.number}.{100 + device.site_number}.{device.host}"


def bmc_url(lab: LabDescription, device: NodeDescription | PduDescription) -> str:
    """Return the root of a device's Redfish service."""
    return f"https://{bmc_address(lab, device)}"


def wan_prefix(lab: LabDescription, provider: int, edge: int) -> str:
    """Return the lines of provider 1, 2, … to the sites' first or second edges."""
    return f"10.{lab.number}.{240 + PROVIDERS_MAX * (edge - 1) + provider}.0/24"


def wan_addresses(
    lab: LabDescription, site_number: int, provider: int, edge: int = 1
) -> tuple[str, str]:
    """Return (provider's, edge's) address of the line of provider 1, 2, … to a site's edge."""
    base = wan_prefix(lab, provider, edge).removesuffix("0/24")
    return f"{base}{4 * site_number + 1}", f"{base}{4 * site_number + 2}"


def peering_addresses(lab: LabDescription, left: int, right: int) -> tuple[str, str]:
    """Return the two ends of the line between providers `left` < `right`."""
    base = 4 * (8 * left + right)
    return f"10.{lab.number}.239.{base + 1}", f"10.{lab.number}.239.{base + 2}"


def outside_addresses(lab: LabDescription) -> tuple[str, str]:
    """Return (provider's, host's) address of the line to the outside host."""
    return f"10.{lab.number}.238.1", f"10.{lab.number}.238.2"


def public_prefix(lab: LabDescription) -> str:
    """Return the public addresses of the federation."""
    return f"198.18.{lab.number}.0/24"


def mac_address(lab: LabDescription, site_number: int, host: int, port: int = 0) -> str:
    """Return a locally administered MAC that tells lab, site, host and port."""
    return f"02:4e:{lab.number:02x}:{site_number:02x}:{host:02x}:{port:02x}"
