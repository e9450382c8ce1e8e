"""Quotas of a contract, as people write and read them."""

from collections.abc import Callable
from typing import Final, TypeVar

import click

from nuage.cli.showing import Row, rows_of
from nuage.errors import InvalidRequest
from nuage.units import MIB, format_size, parse_size

F = TypeVar("F", bound=Callable[..., object])

# What people call it: the contract's field, and the bytes in one of its units (0: a count).
RESOURCES: Final = {
    "vms": ("vm_count", 0),
    "vcpus": ("vcpu_count", 0),
    "memory": ("memory_mib", MIB),
    "volumes": ("volume_bytes", 1),
    "addresses": ("address_count", 0),
}
TOLD_IN: Final = {"MiB of memory": ("memory", MIB), "bytes of volumes": ("volumes", 1)}


def quota_option(command: F) -> F:
    """Give a command the option that sets quotas."""
    option = click.option(
        "--quota", multiple=True, metavar="RESOURCE=LIMIT",
        help="The most it may have, over all sites: vms=10, vcpus=40, memory=64G, volumes=1T,"
        " addresses=2; repeat.",
    )  # fmt: skip
    return option(command)


def quotas(texts: object, known: Row | None = None) -> Row:
    """Return a contract's quotas: what `texts` say, else as they are known.

    Raises:
        InvalidRequest: a text is no RESOURCE=LIMIT.
    """
    quota = dict(known or {})
    for text in map(str, rows_of(texts)):
        resource, _, limit = text.partition("=")
        try:
            name, unit_bytes = RESOURCES[resource]
            quota[name] = parse_size(limit) // unit_bytes if unit_bytes else int(limit)
        except (KeyError, ValueError):
            raise InvalidRequest(
                f"{text!r} is no quota",
                field="quota",
                hint=f"there are {', '.join(RESOURCES)}: vms=10, memory=64G",
            ) from None
    return quota


def told_quota(row: Row) -> tuple[object, object, object]:
    """Return resource, use and limit of an answer's row, in units that are read."""
    resource, unit_bytes = TOLD_IN.get(str(row["resource"]), (row["resource"], 0))
    used, limit = int(str(row["used"])), int(str(row["limit"]))
    if not unit_bytes:
        return resource, used, limit
    return resource, format_size(used * unit_bytes), format_size(limit * unit_bytes)
