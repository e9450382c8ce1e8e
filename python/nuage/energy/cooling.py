"""What cooling costs: the StarDC's two modes as a function of the outside air (paper §IV-B, §V).

Outside air is filtered and blown in (it gains `supply_rise_k` on the way), servers warm it by
`server_rise_k`, and when it would enter warmer than the set point the air conditioning runs.
Bang-bang is what the paper tells: PUE 1.16 or 1.55. Proportional is what a trim coil does:
only the missing kelvins are conditioned. A dew point above the ASHRAE class's limit closes
the outside air whatever its temperature.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np

from nuage.energy.weather import Floats, WeatherNormal
from nuage.errors import InvalidRequest

PUE_FREE: Final = 1.16  # paper §V
PUE_CONDITIONED: Final = 1.55  # paper §V
SERVER_RISE_K: Final = 10.0  # paper §IV-B


class AshraeClass(Enum):
    """ASHRAE TC 9.9 (2021) allowable inlet: coldest, warmest, highest dew point, °C."""

    A1 = (15.0, 32.0, 17.0)
    A2 = (10.0, 35.0, 21.0)
    A3 = (5.0, 40.0, 24.0)
    A4 = (5.0, 45.0, 24.0)

    @property
    def warmest_c(self) -> float:
        """The warmest inlet allowed."""
        return self.value[1]

    @property
    def dew_point_c_max(self) -> float:
        """The highest dew point allowed."""
        return self.value[2]


class CoolingControl(Enum):
    """How the air conditioning follows the outside air."""

    BANG_BANG = "bang-bang"
    PROPORTIONAL = "proportional"


class CoolingMode(Enum):
    """What cools the container now."""

    FREE = "free"
    MIXED = "mixed"
    CONDITIONED = "conditioned"


@dataclass(frozen=True, slots=True)
class CoolingState:
    """Cooling at one moment. `conditioned_share` 0 is free cooling, 1 full air conditioning."""

    mode: CoolingMode
    conditioned_share: float
    pue: float
    reason: str


@dataclass(frozen=True, slots=True)
class CoolingYear:
    """A year: the part of its hours with any air conditioning, and its PUE at an even load."""

    conditioned_hours_share: float
    pue: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CoolingModel:
    """A container's cooling. The defaults reproduce the StarDC at 20 °C."""

    set_point_c: float = 20.0
    supply_rise_k: float = 2.0
    server_rise_k: float = SERVER_RISE_K
    pue_free: float = PUE_FREE
    pue_conditioned: float = PUE_CONDITIONED
    control: CoolingControl = CoolingControl.BANG_BANG
    ashrae: AshraeClass | None = None  # None: the dew point does not gate

    def __post_init__(self) -> None:
        if not 1.0 <= self.pue_free <= self.pue_conditioned:
            raise InvalidRequest("1 <= pue_free <= pue_conditioned", field="pue_free")
        if self.server_rise_k <= 0 or self.supply_rise_k < 0:
            raise InvalidRequest("air warms on its way", field="server_rise_k")
        if self.ashrae is not None and self.set_point_c > self.ashrae.warmest_c:
            raise InvalidRequest(
                f"{self.set_point_c:g} °C is above class {self.ashrae.name}'s "
                f"{self.ashrae.warmest_c:g} °C",
                field="set_point_c",
                hint="lower the set point, or check what the servers allow",
            )

    def conditioned_share(self, dry_bulb_c: Floats, dew_point_c: Floats | None = None) -> Floats:
        """Return how much of full air conditioning each moment needs, 0 to 1."""
        excess_k = dry_bulb_c + self.supply_rise_k - self.set_point_c
        share: Floats
        if self.control is CoolingControl.BANG_BANG:
            share = (excess_k > 0).astype(np.float64)
        else:
            share = np.clip(excess_k / self.server_rise_k, 0.0, 1.0)
        if self.ashrae is not None and dew_point_c is not None:
            share = np.where(dew_point_c > self.ashrae.dew_point_c_max, 1.0, share)
        return share

    def pue_of(self, conditioned_share: Floats) -> Floats:
        """Return the PUE at each share of air conditioning."""
        pue: Floats = self.pue_free + (self.pue_conditioned - self.pue_free) * conditioned_share
        return pue

    def state(self, dry_bulb_c: float, dew_point_c: float | None = None) -> CoolingState:
        """Return what cools now, at which PUE, and why."""
        dew = None if dew_point_c is None else np.array([dew_point_c])
        share = float(self.conditioned_share(np.array([dry_bulb_c]), dew)[0])
        pue = float(self.pue_of(np.array([share]))[0])
        supply_c = dry_bulb_c + self.supply_rise_k
        dry = self.conditioned_share(np.array([dry_bulb_c]))[0]
        if share > dry and self.ashrae is not None:
            limit = self.ashrae.dew_point_c_max
            reason = f"dew point {dew_point_c:.1f} °C is above {limit:g} °C"
        elif share > 0:
            reason = f"supply air of {supply_c:.1f} °C is above {self.set_point_c:g} °C"
        else:
            reason = f"supply air of {supply_c:.1f} °C is within {self.set_point_c:g} °C"
        mode = CoolingMode.FREE if share == 0 else CoolingMode.MIXED
        return CoolingState(CoolingMode.CONDITIONED if share == 1 else mode, share, pue, reason)

    def year(self, normal: WeatherNormal) -> CoolingYear:
        """Return the year's share of hours with air conditioning, and its PUE."""
        conditioned = self.conditioned_share(normal.dry_bulb_c, normal.dew_point_c)
        share = normal.share
        return CoolingYear(
            conditioned_hours_share=float(share[conditioned > 0].sum()),
            pue=float((share * self.pue_of(conditioned)).sum()),
        )
