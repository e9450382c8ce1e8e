"""Volumes of hosts that are no VMs: who may log in, and by which paths.

A host has a path to each copy's IO-node. By one it reads and writes: there the head is. The others
show the disk and serve once the head has come there, which the host hears by ALUA (SPC-4 §5.15).
"""

from dataclasses import dataclass, field, replace
from typing import Final

from nuage.errors import Conflict, InvalidRequest
from nuage.iaas.index import FederationIndex
from nuage.iaas.keys import require_key
from nuage.iaas.operations import Operation, OperationTable, iaas_scope
from nuage.iaas.site import Site
from nuage.iaas.volumes import NameVolume, require_free, volume_home, volume_of
from nuage.ids import NodeId, SiteId, new_id
from nuage.model.infrastructure import portal_group_of
from nuage.model.status import NodeStatus
from nuage.model.volume import OutsideHost, Volume, VolumeState
from nuage.trust.permissions import Principal

INITIATOR_CHARS_MAX: Final = 223  # RFC 7143 §4.2.7.1
INITIATOR_PREFIXES: Final = ("iqn.", "eui.", "naa.")


@dataclass(frozen=True, slots=True)
class AttachHost:
    """Give a volume to a host outside, by the name of its iSCSI initiator.

    `mutual`: the target shall prove itself to the host, too. A host that has the volume gets it so
    by asking again, and is without it again under its next attachment.
    """

    iaas: str
    volume: str
    initiator: str
    mutual: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePath:
    """A way to a volume; `state`: ``active/optimized``, ``standby``, ``opening``, ``unreachable``.

    `portal` is "" before the node has a daemon for the IaaS; `group` is its portal group's tag.
    """

    node: NodeId
    site: SiteId
    portal: str
    group: int
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAccess:
    """How a host logs in, by one name and secret at all portals of one target.

    By `target_user` and `target_secret` the target proves itself to a host that asks; "": not.
    """

    iqn: str
    initiator: str
    user: str
    secret: str = field(repr=False)
    target_user: str
    target_secret: str = field(repr=False)
    paths: tuple[VolumePath, ...]


async def attach_host(site: Site, _principal: Principal, body: AttachHost) -> HostAccess:
    """Give a free volume to a host; one that has it already is told its login again."""
    volume = volume_of(site, body.iaas, body.volume)
    initiator = body.initiator.lower()
    is_name = initiator.startswith(INITIATOR_PREFIXES) and initiator.isascii()
    if not is_name or len(initiator) > INITIATOR_CHARS_MAX or " " in initiator:
        raise InvalidRequest(
            f"{body.initiator!r} is no iSCSI name: iqn.2026-01.org.example:host",
            field="initiator",
        )
    if volume.host is None or volume.host.initiator != initiator:
        require_free(site, volume)
        require_key(site, volume.iaas_id)
        login_id = new_id("host", site.entropy)
        host = OutsideHost(initiator=initiator, login=login_id, mutual=body.mutual)
        volume = replace(volume, host=host)
        await site.save(volume)
        text = f"{volume.name} is given to the host {initiator}"
        site.announce("volume", volume.volume_id, "attached", text)
    elif body.mutual and not volume.host.mutual:
        volume = replace(volume, host=replace(volume.host, mutual=True))
        await site.save(volume)
    login = site.host_login(volume)
    own = site.target_login(volume)
    return HostAccess(
        iqn=volume.iqn,
        initiator=initiator,
        user=login.user,
        secret=login.secret,
        target_user="" if own is None else own.user,
        target_secret="" if own is None else own.secret,
        paths=paths_of(site.index, volume),
    )


def tell_new_logins(site: Site) -> None:
    """Announce for each volume of this site that a host has: its secret is another from now on."""
    for volume in site.index.values(Volume):
        is_own = site.index.home("volume", volume.volume_id) == site.site_id
        if volume.host is None or not is_own:
            continue
        initiator = volume.host.initiator
        text = (
            f"{volume.name}: the host {initiator} logs in by another secret from now on, by the "
            "former for two more minutes; "
            f"`nuage volume attach {volume.name} --initiator {initiator}` tells it"
        )
        site.announce("volume", volume.volume_id, "host-secret", text)


async def show_paths(site: Site, _principal: Principal, body: NameVolume) -> list[VolumePath]:
    """Say by which portals a volume's host reaches it, and which of them serves now."""
    volume = volume_of(site, body.iaas, body.volume)
    if volume.host is None:
        raise Conflict(f"no host has volume {volume.name}", hint="attach it with --initiator")
    return list(paths_of(site.index, volume))


def paths_of(index: FederationIndex, volume: Volume) -> tuple[VolumePath, ...]:
    """Return the paths of a volume, that of its head first."""
    paths = []
    for place in sorted(volume.replicas, key=lambda place: place.node_id != volume.head):
        status = index.find_value(NodeStatus, place.node_id)
        state = "standby"
        if status is None or not status.connected:
            state = "unreachable"
        elif place.node_id == volume.head:
            is_open = volume.state is VolumeState.READY and volume.settled_epoch == volume.epoch
            state = "active/optimized" if is_open else "opening"
        paths.append(
            VolumePath(
                node=place.node_id,
                site=place.site_id,
                portal="" if status is None else status.portals.get(volume.iaas_id, ""),
                group=portal_group_of(place.node_id),
                state=state,
            )
        )
    return tuple(paths)


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="volume.attach-host",
            verb="POST",
            path="/v1/iaas/{iaas}/volumes/{volume}/host",
            body=AttachHost,
            result=HostAccess,
            action="volume.write",
            summary="Give a volume to a host outside, by a path to each of its copies",
            run=attach_host,
            scope=iaas_scope,
            home=volume_home,
            is_one_write=True,
        )
    )
    table.add(
        Operation(
            name="volume.paths",
            verb="GET",
            path="/v1/iaas/{iaas}/volumes/{volume}/paths",
            body=NameVolume,
            result=list[VolumePath],
            action="volume.read",
            summary="Say by which portals a volume's host reaches it, and which of them serves",
            run=show_paths,
            scope=iaas_scope,
            home=volume_home,
        )
    )
