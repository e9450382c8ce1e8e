"""Key figures of a datacenter, each with its boundary and category (ISO/IEC 30134).

The paper's own critique (§V): Google's PUE is 1.06 or 1.14 depending on what is counted.
So a figure here never travels without the boundary it was measured in, its category, its
period, and whether that period is the twelve months that the standard asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import isclose
from typing import Final

from nuage.errors import CorruptData, InvalidRequest
from nuage.units import JOULES_PER_KWH

YEAR_S: Final = 365 * 86_400


class Category(Enum):
    """Where IT energy is read (ISO/IEC 30134-2, EN 50600-4-2)."""

    BASIC = 1  # at the UPS output
    INTERMEDIATE = 2  # at the PDU output
    ADVANCED = 3  # at the IT equipment's input


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyPeriod:
    """Joules of one facility over one period. `boundary` says what facility energy counts."""

    begin_s: float
    end_s: float
    it_joules: float
    facility_joules: float
    boundary: str
    category: Category
    renewable_joules: float = 0.0
    reused_joules: float = 0.0
    carbon_g: float = 0.0

    def __post_init__(self) -> None:
        if self.end_s <= self.begin_s:
            raise InvalidRequest("the period ends before it begins", field="end_s")
        if not self.boundary:
            raise InvalidRequest(
                "a PUE without its boundary says nothing",
                field="boundary",
                hint="for instance `servers, air conditioning and fans; no generators`",
            )
        if self.it_joules <= 0:
            raise CorruptData("IT energy is not above zero", where="it_joules")
        if self.facility_joules < self.it_joules:
            raise CorruptData(
                f"the facility drew {self.facility_joules:g} J and its IT {self.it_joules:g} J",
                where="facility_joules",
                hint="a meter is missing, or stands on the wrong side",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kpi:
    """A figure with all that it needs to be compared with another."""

    name: str
    value: float
    unit: str
    boundary: str
    category: Category
    begin_s: float
    end_s: float

    @property
    def is_full_year(self) -> bool:
        """Tell whether the period is the twelve months that the standard asks for."""
        return self.end_s - self.begin_s >= YEAR_S


def kpis(period: EnergyPeriod) -> tuple[Kpi, ...]:
    """Return PUE, CUE (gCO2e per kWh of IT), REF and ERF of one period."""
    values = (
        ("PUE", period.facility_joules / period.it_joules, ""),
        ("CUE", period.carbon_g / (period.it_joules / JOULES_PER_KWH), "gCO2e/kWh"),
        ("REF", period.renewable_joules / period.facility_joules, ""),
        ("ERF", period.reused_joules / period.facility_joules, ""),
    )
    return tuple(
        Kpi(
            name=name,
            value=value,
            unit=unit,
            boundary=period.boundary,
            category=period.category,
            begin_s=period.begin_s,
            end_s=period.end_s,
        )
        for name, value, unit in values
    )


def weighted_pue(modes: Sequence[tuple[float, float]]) -> float:
    """Return the PUE of (share of IT energy, PUE) modes: 0.8 × 1.16 + 0.2 × 1.55 (paper §V).

    Raises:
        InvalidRequest: the shares do not add up to one.
    """
    if not isclose(sum(share for share, _ in modes), 1.0, abs_tol=1e-9):
        raise InvalidRequest("the shares of the modes do not add up to 1", field="modes")
    return sum(share * pue for share, pue in modes)


def merge(periods: Sequence[EnergyPeriod]) -> EnergyPeriod:
    """Return one period for several of the same boundary and category.

    Raises:
        InvalidRequest: boundaries or categories differ: their PUE must not be mixed.
    """
    first = periods[0]
    if any((p.boundary, p.category) != (first.boundary, first.category) for p in periods):
        raise InvalidRequest("periods of different boundary or category", field="boundary")
    return EnergyPeriod(
        begin_s=min(p.begin_s for p in periods),
        end_s=max(p.end_s for p in periods),
        it_joules=sum(p.it_joules for p in periods),
        facility_joules=sum(p.facility_joules for p in periods),
        boundary=first.boundary,
        category=first.category,
        renewable_joules=sum(p.renewable_joules for p in periods),
        reused_joules=sum(p.reused_joules for p in periods),
        carbon_g=sum(p.carbon_g for p in periods),
    )
