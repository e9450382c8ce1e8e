"""Operations and bytes a second, and what a contract says of disks, as people write them."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import click

from nuage.cli.showing import Row, inner
from nuage.cli.vms import size
from nuage.errors import InvalidRequest
from nuage.units import format_size, parse_size

F = TypeVar("F", bound=Callable[..., object])

_OPTIONS = (
    click.option(
        "--disk-class",
        type=click.Choice(["nvme", "ssd", "hdd", "any"]),
        default=None,
        help="Journals lie on disks of this class alone.  [default: the fastest with room]",
    ),
    click.option(
        "--disk-reserve",
        default=None,
        metavar="OPS/SIZE",
        help="Kept for it on each disk, a second: 2000/32M.",
    ),
    click.option(
        "--disk-limit",
        default=None,
        metavar="OPS/SIZE",
        help="The most it may take of each disk, a second.",
    ),
    click.option(
        "--disk-weight",
        type=click.IntRange(0, 1000),
        default=None,
        metavar="N",
        help="Its part of what nobody has reserved.  [default: gold 8, silver 4, bronze 1]",
    ),
)


def disk_options(command: F) -> F:
    """Give a command the options that make a contract's disk rule."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def disk_rule(options: Mapping[str, object], known: Row | None = None) -> Row:
    """Return a contract's disk rule: what the options say, else as it is known."""
    rule = dict(known or {})
    for option, key in (("disk_reserve", "reservation"), ("disk_limit", "limit")):
        if options[option] is not None:
            rule[key] = rate(str(options[option]))
    if options["disk_weight"] is not None:
        rule["weight"] = options["disk_weight"]
    if options["disk_class"] is not None:
        rule["disk_class"] = None if options["disk_class"] == "any" else options["disk_class"]
    return rule


def rate(text: str) -> dict[str, int]:
    """Return the operations and bytes a second that ``2000/32M`` stands for; ``0``: none."""
    operations, _, bandwidth = (part.strip() for part in text.partition("/"))
    try:
        return {
            "operations_per_s": int(operations or 0),
            "bytes_per_s": parse_size(bandwidth) if bandwidth else 0,
        }
    except ValueError:
        raise InvalidRequest(
            f"{text!r} is no rate", field="disk", hint="2000/32M: operations and bytes a second"
        ) from None


def rate_line(limits: Mapping[str, object]) -> str:
    """Say operations and bytes a second; "" is no limit."""
    operations, bytes_per_s = int(str(limits["operations_per_s"])), int(str(limits["bytes_per_s"]))
    parts = [f"{operations} operations/s"] if operations else []
    parts += [f"{format_size(bytes_per_s)}/s"] if bytes_per_s else []
    return ", ".join(parts)


def disk_parts(disk: Row) -> list[str]:
    """Say a contract's disk rule in a few words each."""
    parts = [f"on {disk['disk_class']} disks"] if disk["disk_class"] else []
    for key, word in (("reservation", "reserves"), ("limit", "takes at most")):
        told = rate_line(inner(disk, key))
        parts += [f"{word} {told} of a disk"] if told else []
    return parts + ([f"disk weight {disk['weight']}"] if disk["weight"] else [])


_JOURNAL_OPTIONS = (
    click.option(
        "--journal-hours",
        type=click.FloatRange(min=0),
        default=None,
        help="How far back volumes can be read.  [default: 24, or as before]",
    ),
    click.option(
        "--journal-size",
        default=None,
        metavar="SIZE",
        help="What a volume's history may take; the oldest leaves earlier then."
        "  [default: 64G, or as before]",
    ),
    click.option(
        "--journal-strict/--no-journal-strict",
        default=None,
        help="When it may take no more: refuse writes, or let the oldest go."
        "  [default: let it go, or as before]",
    ),
)


def journal_options(command: F) -> F:
    """Give a command the options that change how much history a contract keeps."""
    for option in reversed(_JOURNAL_OPTIONS):
        command = option(command)
    return command


def journal_rule(options: Mapping[str, object], known: Row) -> Row:
    """Return a contract's journal rule: what the options say, else as it is known."""
    rule = dict(known)
    if options["journal_hours"] is not None:
        rule["window_s"] = int(float(str(options["journal_hours"])) * 3600)
    if options["journal_size"] is not None:
        rule["window_bytes"] = size(str(options["journal_size"]))
    if options["journal_strict"] is not None:
        rule["strict"] = options["journal_strict"]
    return rule
