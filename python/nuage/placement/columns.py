"""Candidates as columns: one NumPy array per quantity, one entry per candidate.

Policies score columns, so that ranking a hundred candidates costs what ranking ten does.
The names and their units are fixed here; a SeD may add its own (`EstimationVector.extra`),
which policies see under the name the SeD gave, with NaN where a candidate has none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from nuage.ids import NodeId, SiteId
from nuage.model.placement import Estimate

FloatArray: TypeAlias = npt.NDArray[np.float64]
FloatOrColumn = TypeVar("FloatOrColumn", float, npt.NDArray[np.float64])
BoolArray: TypeAlias = npt.NDArray[np.bool_]
IndexArray: TypeAlias = npt.NDArray[np.intp]
LotArray: TypeAlias = npt.NDArray[np.uint64]

# Columns that come straight from the SeD, in the order of the Local Agent's table.
MEASURED_COLUMNS: Final = (
    "flops",
    "cpu_count",
    "vcpu_free",
    "memory_free_mib",
    "cpu_utilisation",
    "vm_count",
    "power_watts",
    "idle_watts",
    "peak_watts",
    "mean_power_watts",
    "mean_utilisation",
    "requests_served",
    "booted",
    "boot_time_s",
    "boot_energy_joules",
)
# Columns that the Local Agent works out for one request.
DERIVED_COLUMNS: Final = (
    "power_age_s",
    "marginal_watts",
    "pue",
    "price_eur_per_mwh",
    "carbon_g_per_kwh",
    "cost_eur_per_h",
    "carbon_g_per_h",
)
COLUMN_NAMES: Final = MEASURED_COLUMNS + DERIVED_COLUMNS


@dataclass(frozen=True, slots=True)
class Columns:
    """`len(node_ids)` candidates; `values[name]` has one float64 for each.

    `lots` are what the nodes draw with, where a table keeps them (`lots_of` works them out).
    """

    node_ids: Sequence[NodeId]
    site_ids: Sequence[SiteId]
    values: Mapping[str, FloatArray]
    lots: LotArray | None = None

    def __len__(self) -> int:
        return len(self.node_ids)

    def __getitem__(self, name: str) -> FloatArray:
        """Return the column `name`; a name that no candidate has is all NaN."""
        column = self.values.get(name)
        return np.full(len(self.node_ids), np.nan) if column is None else column


def lot_of(name: str) -> int:
    """Return 64 bits that a name draws lots with."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")


def lots_of(columns: Columns) -> LotArray:
    """Return what each candidate draws lots with."""
    if columns.lots is not None:
        return columns.lots
    lots = (lot_of(node_id) for node_id in columns.node_ids)
    return np.fromiter(lots, dtype=np.uint64, count=len(columns))


class _CostColumns(Mapping[str, FloatArray]):
    """The costs of some estimates, each column built when a policy first reads it."""

    def __init__(self, costs: Sequence[Mapping[str, float]]) -> None:
        self._costs = costs
        self._built: dict[str, FloatArray] = {}
        self._names: dict[str, None] | None = None

    def _all_names(self) -> dict[str, None]:
        if self._names is None:
            self._names = dict.fromkeys(name for costs in self._costs for name in costs)
        return self._names

    def __getitem__(self, name: str) -> FloatArray:
        column = self._built.get(name)
        if column is None:
            column = np.array([costs.get(name, np.nan) for costs in self._costs], dtype=np.float64)
            if np.isnan(column).all() and name not in self._all_names():
                raise KeyError(name)
            self._built[name] = column
        return column

    def __iter__(self) -> Iterator[str]:
        return iter(self._all_names())

    def __len__(self) -> int:
        return len(self._all_names())


def columns_of(estimates: Sequence[Estimate]) -> Columns:
    """Return the estimates' costs as columns, in the estimates' order."""
    return Columns(
        tuple(estimate.node_id for estimate in estimates),
        tuple(estimate.site_id for estimate in estimates),
        _CostColumns([estimate.costs for estimate in estimates]),
    )


def full_load_watts(
    mean_watts: FloatOrColumn,
    mean_utilisation: FloatOrColumn,
    idle_watts: FloatOrColumn,
    peak_watts: FloatOrColumn,
) -> FloatOrColumn:
    """Carry what was measured at part load on to full load, along the calibration.

    Two equal machines come out alike whatever each has served; one that draws more than its
    calibration says comes out by just that worse.
    """
    slope: FloatOrColumn = np.maximum(peak_watts - idle_watts, 0.0)
    return mean_watts + (1.0 - mean_utilisation) * slope
