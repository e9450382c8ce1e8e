"""Recorded load: VMs with their begin, their end and their size, as CSV.

::

    begin_h,end_h,vcpu_count,memory_mib
    0,31.5,2,4096                     hours from the trace's begin; an empty end: it stays

What `nuage simulate fleet --export` writes of the load that it made up, and what `nuage simulate
export` writes of the VMs that a federation runs, is read back by `--trace`.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from math import inf, isfinite
from pathlib import Path
from typing import Final

from nuage.errors import InvalidRequest

COLUMNS: Final = ("begin_h", "end_h", "vcpu_count", "memory_mib")
ROWS_MAX: Final = 10_000_000
VCPUS_MAX: Final = 128
MEMORY_MIB_MAX: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class VmSpan:
    """A VM of a trace, hours from its begin; `end_h` may be infinite."""

    begin_h: float
    end_h: float
    vcpu_count: int
    memory_mib: int


def read_trace(path: Path) -> tuple[VmSpan, ...]:
    """Return a trace's VMs by begin, in the file's order where that is the same.

    Raises:
        InvalidRequest: the file is no such CSV; the line is named.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise InvalidRequest(
                    f"{path} begins with {','.join(COLUMNS)}, not {rows.fieldnames}", field="trace"
                )
            spans: list[VmSpan] = []
            for row in rows:
                if len(spans) >= ROWS_MAX:
                    raise InvalidRequest(f"{path} has over {ROWS_MAX:,} VMs", field="trace")
                spans.append(_span(row, f"{path}:{rows.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"{path}: {error}", field="trace") from error
    if not spans:
        raise InvalidRequest(f"{path} holds no VM", field="trace")
    return tuple(sorted(spans, key=lambda span: span.begin_h))


def to_csv(spans: Iterable[VmSpan]) -> str:
    """Return VMs as `read_trace` reads them; floats in full, so nothing is lost on the way."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for span in spans:
        end = "" if span.end_h == inf else repr(span.end_h)
        writer.writerow((repr(span.begin_h), end, span.vcpu_count, span.memory_mib))
    return out.getvalue()


def _span(row: dict[str, str | None], where: str) -> VmSpan:
    try:
        begin_h = float(row["begin_h"] or "")
        end_h = float(row["end_h"]) if row["end_h"] else inf
        span = VmSpan(begin_h, end_h, int(row["vcpu_count"] or ""), int(row["memory_mib"] or ""))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{where}: {error}", field="trace") from None
    if not (isfinite(begin_h) and 0.0 <= begin_h < end_h):
        raise InvalidRequest(f"{where}: a VM ends after it begins, at 0 or later", field="trace")
    if not (1 <= span.vcpu_count <= VCPUS_MAX and 1 <= span.memory_mib <= MEMORY_MIB_MAX):
        raise InvalidRequest(f"{where}: not the size of a VM", field="trace")
    return span
