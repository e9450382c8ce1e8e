"""Use cases on views: a past moment of a volume, shown read-only as an iSCSI target of its own.

A view belongs to the daemon that shows it and to nobody's catalogue: it has one initiator, whose
secret is told once, and ends by itself, with its head, or when it is closed. The daemon bounds how
many a volume has.
"""

from dataclasses import dataclass

from nuage.errors import InvalidRequest
from nuage.iaas.operations import Operation, OperationTable, iaas_scope
from nuage.iaas.past import ask_head, find_moment
from nuage.iaas.site import Site
from nuage.iaas.volumes import NameVolume, volume_home, volume_of
from nuage.ids import new_id
from nuage.model.history import (
    AskCloseView,
    AskView,
    AskViews,
    Moment,
    OpenedView,
    VolumeViews,
)
from nuage.trust.permissions import Principal
from nuage.trust.secrets import new_secret

VIEW_METHOD = "volume.view"
VIEWS_METHOD = "volume.views"
CLOSE_VIEW_METHOD = "volume.close-view"
SECONDS_MAX = 7 * 86_400  # an open view holds history back


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewVolume:
    """Show a past moment of a volume for `seconds`."""

    iaas: str
    volume: str
    sequence: int | None = None
    time_s: float | None = None
    mark: str = ""
    seconds: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseView:
    """End a view before its time."""

    iaas: str
    volume: str
    view: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownView:
    """A view, and how to log in to it; the secret is told this once."""

    view: str
    sequence: int
    portal: str
    iqn: str
    user: str
    secret: str
    until_s: float


async def view_volume(site: Site, _principal: Principal, body: ViewVolume) -> ShownView:
    """Show a past moment of a volume, read-only, to whoever asked."""
    volume = volume_of(site, body.iaas, body.volume)
    if not 1 <= body.seconds <= SECONDS_MAX:
        raise InvalidRequest(f"a view lasts 1 to {SECONDS_MAX} seconds", field="seconds")
    found = await find_moment(site, volume, body.sequence, body.time_s, body.mark)
    name = new_id("view", site.entropy)
    secret = new_secret(site.entropy)
    iqn = f"{volume.iqn}:{name}"
    opened = await ask_head(
        site,
        volume,
        VIEW_METHOD,
        AskView(
            iaas_id=volume.iaas_id,
            volume_id=volume.volume_id,
            moment=Moment(sequence=found.sequence),
            iqn=iqn,
            user=name,
            secret=secret,
            seconds=body.seconds,
        ),
        OpenedView,
    )
    text = f"{volume.name} is shown as after write {opened.sequence}, for {body.seconds} s"
    site.announce("volume", volume.volume_id, "viewed", text)
    return ShownView(
        view=opened.view,
        sequence=opened.sequence,
        portal=opened.portal,
        iqn=iqn,
        user=name,
        secret=secret,
        until_s=site.clock.now_s() + body.seconds,
    )


async def list_views(site: Site, _principal: Principal, body: NameVolume) -> VolumeViews:
    """Ask the head which views of a volume are open."""
    volume = volume_of(site, body.iaas, body.volume)
    ask = AskViews(iaas_id=volume.iaas_id, volume_id=volume.volume_id)
    return await ask_head(site, volume, VIEWS_METHOD, ask, VolumeViews)


async def close_view(site: Site, _principal: Principal, body: CloseView) -> None:
    """End a view."""
    volume = volume_of(site, body.iaas, body.volume)
    if not body.view.startswith(f"{volume.volume_id}@"):
        raise InvalidRequest(f"{body.view} is no view of {volume.name}", field="view")
    ask = AskCloseView(iaas_id=volume.iaas_id, view=body.view)
    await ask_head(site, volume, CLOSE_VIEW_METHOD, ask, type(None))


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    path = "/v1/iaas/{iaas}/volumes/{volume}/views"
    table.add(
        Operation(
            name="volume.view",
            verb="POST",
            path=path,
            body=ViewVolume,
            result=ShownView,
            action="volume.write",
            summary="Show a past moment of a volume, read-only, as a disk of its own",
            run=view_volume,
            scope=iaas_scope,
            home=volume_home,
            status=201,
        )
    )
    table.add(
        Operation(
            name="volume.views",
            verb="GET",
            path=path,
            body=NameVolume,
            result=VolumeViews,
            action="volume.read",
            summary="List the views of a volume that are open, and what they hold back",
            run=list_views,
            scope=iaas_scope,
            home=volume_home,
        )
    )
    table.add(
        Operation(
            name="volume.close-view",
            verb="DELETE",
            path=path,
            body=CloseView,
            result=type(None),
            action="volume.write",
            summary="End a view before its time",
            run=close_view,
            scope=iaas_scope,
            home=volume_home,
        )
    )
