from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest

from nuage.energy.tariffs import (
    CalendarRule,
    DayColour,
    HoleRule,
    Interval,
    PriceSeries,
    PriceUnknown,
    Tariff,
    TariffVersion,
)
from nuage.errors import CorruptData, InvalidRequest

PARIS = ZoneInfo("Europe/Paris")


def instant(*parts: int, fold: int = 0) -> float:
    year, month, day, hour = parts
    return datetime(year, month, day, hour, tzinfo=PARIS, fold=fold).timestamp()


def test_the_first_rule_that_matches_gives_the_price() -> None:
    winter_evening = CalendarRule(
        eur_per_mwh=300.0, months=frozenset({12, 1}), weekdays=frozenset(range(5)), hours=(18, 20)
    )
    tariff = Tariff(
        name="green",
        versions=(
            TariffVersion(
                valid_from=date(2025, 1, 1), rules=(winter_evening, CalendarRule(eur_per_mwh=100.0))
            ),
        ),
    )
    assert tariff.at(instant(2025, 1, 6, 18)).eur_per_mwh == 300.0
    assert tariff.at(instant(2025, 1, 6, 20)).eur_per_mwh == 100.0
    assert tariff.at(instant(2025, 1, 5, 18)).eur_per_mwh == 100.0
    assert tariff.at(instant(2025, 6, 6, 18)).eur_per_mwh == 100.0


def tempo(*versions: tuple[date, dict[DayColour, tuple[float, float]]]) -> Tariff:
    """A Tempo contract of dated (off-peak 22-6, peak 6-22) EUR/MWh per colour."""
    begins = [valid_from for valid_from, _ in versions]
    return Tariff(
        name="tempo",
        day_begins_hour=6,
        versions=tuple(
            TariffVersion(
                valid_from=valid_from,
                valid_until=until,
                rules=tuple(
                    CalendarRule(eur_per_mwh=price, hours=hours, colour=colour)
                    for colour, rates in prices.items()
                    for price, hours in zip(rates, ((22, 6), (6, 22)), strict=True)
                ),
            )
            for (valid_from, prices), until in zip(versions, [*begins[1:], None], strict=True)
        ),
    )


def test_a_new_version_holds_from_its_day_on() -> None:
    blue = {DayColour.BLUE: (129.6, 160.9)}
    dearer = {DayColour.BLUE: (132.5, 161.2)}
    tariff = tempo((date(2025, 2, 1), blue), (date(2026, 2, 1), dearer))
    colours = {date(2026, 1, 31): DayColour.BLUE, date(2026, 2, 1): DayColour.BLUE}
    assert tariff.at(instant(2026, 1, 31, 12), colours).eur_per_mwh == 160.9
    assert tariff.at(instant(2026, 2, 1, 12), colours).eur_per_mwh == 161.2
    with pytest.raises(PriceUnknown, match="no version"):
        tariff.at(instant(2025, 1, 31, 12), colours)


def test_a_tempo_day_keeps_its_colour_until_six_in_the_morning() -> None:
    tariff = tempo(
        (date(2025, 1, 1), {DayColour.RED: (156.8, 756.2), DayColour.BLUE: (129.6, 160.9)})
    )
    colours = {date(2025, 1, 14): DayColour.RED, date(2025, 1, 15): DayColour.BLUE}
    assert tariff.at(instant(2025, 1, 14, 6), colours).eur_per_mwh == 756.2
    assert tariff.at(instant(2025, 1, 14, 22), colours).eur_per_mwh == 156.8
    assert tariff.at(instant(2025, 1, 15, 5), colours).eur_per_mwh == 156.8
    assert tariff.at(instant(2025, 1, 15, 6), colours).eur_per_mwh == 160.9
    with pytest.raises(PriceUnknown, match="no rule"):
        tariff.at(instant(2025, 1, 16, 6), colours)
    with pytest.raises(PriceUnknown, match="no rule"):
        tempo((date(2025, 1, 1), {DayColour.BLUE: (1.0, 2.0)})).at(
            instant(2025, 1, 14, 12), colours
        )


def test_the_hour_that_comes_twice_is_off_peak_twice_and_the_one_left_out_is_not_missed() -> None:
    tariff = tempo((date(2025, 1, 1), {DayColour.BLUE: (100.0, 200.0)}))
    colours = {date(2025, month, day): DayColour.BLUE for month in (3, 10) for day in range(1, 32)}
    october = [tariff.at(instant(2025, 10, 26, 2, fold=fold), colours) for fold in (0, 1)]
    assert instant(2025, 10, 26, 2, fold=1) - instant(2025, 10, 26, 2) == 3600
    assert {price.eur_per_mwh for price in october} == {100.0}
    spring_day = instant(2025, 3, 31, 6) - instant(2025, 3, 30, 6)
    short_day = instant(2025, 3, 30, 6) - instant(2025, 3, 29, 6)
    assert (spring_day, short_day) == (86_400, 82_800)
    peak_s = sum(
        3600
        for hour in range(23)
        if tariff.at(instant(2025, 3, 29, 6) + hour * 3600, colours).eur_per_mwh == 200.0
    )
    assert peak_s == 16 * 3600


def series() -> PriceSeries:
    return PriceSeries([Interval(0, 3600, 50.0), Interval(7200, 10_800, 70.0)])


def test_a_hole_is_refused_unless_a_rule_bridges_it() -> None:
    assert series().at(3599).eur_per_mwh == 50.0
    with pytest.raises(PriceUnknown):
        series().at(3600)
    held = series().at(3600, hole=HoleRule.HOLD_LAST)
    assert (held.eur_per_mwh, held.bridged_by) == (50.0, "hold-last")
    with pytest.raises(PriceUnknown):
        series().at(10_800 + 7200, hole=HoleRule.HOLD_LAST)
    with pytest.raises(PriceUnknown):
        series().at(-1, hole=HoleRule.HOLD_LAST)


def test_the_same_hour_of_the_day_or_week_before_may_stand_in() -> None:
    assert series().at(86_400, hole=HoleRule.SAME_HOUR_BEFORE).eur_per_mwh == 50.0
    week = series().at(7 * 86_400 + 7200, hole=HoleRule.SAME_HOUR_BEFORE)
    assert (week.eur_per_mwh, week.bridged_by) == (70.0, "same-hour-before")
    with pytest.raises(PriceUnknown):
        series().at(86_400 + 3600, hole=HoleRule.SAME_HOUR_BEFORE)


def test_two_prices_for_one_instant_are_refused() -> None:
    with pytest.raises(CorruptData):
        PriceSeries([Interval(0, 3600, 50.0), Interval(1800, 5400, 70.0)])
    with pytest.raises(InvalidRequest):
        Tariff(name="empty", versions=(), zone=UTC)
