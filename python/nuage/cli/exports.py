"""`nuage volume export|import`: a volume's past as a file, whole or what changed since."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import click

from nuage.cli.moments import read_moment
from nuage.cli.paths import FILE, NEW_FILE
from nuage.cli.progress import bytes_shown
from nuage.cli.session import Session, iaas_option, pass_session
from nuage.cli.showing import inner, listed, row_of, rows_of, said
from nuage.cli.storage import volume_group
from nuage.errors import Conflict, CorruptData, Unavailable
from nuage.ids import VolumeId
from nuage.storage.exports import (
    PIECE_BYTES_MAX,
    ExportHeader,
    ExportState,
    Piece,
    begin,
    frame,
    pieces_of,
    read_header,
    read_pieces,
)
from nuage.units import SECTOR_BYTES

READY_TIMEOUT_S = 60.0
READY_POLL_S = 0.2
VIEW_SECONDS = 24 * 3600  # a long export; it is closed at its end


def _number(value: object) -> int:
    return int(str(value))


@volume_group.command("export")
@click.argument("name")
@click.argument("file", type=NEW_FILE)
@click.option("--at", "moment", default="", help="#NUMBER, @MARK, '90s ago'.  [default: now]")
@click.option("--since", default="", help="Only what changed since: #NUMBER, @MARK, '90s ago'.")
@iaas_option
@pass_session
def export_volume(
    session: Session, name: str, file: Path, moment: str, since: str, iaas: str
) -> None:
    """Write NAME, or what changed in it, to FILE; a FILE that broke off is gone on with."""
    path = session.volume_path(iaas, name)
    known = _broken_off(file)
    if known is not None and known.is_complete:
        raise Conflict(f"{file} is a whole export already", hint="name another file")
    asked = read_moment(moment) if moment else {}
    if known is not None:
        asked = {"sequence": known.header.sequence}
    view = _open_view(session, path, asked)
    try:
        if known is None:
            since_sequence = _sequence(session, path, since) if since else 0
            known = _begin(session, path, file, view, since_sequence)
        _copy_out(session, path, file, known, str(view["view"]))
    finally:
        session.client.delete(f"{path}/views", view=view["view"])
    what = f"since #{known.header.since}, " if known.header.since else ""
    click.echo(f"{name} as after write #{known.header.sequence}, {what}is in {file}")


def _open_view(session: Session, path: str, moment: dict[str, object]) -> dict[str, object]:
    body = {"seconds": VIEW_SECONDS, **moment}
    return row_of(session.client.call("POST", f"{path}/views", body))


def _sequence(session: Session, path: str, moment: str) -> int:
    view = _open_view(session, path, read_moment(moment))
    session.client.delete(f"{path}/views", view=view["view"])
    return _number(view["sequence"])


def _broken_off(file: Path) -> ExportState | None:
    """Return how far an earlier export into `file` came; what is torn at its end is cut off."""
    if not file.exists() or not file.stat().st_size:
        return None
    with file.open("r+b") as handle:
        state = read_header(handle, str(file))
        for _ in read_pieces(handle, state, str(file)):
            pass
        handle.truncate(state.end_bytes)
    return state


def _begin(
    session: Session, path: str, file: Path, view: dict[str, object], since: int
) -> ExportState:
    shown = row_of(session.client.get(path))
    volume = inner(shown, "value")
    runs = row_of(session.client.get(f"{path}/changed", view=view["view"], since=since))
    state = begin(
        ExportHeader(
            volume_id=VolumeId(str(shown["id"])),
            name=str(volume["name"]),
            size_bytes=_number(runs["size_bytes"]),
            sequence=_number(view["sequence"]),
            since=since,
            sector_bytes=_number(volume.get("sector_bytes", SECTOR_BYTES)),
        )
    )
    file.write_bytes(state.header.line())
    return state


def _copy_out(session: Session, path: str, file: Path, state: ExportState, view: str) -> None:
    runs = list(_runs(session, path, view, state))
    with (
        file.open("ab") as handle,
        bytes_shown(state.header.name, sum(length for _, length in runs)) as show_done,
    ):
        done_bytes = 0
        for offset, length in pieces_of(tuple(runs), state.next_offset):
            answer = row_of(
                session.client.get(f"{path}/data", view=view, offset=offset, length=length)
            )
            data = base64.b64decode(str(answer["data"]))
            handle.write(frame(state, Piece(offset, length, data)))
            done_bytes += length
            show_done(done_bytes)
        handle.write(frame(state, None))


def _runs(session: Session, path: str, view: str, state: ExportState) -> Iterator[tuple[int, int]]:
    after = 0
    while True:
        part = row_of(
            session.client.get(f"{path}/changed", view=view, since=state.header.since, after=after)
        )
        for run in listed(part, "runs"):
            offset, length = (_number(value) for value in run)
            yield offset, length
            after = offset + length
        if part["complete"]:
            return


def _done_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.imported")


@volume_group.command("import")
@click.argument("file", type=FILE)
@click.argument("name")
@iaas_option
@pass_session
def import_volume(session: Session, file: Path, name: str, iaas: str) -> None:
    """Make volume NAME of FILE, or bring it up to FILE when that holds what changed since."""
    path = session.volume_path(iaas, name)
    with file.open("rb") as handle:  # all of it is checked before anything is written
        state = read_header(handle, str(file))
        total = sum(piece.length for piece in read_pieces(handle, state, str(file)))
    if not state.is_complete:
        raise CorruptData("the export broke off; export it again to go on", where=str(file))
    header = state.header
    begun = _resumed(file, header, name)
    if begun is None:
        if header.since:
            _require_base(session, path, header)
        else:
            body = {
                "name": name,
                "size_bytes": header.size_bytes,
                "sector_bytes": header.sector_bytes,
            }
            session.client.call("POST", f"/v1/iaas/{session.require_iaas(iaas)}/volumes", body)
        begun = 0
        _note(file, header, name, begun)
    _wait_until_ready(session, path, name)
    with file.open("rb") as handle, bytes_shown(name, total) as show_done:
        state, done_bytes = read_header(handle, str(file)), 0
        for piece in read_pieces(handle, state, str(file)):
            if piece.offset >= begun:
                _note(file, header, name, piece.offset)  # first: from here on it is not as it was
                _write(session, path, piece)
            done_bytes += piece.length
            show_done(done_bytes)
    mark = {"name": _mark_of(header.volume_id, header.sequence)}
    answer = session.client.call("POST", f"{path}/marks", mark)
    _done_file(file).unlink(missing_ok=True)
    said(session, answer, f"{name} is {header.name} as after its write #{header.sequence}")


def _mark_of(volume_id: str, sequence: int) -> str:
    return f"imported {volume_id} #{sequence}"


def _note(file: Path, header: ExportHeader, name: str, offset: int) -> None:
    """Keep beside the file up to where an import has come."""
    _done_file(file).write_text(f"{name} {header.sequence} {offset}")


def _resumed(file: Path, header: ExportHeader, name: str) -> int | None:
    """Return the offset of the last piece begun by an import that broke off, else None."""
    try:
        target, sequence, offset = _done_file(file).read_text().split()
    except (OSError, ValueError):
        return None
    return int(offset) if (target, int(sequence)) == (name, header.sequence) else None


def _require_base(session: Session, path: str, header: ExportHeader) -> None:
    """Refuse what changed since a moment that the volume is not at."""
    wanted = _mark_of(header.volume_id, header.since)
    history = row_of(session.client.get(f"{path}/history", count=1))
    marks = {str(m["name"]): _number(m["sequence"]) for m in rows_of(history["marks"])}
    later = row_of(session.client.get(f"{path}/history", after=marks.get(wanted, 0), count=1000))
    if wanted not in marks or any(g["blocks"] for g in rows_of(later["groups"])):
        raise Conflict(
            f"this export begins at write #{header.since}: the volume is not at it",
            hint="import the exports in their order, and use the volume after the last",
        )


def _wait_until_ready(session: Session, path: str, name: str) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while True:
        volume = inner(row_of(session.client.get(path)), "value")
        if volume["state"] == "ready":
            return
        if volume["state"] == "failed" or time.monotonic() > deadline_s:
            raise Unavailable(f"volume {name} is {volume['state']}: {volume['failure']}")
        time.sleep(READY_POLL_S)  # noqa: TID251 - a person waits at a terminal


def _write(session: Session, path: str, piece: Piece) -> None:
    if piece.data is not None:
        body: dict[str, object] = {
            "offset": piece.offset, "data": base64.b64encode(piece.data).decode(), "flush": True,
        }  # fmt: skip
        session.client.call("PUT", f"{path}/data", body)
        return
    for offset, length in pieces_of(((piece.offset, piece.length),), 0):
        assert length <= PIECE_BYTES_MAX
        zeros = {"offset": offset, "zero_bytes": length, "flush": True}
        session.client.call("PUT", f"{path}/data", zeros)
