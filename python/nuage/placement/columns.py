"""Candidates as columns: one NumPy array per quantity, one entry per candidate.

Policies score columns, so that ranking a hundred candidates costs what ranking ten does.
The names and their units are fixed here; a SeD may add its own (`EstimationVector.extra`),
which policies see under the name the SeD gave, with NaN where a candidate has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from nuage.ids import NodeId, SiteId
from nuage.model.placement import Estimate

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
IndexArray: TypeAlias = npt.NDArray[np.intp]

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
    """`len(node_ids)` candidates; `values[name]` has one float64 for each."""

    node_ids: tuple[NodeId, ...]
    site_ids: tuple[SiteId, ...]
    values: Mapping[str, FloatArray]

    def __len__(self) -> int:
        return len(self.node_ids)

    def __getitem__(self, name: str) -> FloatArray:
        """Return the column `name`; a name that no candidate has is all NaN."""
        column = self.values.get(name)
        return np.full(len(self.node_ids), np.nan) if column is None else column


def columns_of(estimates: Sequence[Estimate]) -> Columns:
    """Return the estimates' costs as columns, in the estimates' order."""
    node_ids = tuple(estimate.node_id for estimate in estimates)
    site_ids = tuple(estimate.site_id for estimate in estimates)
    if all(tuple(estimate.costs) == COLUMN_NAMES for estimate in estimates):
        block = np.array(
            [list(estimate.costs.values()) for estimate in estimates], dtype=np.float64
        )
        rows = block.reshape(len(estimates), len(COLUMN_NAMES)).T
        return Columns(node_ids, site_ids, dict(zip(COLUMN_NAMES, rows, strict=True)))
    names = dict.fromkeys(name for estimate in estimates for name in estimate.costs)
    return Columns(
        node_ids,
        site_ids,
        {
            name: np.array([e.costs.get(name, np.nan) for e in estimates], dtype=np.float64)
            for name in names
        },
    )
