"""Several volumes at one marked instant: all are looked at first, then each is acted on."""

from collections.abc import Callable
from dataclasses import dataclass

from nuage.cli.session import Session
from nuage.cli.showing import inner, row_of, rows_of
from nuage.errors import Conflict, InvalidRequest, NuageError


@dataclass(frozen=True, slots=True)
class Instant:
    """The write that one instant is in one volume."""

    volume: str
    sequence: int


def marked_instant(session: Session, volumes: str, names: list[str], moment: str) -> list[Instant]:
    """Return where each volume was at the last instant that was marked so in all of them.

    Marks of one name that were made by several calls are not one instant: their ids differ.

    Raises:
        InvalidRequest: the moment is no mark, or a volume is named twice.
        Conflict: there is no such instant.
    """
    mark = moment.strip().removeprefix("@")
    if not moment.strip().startswith("@") or not mark:
        hint = "nuage volume mark NAME MARK --with OTHER, then @MARK"
        raise InvalidRequest("several volumes have a mark in common only", field="with", hint=hint)
    if len(set(names)) < len(names):
        raise InvalidRequest("a volume is named twice", field="with")
    marked = [_marked(session, f"{volumes}/{name}", mark) for name in names]
    common = set.intersection(*(set(sequences) for sequences in marked))
    if not common:
        without = [name for name, found in zip(names, marked, strict=True) if not found]
        lacking = f"{', '.join(without)} has none" if without else "they were marked one by one"
        raise Conflict(
            f"no mark {mark!r} is one instant of {', '.join(names)}: {lacking}",
            hint="nothing was done; nuage volume history NAME shows the marks of each",
        )
    last = max(common, key=lambda mark_id: marked[0][mark_id])
    return [Instant(name, found[last]) for name, found in zip(names, marked, strict=True)]


def _marked(session: Session, path: str, mark: str) -> dict[object, int]:
    """Return the writes that a volume's marks of this name are, by the marks' ids."""
    history = row_of(session.client.get(f"{path}/history", count=1))
    found = [row for row in rows_of(history["marks"]) if row["name"] == mark]
    return {row["mark_id"]: int(str(row["sequence"])) for row in found}


def require_stopped(session: Session, volumes: str, names: list[str]) -> None:
    """Refuse while a VM that is not stopped uses one of the volumes.

    Raises:
        Conflict: one does.
    """
    machines = volumes.removesuffix("volumes") + "vms"
    states = {row["id"]: inner(row, "value") for row in rows_of(session.client.get(machines))}
    for name in names:
        volume = inner(row_of(session.client.get(f"{volumes}/{name}")), "value")
        vm = states.get(volume["vm_id"])
        if vm is not None and vm["state"] != "stopped":
            raise Conflict(
                f"{vm['name']} is {vm['state']} and uses {name}; nothing was done",
                hint=f"nuage vm stop {vm['name']}, roll back, then start it again",
            )


def is_cloned(session: Session, volumes: str, instant: Instant, clone: str) -> bool:
    """Return whether the clone is there already; before anything is done, and on a repeat.

    Raises:
        Conflict: the name is taken by something else.
    """
    known = (inner(row, "value") for row in rows_of(session.client.get(volumes)))
    there = next((volume for volume in known if volume["name"] == clone), None)
    if there is None:
        return False
    source = row_of(session.client.get(f"{volumes}/{instant.volume}"))["id"]
    origin = there["origin"]
    if isinstance(origin, dict) and origin["volume_id"] == source:
        moment = row_of(origin["moment"])
        if moment["sequence"] == instant.sequence:
            return True
    raise Conflict(f"there is a volume {clone} that is no such clone; nothing was done")


def act_on_each(instants: list[Instant], act: Callable[[Instant], None]) -> None:
    """Act on one volume after the other.

    Raises:
        Conflict: one refused or did not answer; the message tells what was done and what was not.
    """
    for number, instant in enumerate(instants):
        try:
            act(instant)
        except NuageError as error:
            done = ", ".join(i.volume for i in instants[:number]) or "none"
            left = ", ".join(i.volume for i in instants[number + 1 :]) or "none"
            raise Conflict(
                f"{instant.volume}: {error.message}; done before it: {done}; not begun: {left}",
                hint=error.hint or "the same command, given again, does the rest",
            ) from error
