"""Tables, sizes and ages for people; JSON for programs."""

import json
import time
from collections.abc import Iterable, Sequence
from typing import cast

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nuage.cli.session import Session

Row = dict[str, object]
WHOLE_CHARS = 20  # of a first column that leaves the others room on 80
UNFOLDED = 10_000  # who reads a pipe wants a row a line
STATE_COLOURS = {
    "running": "green", "ready": "green", "on": "green", "yes": "green",
    "stopped": "dim", "failed": "red", "lost": "red", "unknown": "red", "no": "red",
    "migrating": "yellow", "starting": "yellow", "creating": "yellow", "placing": "yellow",
}  # fmt: skip


def rows_of(answer: object) -> list[Row]:
    """Return a list answer as rows."""
    return cast(list[Row], answer)


def row_of(answer: object) -> Row:
    """Return an object answer as a row."""
    return cast(Row, answer)


def listed(row: Row, key: str) -> list[Row]:
    """Return a nested list of a row; empty when there is none."""
    return cast(list[Row], row.get(key) or [])


def inner(row: Row, key: str) -> Row:
    """Return a nested object of a row."""
    return cast(Row, row[key])


def print_json(answer: object) -> None:
    """Print an answer as the API gave it."""
    click.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def answered(session: Session, answer: object) -> bool:
    """Print an answer as JSON if that was asked for; tell whether it was: nothing more is said."""
    if session.as_json:
        print_json(answer)
    return session.as_json


def said(session: Session, answer: object, text: str) -> None:
    """Print an answer as JSON if that was asked for, else `text`, which says it to people."""
    if not answered(session, answer):
        click.echo(text)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table, or `empty` when there is nothing."""
    listed = [[str(cell) for cell in row] for row in rows]
    if not listed:
        click.echo(empty)
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    is_short = max(len(row[0]) for row in listed) <= WHOLE_CHARS
    for number, header in enumerate(headers):  # a name that is to be copied stays in one piece
        table.add_column(header, overflow="fold", no_wrap=number == 0 and is_short)
    for row in listed:
        table.add_row(*(_coloured(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = UNFOLDED
    console.print(table)


def _coloured(cell: str) -> str:
    colour = STATE_COLOURS.get(cell)
    return f"[{colour}]{cell}[/{colour}]" if colour else cell.replace("[", "\\[")


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print one thing's facts a line each; those that say nothing are left out."""
    said = [(name, fact) for name, fact in facts if fact not in ("", None, [])]
    width = max((len(name) for name, _ in said), default=0)
    for name, fact in said:
        click.echo(f"{name:<{width}}  {fact}")


def show(
    session: Session,
    answer: object,
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    empty: str,
) -> None:
    """Print an answer as JSON or as a table, as the caller asked."""
    if not answered(session, answer):
        print_table(headers, rows, empty=empty)


def day(seconds: object) -> str:
    """Return a moment for people, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(str(seconds))))


def age(seconds: object) -> str:
    """Return an age for people."""
    if seconds is None:
        return "never heard"
    value = float(cast(float, seconds))
    for limit, unit, divisor in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if value < limit:
            return f"{value / divisor:.0f} {unit}"
    return f"{value / 86_400:.0f} d"
