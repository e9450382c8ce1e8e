"""Which readings no driver returns: what shows alone that it cannot be true.

What takes a history (above the nameplate, out of order, a jump that nothing confirms) is
refused by `energy.meters.NodeMeters`.
"""

from math import isfinite

from nuage.energy.meters import MeterSource, Reading
from nuage.facility.ports import ImplausibleReading, OutletState


def believable_watts(watts: float, meter: str) -> float:
    """Return `watts`, or raise ImplausibleReading when no load can draw it."""
    if not isfinite(watts):
        raise ImplausibleReading(meter, rule="not_a_number", reason=f"{watts} W")
    if watts < 0:
        raise ImplausibleReading(meter, rule="negative", reason=f"{watts:g} W")
    return watts


def believable_kwh(energy_kwh: float | None, meter: str) -> float | None:
    """Return a counter's value, or raise ImplausibleReading when it counts below nothing."""
    if energy_kwh is None:
        return None
    if not isfinite(energy_kwh) or energy_kwh < 0:
        rule = "negative" if energy_kwh < 0 else "not_a_number"
        raise ImplausibleReading(meter, rule=rule, reason=f"{energy_kwh} kWh")
    return energy_kwh


def believable_outlet(
    pdu_url: str,
    outlet_id: str,
    *,
    label: str,
    is_on: bool | None,
    watts: float | None,
    energy_kwh: float | None,
    read_s: float,
) -> OutletState:
    """Return an outlet as its PDU tells it; None is what that PDU does not tell.

    Raises:
        ImplausibleReading: a figure of it cannot be true.
    """
    name = f"{pdu_url} outlet {outlet_id}"
    reading = None
    if watts is not None:
        reading = Reading(MeterSource.OUTLET, believable_watts(watts, name), read_s)
    return OutletState(
        outlet_id=outlet_id,
        label=label,
        is_on=is_on,
        reading=reading,
        energy_kwh=believable_kwh(energy_kwh, name),
    )
