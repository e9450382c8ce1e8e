"""Some rows of a Local Agent's table as the columns that a policy scores, and the best of them.

A column is made when it is first read, for the rows asked alone: in a site of thousands of nodes
mostly for the one or two that changed since the last request.
"""

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Final, TypeVar, overload

import numpy as np

from nuage.placement.columns import (
    COLUMN_NAMES,
    DERIVED_COLUMNS,
    MEASURED_COLUMNS,
    FloatArray,
    IndexArray,
)
from nuage.placement.table import NodeTable

if TYPE_CHECKING:
    from nuage.placement.local_agent import SiteConditions

LEADERS_MAX: Final = 256  # of which a bid tells sixteen: so many may change before a search
_WATTS_TO_MW: Final = 1e6
T = TypeVar("T")


class Picked(Sequence[T]):
    """Some of a sequence's values, fetched when they are looked at."""

    def __init__(self, values: Sequence[T], rows: IndexArray) -> None:
        self._values = values
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> "Picked[T]": ...

    def __getitem__(self, index: int | slice) -> "T | Picked[T]":
        if isinstance(index, slice):
            return Picked(self._values, self._rows[index])
        return self._values[int(self._rows[index])]


class RowColumns(Mapping[str, FloatArray]):
    """Columns of some rows for VMs of `vcpu_count`, SeDs' own ones too."""

    def __init__(
        self, table: NodeTable, here: "SiteConditions", vcpu_count: int, rows: IndexArray,
        now_s: float,
    ) -> None:  # fmt: skip
        self._table = table
        self._here = here
        self._vcpu_count = vcpu_count
        self._rows = rows
        self._now_s = now_s
        self._made: dict[str, FloatArray] = {}

    def __getitem__(self, name: str) -> FloatArray:
        column = self._made.get(name)
        if column is None:
            column = self._measured(name)
            if column is None:
                raise KeyError(name)
            self._made[name] = column
        return column

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def block(self) -> FloatArray:
        """Return the columns that every node has, `(columns, rows)`, in their order."""
        block = np.empty((len(COLUMN_NAMES), len(self._rows)))
        self._table.measured_block(self._rows, self._now_s, block)
        for index, name in enumerate(DERIVED_COLUMNS[1:], start=len(MEASURED_COLUMNS) + 1):
            block[index] = self._derived(name)
        return block

    def _names(self) -> tuple[str, ...]:
        vectors = self._table.vectors if self._table.extra_count else ()
        return (*COLUMN_NAMES, *{name: None for vector in vectors for name in vector.extra})

    def _measured(self, name: str) -> FloatArray | None:
        table, rows = self._table, self._rows
        if name == "power_age_s":
            return table.power_age_s(rows, self._now_s)
        column = table.measured_column(name, rows)
        if column is None:
            derived = self._derived(name)
            column = np.full(len(rows), derived) if isinstance(derived, float) else derived
        if column is None and table.extra_count:
            extras = [table.vectors[row].extra for row in rows.tolist()]
            if any(name in extra for extra in extras):
                column = np.array([extra.get(name, np.nan) for extra in extras])
        return column

    def _derived(self, name: str) -> FloatArray | float | None:
        """Return a column that is worked out for one request; None if the name is none."""
        here = self._here
        match name:
            case "pue":
                return here.pue
            case "price_eur_per_mwh":
                return here.price_eur_per_mwh
            case "carbon_g_per_kwh":
                return here.carbon_g_per_kwh
        factor = {
            "marginal_watts": 1.0,
            "cost_eur_per_h": here.pue * here.price_eur_per_mwh / _WATTS_TO_MW,
            "carbon_g_per_h": here.pue * here.carbon_g_per_kwh / 1000.0,
        }.get(name)
        if factor is None:
            return None
        watts: FloatArray = self._table.marginal_watts(self._vcpu_count)[self._rows] * factor
        return watts


class Ranking:
    """All rows' scores by one policy, and the lowest of them in order: the leaders.

    When a few rows change the leaders change by a few, so the whole column is searched only when
    too few of them are left. Every row that is no leader comes after the last one.
    """

    def __init__(self, scores: FloatArray, rank: IndexArray, count: int) -> None:
        self._scores = scores
        self._rank = rank
        self._count = count
        self._leaders: list[tuple[float, int, int]] = []  # (score, rank, row)
        self._last = (0.0, 0, 0)
        self._is_whole = False  # every able row is a leader
        self._search()

    def renew(self, changed: IndexArray, rows: IndexArray, scores: FloatArray) -> None:
        """Take the scores of those of the changed rows that are able; the others drop out."""
        self._scores[changed] = np.nan
        self._scores[rows] = scores
        again = set(changed.tolist())
        self._leaders = [key for key in self._leaders if key[2] not in again]
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            key = (score, int(self._rank[row]), row)
            if not isnan(score) and (self._is_whole or key < self._last):
                insort(self._leaders, key)
        if len(self._leaders) < self._count and not self._is_whole:
            self._search()

    def best(self) -> IndexArray:
        """Return the rows of lowest score, in order."""
        return np.array([row for _, _, row in self._leaders[: self._count]], np.intp)

    def _search(self) -> None:
        rows = lowest(self._scores, self._rank, LEADERS_MAX)
        keys = zip(
            self._scores[rows].tolist(), self._rank[rows].tolist(), rows.tolist(), strict=True
        )
        self._leaders = list(keys)
        self._is_whole = len(rows) < LEADERS_MAX
        if self._leaders:
            self._last = self._leaders[-1]


def lowest(scores: FloatArray, rank: IndexArray, count: int) -> IndexArray:
    """Return the `count` rows of lowest score, in order; ties by rank, NaN is barred."""
    rows = np.flatnonzero(~np.isnan(scores))
    if len(rows) > count:
        kept = scores[rows]
        last = np.partition(kept, count - 1)[count - 1]
        below, level = rows[kept < last], rows[kept == last]
        missing = count - len(below)
        if len(level) > missing:
            level = level[np.argpartition(rank[level], missing - 1)[:missing]]
        rows = np.concatenate((below, level))
    chosen: IndexArray = rows[np.lexsort((rank[rows], scores[rows]))]
    return chosen
