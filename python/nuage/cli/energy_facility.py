"""`nuage energy facility` and `availability`: tiers checked, key figures, an IaaS over sites."""

import time
from collections.abc import Sequence
from datetime import datetime

import click

from nuage.cli.session import Session, pass_session
from nuage.cli.showing import Row, answered, inner, listed, print_table, rows_of
from nuage.energy.kpi import Category, EnergyPeriod, Kpi, kpis
from nuage.energy.tier import TIER_AVAILABILITY, at_least
from nuage.errors import InvalidRequest, NuageError
from nuage.units import JOULES_PER_KWH


@click.command("facility")
@click.option("--month", default="", metavar="YYYY-MM", help="Of the key figures; this month.")
@pass_session
def facility_command(session: Session, month: str) -> None:
    """Show each site's tier as claimed and as its paths support it, and its key figures."""
    month = month or time.strftime("%Y-%m", time.gmtime())
    sites = {str(r["site_id"]): r for r in _values(session.client.get("/v1/energy"))}
    claimed = _claimed_tiers(session)
    figures = {site_id: _figures(session, site, month) for site_id, site in sites.items()}
    told = {
        site_id: {
            "claimed_tier": claimed.get(site_id), "tier": sites[site_id]["tier"],
            "month": month, "figures": {kpi.name: kpi.value for kpi in figures[site_id]},
        }
        for site_id in sites
    }  # fmt: skip
    if answered(session, told):
        return
    rows = []
    for site_id, site in sites.items():
        availability, source = _availability(site, claimed.get(site_id, 1))
        supported = "not modelled" if site["tier"] is None else inner(site, "tier")["supported"]
        rows.append((
            site_id, claimed.get(site_id, "-"), supported, f"{availability:.4%} ({source})",
            *(_kpi(figures[site_id], name) for name in ("PUE", "CUE", "REF", "ERF")),
        ))  # fmt: skip
    headers = (
        "SITE", "TIER CLAIMED", "SUPPORTED", "AVAILABILITY", "PUE", "CUE gCO2e/kWh", "REF", "ERF",
    )  # fmt: skip
    print_table(headers, rows, empty="no site has told its energy yet")
    for site_id, site in sites.items():
        for finding in [] if site["tier"] is None else listed(inner(site, "tier"), "findings"):
            click.echo(f"{site_id}: for {finding}")
    for boundary, category in dict.fromkeys(
        (site["pue_boundary"], site["pue_category"]) for site in sites.values()
    ):
        click.echo(
            f"key figures of {month}, less than the twelve months of ISO/IEC 30134; "
            f"category {category}, boundary: {boundary}"
        )


@click.command("availability")
@click.argument("iaas")
@click.option("--needed", default=1, show_default=True, help="Sites that must work.")
@pass_session
def availability_command(session: Session, iaas: str, needed: int) -> None:
    """Compute the availability of IAAS over the sites that hold all its data."""
    volumes = _values(session.client.get(f"/v1/iaas/{iaas}/volumes"))
    if not volumes:
        raise InvalidRequest(
            f"{iaas} has no volume: any site of its contract will do", field="iaas"
        )
    held = [{str(place["site_id"]) for place in rows_of(v["replicas"])} for v in volumes]
    everywhere = sorted(set.intersection(*held))
    if not 1 <= needed <= len(everywhere):
        raise InvalidRequest(
            f"{len(everywhere)} sites hold all of {iaas}: {', '.join(everywhere) or 'none'}",
            field="needed", hint="a site takes an IaaS over only if it has copies of all its disks",
        )  # fmt: skip
    sites = {str(r["site_id"]): r for r in _values(session.client.get("/v1/energy"))}
    claimed = _claimed_tiers(session)
    parts = {s: _availability(sites.get(s), claimed.get(s, 1)) for s in everywhere}
    whole = at_least([availability for availability, _ in parts.values()], needed)
    if answered(session, {"sites": {s: a for s, (a, _) in parts.items()}, "availability": whole}):
        return
    rows = [(site_id, f"{value:.4%}", source) for site_id, (value, source) in parts.items()]
    print_table(("SITE", "AVAILABILITY", "FROM"), rows, empty="")
    hours = (1.0 - whole) * 8760.0
    click.echo(
        f"{iaas}: {needed} of {len(parts)} sites needed: {whole:.6%}, {hours:.2f} h a year out"
    )


def _values(answer: object) -> list[Row]:
    return [inner(row, "value") for row in rows_of(answer)]


def _claimed_tiers(session: Session) -> dict[str, int]:
    found = (inner(row, "datacenter") for row in rows_of(session.client.get("/v1/sites")))
    return {str(each["site_id"]): int(str(each["tier"])) for each in found}


def _availability(site: Row | None, claimed: int) -> tuple[float, str]:
    """Return a site's availability: of its modelled paths, else what its tier claims."""
    if site is None or site["tier"] is None:
        return TIER_AVAILABILITY[claimed], f"as tier {claimed} claims"
    return float(str(inner(site, "tier")["availability"])), "its paths"


def _figures(session: Session, site: Row, month: str) -> Sequence[Kpi]:
    """Return a site's key figures of a month; none where nothing was metered."""
    try:
        rows = rows_of(session.client.get(f"/v1/energy/{site['site_id']}/report", month=month))
    except NuageError as error:
        click.secho(f"{site['site_id']} is missing: {error.message}", fg="yellow", err=True)
        return ()

    def total(name: str) -> float:
        return sum(float(str(row[name])) for row in rows)

    if total("it_kwh") <= 0.0:
        return ()
    facility_joules = total("facility_kwh") * JOULES_PER_KWH
    year, number = (int(part) for part in month.split("-"))
    after = datetime(year + number // 12, number % 12 + 1, 1).astimezone().timestamp()
    return kpis(EnergyPeriod(
        begin_s=datetime(year, number, 1).astimezone().timestamp(),
        end_s=min(after, time.time()),
        it_joules=total("it_kwh") * JOULES_PER_KWH,
        facility_joules=facility_joules,
        boundary=str(site["pue_boundary"]),
        category=Category(int(str(site["pue_category"]))),
        renewable_joules=float(str(site["renewable_share"])) * facility_joules,
        reused_joules=float(str(site["reused_share"])) * facility_joules,
        carbon_g=total("carbon_g"),
    ))  # fmt: skip


def _kpi(figures: Sequence[Kpi], name: str) -> str:
    return next((f"{kpi.value:.3f}" for kpi in figures if kpi.name == name), "-")
