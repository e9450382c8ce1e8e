from datetime import date, datetime
from pathlib import Path

import pytest
from tests.unit.placement.placement_builders import vector

from nuage.energy.books import BooksState, Costs, SiteBooks
from nuage.energy.meters import MeterSource, Reading
from nuage.energy.tariff_file import load_tariff
from nuage.energy.tariffs import PARIS, PriceUnknown
from nuage.errors import InvalidRequest
from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.model.desired import VmReport, VnodeReport
from nuage.model.vm import VmState

NODE, VM = NodeId("marne-v1"), VmId("a")
COSTS = Costs(pue=1.25, price_eur_per_mwh=200.0, carbon_g_per_kwh=50.0)
KWH = 3.6e6


def report(cpu_seconds: float) -> VnodeReport:
    seen = VmReport(vm_id=VM, state=VmState.RUNNING, epoch=1, cpu_seconds=cpu_seconds)
    estimate = vector(NODE, running=(VM,), cpu_utilisation=0.5)
    return VnodeReport(
        node_id=NODE, site_id=SiteId("marne"), wish_revision=1, vms=(seen,), estimate=estimate
    )


def settle(books: SiteBooks, now_s: float) -> float:
    return books.settle(
        now_s,
        COSTS,
        iaas_of={VM: IaasId("i")},
        memory_of={VM: 1024.0},
        memory_mib={NODE: 4096.0},
    )


def site_joules(books: SiteBooks) -> float:
    return sum(account.it_millijoules for account in books.ledger.state) / 1000


def test_accounts_add_up_to_what_the_pdu_counted() -> None:
    books = SiteBooks(SiteId("marne"))
    for at_s, node_j, pdu_j in ((0.0, 5000.0, 9000.0), (10.0, 6000.0, 10_400.0)):
        books.take_report(report(at_s / 2), at_s)
        books.take_counter(NODE, node_j / KWH, at_s)
        books.take_counter("pdu r1", pdu_j / KWH, at_s)
        settle(books, at_s)
    assert site_joules(books) == pytest.approx(1400.0)
    assert books.ledger.vm_joules(VM) > 0
    rows = {row.iaas_id: row for row in books.ledger.rows()}
    assert sum(row.it_kwh for row in rows.values()) * KWH == pytest.approx(1400.0)
    assert rows[IaasId("i")].cost_eur == pytest.approx(
        rows[IaasId("i")].it_kwh * 1.25 * 200.0 / 1000.0
    )


def test_watts_stand_in_for_a_silent_counter_and_are_not_booked_twice() -> None:
    books = SiteBooks(SiteId("marne"))
    books.take_report(report(0.0), 0.0)
    books.take_counter(NODE, 0.0, 0.0)
    books.take(NODE, Reading(MeterSource.BMC, 100.0, 0.0))
    settle(books, 0.0)
    books.take(NODE, Reading(MeterSource.BMC, 100.0, 60.0))
    assert settle(books, 60.0) == pytest.approx(6000.0)
    books.take_counter(NODE, 6300.0 / KWH, 70.0)
    assert settle(books, 70.0) == pytest.approx(300.0)
    assert site_joules(books) == pytest.approx(6300.0)


def test_what_passed_while_the_controller_was_down_is_booked_after() -> None:
    books = SiteBooks(SiteId("marne"))
    books.take_report(report(0.0), 0.0)
    books.take_counter(NODE, 1000.0 / KWH, 0.0)
    settle(books, 0.0)
    again = SiteBooks(SiteId("marne"), books.state)
    again.take_report(report(0.0), 500.0)
    again.take_counter(NODE, 21_000.0 / KWH, 500.0)
    settle(again, 500.0)
    assert site_joules(again) == pytest.approx(20_000.0)


def test_a_counter_that_was_reset_begins_anew() -> None:
    books = SiteBooks(SiteId("marne"), BooksState(counters={NODE: 9e9}))
    books.take_report(report(0.0), 0.0)
    books.take_counter(NODE, 0.0, 0.0)
    books.take_counter(NODE, 500.0 / KWH, 10.0)
    assert settle(books, 10.0) == pytest.approx(500.0)


def test_a_tariff_file_has_dated_versions(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(
        """
name = "two rates"
[[versions]]
valid_from = 2025-02-01
[[versions.rules]]
eur_per_mwh = 210.0
hours = [6, 22]
[[versions.rules]]
eur_per_mwh = 160.0
[[versions]]
valid_from = 2026-02-01
[[versions.rules]]
eur_per_mwh = 230.0
"""
    )
    tariff = load_tariff(path)

    def at(day: date, hour: int) -> float:
        return datetime(day.year, day.month, day.day, hour, tzinfo=PARIS).timestamp()

    noon, night = at(date(2025, 6, 1), 12), at(date(2025, 6, 1), 3)
    assert tariff.at(noon).eur_per_mwh == 210.0
    assert tariff.at(night).eur_per_mwh == 160.0
    assert (tariff.index(noon), tariff.index(night)) == (1.0, 0.0)
    assert tariff.next_change_s(noon, 86_400.0) == at(date(2025, 6, 1), 22)
    assert tariff.at(at(date(2026, 6, 1), 3)).eur_per_mwh == 230.0
    assert tariff.index(at(date(2026, 6, 1), 3)) is None
    with pytest.raises(PriceUnknown):
        tariff.at(at(date(2024, 6, 1), 3))


def test_a_tariff_file_that_is_wrong_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = "x"\n')
    with pytest.raises(InvalidRequest, match=r"bad\.toml"):
        load_tariff(path)
