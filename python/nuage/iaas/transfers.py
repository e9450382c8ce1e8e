"""Use cases that move a volume piece by piece: out of a view for an export, in for an import.

Each piece is one request, so that whoever exports or imports can go on where it broke off; the
stream itself is `storage.exports`, and is put together and checked where the file is.
"""

from dataclasses import dataclass, field

from nuage.errors import InvalidRequest
from nuage.iaas.operations import Operation, OperationTable, iaas_scope
from nuage.iaas.past import ask_head
from nuage.iaas.site import Site
from nuage.iaas.volumes import require_free, volume_home, volume_of
from nuage.ids import IaasId, VolumeId
from nuage.ionode.port import ChangedRuns
from nuage.model.volume import Volume
from nuage.storage.exports import PIECE_BYTES_MAX
from nuage.trust.permissions import Principal

CHANGED_METHOD = "volume.changed"
READ_METHOD = "volume.read-view"
WRITE_METHOD = "volume.write"
ASK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadChanged:
    """Ask where a view differs from the state after write `since`; 0: from nothing."""

    iaas: str
    volume: str
    view: str
    since: int = 0
    after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadView:
    """Ask for a piece of a view."""

    iaas: str
    volume: str
    view: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePiece:
    """Write a piece into a volume that nobody uses; the last of a stream is made durable."""

    iaas: str
    volume: str
    offset: int
    data: bytes = field(default=b"", repr=False)
    zero_bytes: int = 0
    flush: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AskChanged:
    """A controller asks an IO-node where a view differs."""

    iaas_id: IaasId
    view: str
    since: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPiece:
    """A controller asks an IO-node for a piece of a view."""

    iaas_id: IaasId
    view: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AskWrite:
    """A controller has an IO-node write a piece."""

    iaas_id: IaasId
    volume_id: VolumeId
    offset: int
    data: bytes = field(repr=False)
    flush: bool = False


@dataclass(frozen=True, slots=True)
class PieceRead:
    """A piece of a view."""

    data: bytes = field(repr=False)


def _require_view(volume: Volume, view: str) -> None:
    if not view.startswith(f"{volume.volume_id}@"):
        raise InvalidRequest(f"{view} is no view of {volume.name}", field="view")


async def read_changed(site: Site, _principal: Principal, body: ReadChanged) -> ChangedRuns:
    """Tell where a view differs from an earlier state."""
    volume = volume_of(site, body.iaas, body.volume)
    _require_view(volume, body.view)
    ask = AskChanged(iaas_id=volume.iaas_id, view=body.view, since=body.since, after=body.after)
    return await ask_head(site, volume, CHANGED_METHOD, ask, ChangedRuns)


async def read_view(site: Site, _principal: Principal, body: ReadView) -> PieceRead:
    """Return a piece of a view."""
    volume = volume_of(site, body.iaas, body.volume)
    _require_view(volume, body.view)
    if not 0 < body.length <= PIECE_BYTES_MAX:
        raise InvalidRequest(f"a piece has 1 to {PIECE_BYTES_MAX} bytes", field="length")
    ask = AskPiece(iaas_id=volume.iaas_id, view=body.view, offset=body.offset, length=body.length)
    return await ask_head(site, volume, READ_METHOD, ask, PieceRead)


async def write_piece(site: Site, _principal: Principal, body: WritePiece) -> None:
    """Write a piece of an import."""
    volume = volume_of(site, body.iaas, body.volume)
    require_free(site, volume)
    if bool(body.data) == bool(body.zero_bytes) or body.zero_bytes > PIECE_BYTES_MAX:
        raise InvalidRequest("give data, or a number of zeros", field="data")
    if len(body.data) > PIECE_BYTES_MAX or body.offset < 0 or body.zero_bytes < 0:
        raise InvalidRequest(f"a piece has 1 to {PIECE_BYTES_MAX} bytes", field="data")
    ask = AskWrite(
        iaas_id=volume.iaas_id,
        volume_id=volume.volume_id,
        offset=body.offset,
        data=body.data or bytes(body.zero_bytes),
        flush=body.flush,
    )
    await ask_head(site, volume, WRITE_METHOD, ask, type(None))


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    path = "/v1/iaas/{iaas}/volumes/{volume}"
    table.add(
        Operation(
            name="volume.changed",
            verb="GET",
            path=path + "/changed",
            body=ReadChanged,
            result=ChangedRuns,
            action="volume.write",
            summary="Tell where a view differs from an earlier state",
            run=read_changed,
            scope=iaas_scope,
            home=volume_home,
        )
    )
    table.add(
        Operation(
            name="volume.read-view",
            verb="GET",
            path=path + "/data",
            body=ReadView,
            result=PieceRead,
            action="volume.write",
            summary="Read a piece of a view",
            run=read_view,
            scope=iaas_scope,
            home=volume_home,
        )
    )
    table.add(
        Operation(
            name="volume.write-piece",
            verb="PUT",
            path=path + "/data",
            body=WritePiece,
            result=type(None),
            action="volume.write",
            summary="Write a piece into a volume that nobody uses",
            run=write_piece,
            scope=iaas_scope,
            home=volume_home,
        )
    )
