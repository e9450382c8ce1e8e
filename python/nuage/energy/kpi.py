"""Key figures of a datacenter, each with its boundary and category (ISO/IEC 30134).

The paper's own critique (§V): Google's PUE is 1.06 or 1.14 depending on what is counted.
So a figure here never travels without the boundary it was measured in, its category and its
period. The standard asks for twelve months.
"""

from dataclasses import dataclass
from enum import Enum

from nuage.errors import CorruptData, InvalidRequest
from nuage.units import JOULES_PER_KWH


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
