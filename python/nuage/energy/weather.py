"""Typical years of the eight French climate zones (RT2012, NF EN ISO 15927-4).

Shipped as counts of hours by dry bulb and dew point, in squares of 1 K, and mean dry bulb by
month and hour of solar time; data/LICENSE-rt2012.txt has source and licence. The files are
at sea level.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import cos, hypot, radians
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from nuage.errors import NotFound

ZONES: Final = ("H1a", "H1b", "H1c", "H2a", "H2b", "H2c", "H2d", "H3")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class WeatherNormal:
    """A year: `hour_count[i]` hours at the middle of square i, (squares,)."""

    zone: str
    latitude_deg: float
    longitude_deg: float
    dry_bulb_c: Floats
    dew_point_c: Floats
    hour_count: Floats
    mean_dry_bulb_c: tuple[tuple[float, ...], ...]  # (12 months, 24 hours)

    @property
    def share(self) -> Floats:
        """Return the part of the year that each square stands for; sums to 1."""
        shares: Floats = self.hour_count / self.hour_count.sum()
        return shares


class _Zone(msgspec.Struct, frozen=True):
    latitude_deg: float
    longitude_deg: float
    hours: list[tuple[int, int, int]]
    mean_dry_bulb_c: list[list[float]]


@cache
def _zones() -> dict[str, _Zone]:
    text = (files("nuage.energy") / "data" / "rt2012.json").read_bytes()
    return msgspec.json.decode(text, type=dict[str, _Zone])


@cache
def weather_normal(zone: str) -> WeatherNormal:
    """Return a zone's typical year.

    Raises:
        NotFound: there is no such zone; the hint lists them.
    """
    found = _zones().get(zone)
    if found is None:
        raise NotFound("climate zone", zone, hint=f"there are {', '.join(ZONES)}")
    squares = np.array(found.hours, dtype=np.float64)
    return WeatherNormal(
        zone,
        found.latitude_deg,
        found.longitude_deg,
        squares[:, 0] + 0.5,
        squares[:, 1] + 0.5,
        squares[:, 2],
        tuple(tuple(month) for month in found.mean_dry_bulb_c),
    )


def nearest_zone(latitude_deg: float, longitude_deg: float) -> str:
    """Return the zone whose station is nearest; meant for places in metropolitan France."""

    def distance(zone: str) -> float:
        station = _zones()[zone]
        east = (station.longitude_deg - longitude_deg) * cos(radians(latitude_deg))
        return hypot(station.latitude_deg - latitude_deg, east)

    return min(ZONES, key=distance)
