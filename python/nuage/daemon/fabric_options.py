"""Which RBridge a process is: from its TOML file to what `daemon.fabric` is made with."""

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from nuage.daemon.configuration import EdgeConfiguration, VnodeConfiguration
from nuage.errors import InvalidRequest
from nuage.ids import NodeId, SiteId
from nuage.model.infrastructure import ProviderLine
from nuage.network.cable import NO_CABLES, Cabling, cabling_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricOptions:
    """Which RBridge this is and where it keeps its memory. `plane`: auto, kernel or software."""

    node_id: NodeId
    site_id: SiteId
    address: str
    state_dir: Path
    private_key: str = field(default="", repr=False)
    plane: str = "auto"
    is_edge: bool = False
    lines: tuple[str, ...] = ()
    cabling: Cabling = NO_CABLES


def fabric_options_of(
    configuration: VnodeConfiguration | EdgeConfiguration, private_key: str = ""
) -> FabricOptions:
    """Return what a configuration says; an edge has a `private_key` for its trunks.

    Raises:
        InvalidRequest: a line or a cable is not written as it must be.
    """
    lines: tuple[ProviderLine, ...] = ()
    if isinstance(configuration, EdgeConfiguration):
        lines = lines_of(configuration)
    return FabricOptions(
        node_id=configuration.node.node_id,
        site_id=configuration.node.site_id,
        address=configuration.node.address,
        state_dir=configuration.state_dir,
        private_key=private_key,
        plane=configuration.plane,
        is_edge=isinstance(configuration, EdgeConfiguration),
        lines=tuple(line.address for line in lines),
        cabling=cabling_of(configuration.cables, xdp=configuration.cable_xdp),
    )


def lines_of(configuration: EdgeConfiguration) -> tuple[ProviderLine, ...]:
    """Return an edge's lines; each is written ``provider=address``.

    Raises:
        InvalidRequest: one is not.
    """
    lines = []
    for text in configuration.providers:
        provider, _, address = text.partition("=")
        try:
            ip_address(address)
        except ValueError:
            raise InvalidRequest(f"{text!r} is not provider=address", field="providers") from None
        lines.append(
            ProviderLine(
                provider,
                address,
                mtu_bytes=configuration.line_mtu_bytes,
                mbit=configuration.line_mbit,
            )
        )
    return tuple(lines)
