"""`nuage energy …`: what a watt does and costs now, rules and plans, accounts."""

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import click

from nuage.cli.energy_facility import availability_command, facility_command
from nuage.cli.energy_plot import plot_plan
from nuage.cli.paths import NEW_FILE
from nuage.cli.session import Session, iaas_option, pass_session
from nuage.cli.showing import (
    Row,
    age,
    answered,
    inner,
    listed,
    print_table,
    row_of,
    rows_of,
    said,
    show,
)
from nuage.errors import InvalidRequest, NuageError, TimedOut

PLAN_WAIT_S: Final = 900.0
POLL_S: Final = 0.5
UNITS: Final = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(text: str) -> float:
    """Read a duration: 90s, 15min, 2h, 1d."""
    number = text.rstrip("smhdin")
    try:
        return float(number) * UNITS[text[len(number) :] or "s"]
    except (ValueError, KeyError):
        raise InvalidRequest(f"{text!r} is not a duration such as 2h") from None


def moment(text: str) -> float:
    """Read a local date and time, 2026-12-01T18:00, as seconds since the epoch."""
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        raise InvalidRequest(f"{text!r} is not a moment such as 2026-12-01T18:00") from None


def figure(text: str, field: str) -> float:
    """Read a figure that stands within an option."""
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"{text!r} is not a number", field=field) from None


def number(value: object, digits: int = 1) -> str:
    """Return a figure for people; "-" for one that is not known."""
    return "-" if value is None else f"{float(str(value)):.{digits}f}"


@click.group("energy")
def energy_group() -> None:
    """Watts, PUE, prices and carbon; rules, plans and accounts."""


@energy_group.command("show")
@click.option("--nodes/--no-nodes", default=True, show_default=True)
@pass_session
def show_energy(session: Session, *, nodes: bool) -> None:
    """Show every site's watts and what they cost now, and every node's meter."""
    answer = session.client.get("/v1/energy")
    if answered(session, answer):
        return
    sites = [(row, inner(row, "value")) for row in rows_of(answer)]
    rows = []
    for _, site in sites:
        pue, price = float(str(site["pue"])), site["price_eur_per_mwh"]
        kwh = None if price is None else float(str(price)) / 1000.0 * pue
        share = f"{float(str(site['share'])):.0%}"
        if site["share"] != site["share_wanted"]:
            share += f" → {float(str(site['share_wanted'])):.0%}"
        because = ", ".join(map(str, listed(site, "because")))
        rows.append((
            site["site_id"], number(site["it_watts"], 0),
            _sourced(site, "outside", "outside_celsius"), f"{pue:.2f}",
            _sourced(site, "price", "price_eur_per_mwh"),
            _sourced(site, "carbon", "carbon_g_per_kwh", digits=0),
            number(kwh, 3), share + (f" ({because})" if because else ""), site["mode"],
        ))  # fmt: skip
    headers = (
        "SITE", "IT W", "OUTSIDE °C", "PUE", "EUR/MWh", "gCO2e/kWh", "EUR/kWh IT", "IN SERVICE",
        "MODE",
    )  # fmt: skip
    print_table(headers, rows, empty="no site has told its energy yet")
    for boundary, category in dict.fromkeys(
        (s["pue_boundary"], s["pue_category"]) for _, s in sites
    ):
        click.echo(f"PUE: category {category} (ISO/IEC 30134-2), boundary: {boundary}")
    for _, site in sites:
        for silent in listed(site, "silent_meters"):
            click.secho(f"{site['site_id']}: silent meter: {silent}", fg="yellow")
        for refused in listed(site, "refused_readings"):
            click.secho(f"{site['site_id']}: not believed: {refused}", fg="yellow")
    if any(listed(site, "public_sources") for _, site in sites):
        click.echo()
        _show_sources(sites)
    if nodes:
        click.echo()
        _show_nodes(sites)


def _sourced(site: Row, name: str, figure: str, digits: int = 1) -> str:
    """Return a figure with its source and, where it ages, how old it is."""
    read_s = site[f"{name}_read_s"]
    old = "" if read_s is None else f", {age(time.time() - float(str(read_s)))}"
    return f"{number(site[figure], digits)} ({site[f'{name}_source']}{old})"


def _show_sources(sites: Sequence[tuple[Row, Row]]) -> None:
    rows = []
    for _, site in sites:
        for asked in rows_of(site["public_sources"]):
            fetched_s = asked["fetched_s"]
            old = "never" if fetched_s is None else age(time.time() - float(str(fetched_s)))
            reaches_s = asked["reaches_s"]
            reaches = "" if reaches_s is None else _when(reaches_s)
            rows.append((
                site["site_id"], asked["source"], asked["address"], old, reaches, asked["failure"],
            ))  # fmt: skip
    headers = ("SITE", "SOURCE", "ASKED AT", "ANSWERED", "REACHES", "WHAT IS WRONG")
    print_table(headers, rows, empty="")


def _show_nodes(sites: Sequence[tuple[Row, Row]]) -> None:
    rows = []
    for row, site in sites:
        late_s = float(str(row["age_s"] or 0.0))
        for node in rows_of(site["nodes"]):
            read_s = float(str(node["read_s"]))
            seen = age(max(time.time() - read_s, late_s)) if read_s else ""
            rows.append((
                node["node_id"], site["site_id"], number(node["watts"]), node["source"], seen,
                node["power"], "in service" if node["in_service"] else "out of service",
            ))  # fmt: skip
    headers = ("NODE", "SITE", "WATTS", "METER", "AGE", "POWER", "SERVICE")
    print_table(headers, rows, empty="no node")


@energy_group.command("rules")
@click.argument("site")
@click.option(
    "--set",
    "rules",
    multiple=True,
    metavar="FIGURE>VALUE=SHARE[!]",
    help="temperature_c>25=20% (end with ! to act at once); replaces all rules.",
)
@click.option("--hysteresis", default=0.0, help="Of the rules set.")
@click.option(
    "--plan",
    "plans",
    multiple=True,
    metavar="NAME,FROM,TO,SHARE",
    help="A dated plan: peak,2026-12-01T18:00,2026-12-01T20:00,50%; replaces all.",
)
@click.option("--mode", type=click.Choice(["manual", "automatic"]), default=None)
@click.option("--ramp", type=float, default=None, help="Share per minute.")
@click.option("--hold", default="", metavar="TIME", help="How long a placement should last.")
@click.option("--every", default="", metavar="TIME", help="How often to look for savings.")
@click.option("--keep-on", type=int, default=None, help="V-nodes that always stay on.")
@click.option("--clear", is_flag=True, help="No rules and no plans.")
@pass_session
def rules_command(session: Session, /, site: str, **options: object) -> None:
    """Show a site's thresholds and plans, or set them."""
    path = f"/v1/energy/{site}/rules"
    known = row_of(session.client.get(path))
    changes = _changes(options)
    if changes:
        body = {k: v for k, v in known.items() if k != "site_id"} | changes
        known = row_of(session.client.call("PUT", path, body))
    if answered(session, known):
        return
    rows: list[tuple[object, ...]] = [
        (
            r["name"], f"{r['figure']} > {r['above']:g}", f"{float(str(r['share'])):.0%}",
            "at once" if r["urgent"] else "by the ramp", f"{r['hysteresis']:g} below",
        )
        for r in listed(known, "rules")
    ]  # fmt: skip
    rows += [
        (
            p["name"], f"{_when(p['begin_s'])} to {_when(p['end_s'])}",
            f"{float(str(p['share'])):.0%}", "by the ramp", "",
        )
        for p in listed(known, "plans")
    ]  # fmt: skip
    print_table(("NAME", "WHEN", "NODES", "FALLS", "BACK"), rows, empty="no rules")
    click.echo(
        f"mode {known['mode']}; ramp {float(str(known['ramp_per_min'])):.0%} a minute; "
        f"a placement holds {known['hold_s']:g} s; looked for savings every "
        f"{known['look_every_s']:g} s; {known['nodes_kept_on']} V-node(s) stay on"
    )


def _changes(options: dict[str, object]) -> dict[str, object]:
    changes: dict[str, object] = {}
    if options["clear"]:
        changes |= {"rules": [], "plans": []}
    if options["rules"]:
        hysteresis = options["hysteresis"]
        changes["rules"] = [_rule(str(text), hysteresis) for text in listed(options, "rules")]
    if options["plans"]:
        changes["plans"] = [_dated(str(text)) for text in listed(options, "plans")]
    for key, name in (("mode", "mode"), ("ramp", "ramp_per_min"), ("keep_on", "nodes_kept_on")):
        if options[key] is not None:
            changes[name] = options[key]
    for key, name in (("hold", "hold_s"), ("every", "look_every_s")):
        if options[key]:
            changes[name] = seconds(str(options[key]))
    return changes


def _share(text: str) -> float:
    try:
        return float(text.rstrip("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        raise InvalidRequest(f"{text!r} is not a share such as 20%", field="share") from None


def _rule(text: str, hysteresis: object) -> dict[str, object]:
    watched, sign, rest = text.partition(">")
    above, equals, share = rest.rstrip("!").partition("=")
    if not (sign and equals):
        raise InvalidRequest(f"{text!r} is not FIGURE>VALUE=SHARE", field="set")
    return {
        "name": f"{watched}>{above}", "figure": watched, "above": figure(above, "set"),
        "share": _share(share), "hysteresis": hysteresis, "urgent": text.endswith("!"),
    }  # fmt: skip


def _dated(text: str) -> dict[str, object]:
    parts = text.split(",")
    if len(parts) != 4:
        raise InvalidRequest(f"{text!r} is not NAME,FROM,TO,SHARE", field="plan")
    name, begin, end, share = parts
    return {
        "name": name, "begin_s": moment(begin), "end_s": moment(end), "share": _share(share),
    }  # fmt: skip


def _when(at_s: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(float(str(at_s))))


@energy_group.command("event")
@click.argument("site")
@click.argument("figure")
@click.argument("value", type=float, required=False, default=None)
@click.option("--for", "lasts", default="1h", show_default=True, metavar="TIME")
@click.option("--over", is_flag=True, help="Take the figure back.")
@pass_session
def event_command(
    session: Session, /, site: str, figure: str, value: float | None, lasts: str, *, over: bool
) -> None:
    """Tell SITE a FIGURE: temperature_c 32, price_eur_per_mwh 400, grid_alert 2."""
    if (value is None) is not over:
        raise InvalidRequest("give a value, or --over", field="value")
    body = {"figure": figure, "value": value, "for_s": seconds(lasts)}
    answer = session.client.call("POST", f"/v1/energy/{site}/events", body)
    said(session, answer, f"{site}: {figure} {'is over' if over else f'is {value:g} for {lasts}'}")


def _supposed(texts: Sequence[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise InvalidRequest(f"{text!r} is not FIGURE=VALUE", field="what-if")
        found[name] = figure(value, "what-if")
    return found


@energy_group.command("plan")
@click.argument("site")
@click.option("--what-if", "figures", multiple=True, metavar="FIGURE=VALUE",
              help="Suppose so: temperature_c=32; repeat.")  # fmt: skip
@click.option("--drain", multiple=True, metavar="NODE", help="Empty this node; repeat.")
@click.option("--consolidate/--no-consolidate", default=True, show_default=True)
@click.option("--hours", default=24, show_default=True, help="How far the rules are foreseen.")
@click.option("--plot", type=NEW_FILE, default=None, help="PNG or SVG file.")
@pass_session
def plan_command(
    session: Session, site: str, figures: tuple[str, ...], drain: tuple[str, ...],
    plot: Path | None, hours: int, *, consolidate: bool,
) -> None:  # fmt: skip
    """Show what a plan would do at SITE, each step with reason and energy. Nothing is done."""
    body = {
        "drain": drain, "consolidate": consolidate, "figures": _supposed(figures), "hours": hours,
    }  # fmt: skip
    plan = row_of(session.client.call("POST", f"/v1/energy/{site}/what-if", body))
    if plot is not None:
        plot_plan(plan, plot)
    if answered(session, plan):
        return
    _show_plan(plan)
    _show_foreseen(plan)
    if plot is not None:
        click.echo(f"plot: {plot}")


@energy_group.command("apply")
@click.argument("site")
@click.option("--drain", multiple=True, metavar="NODE", help="Empty this node; repeat.")
@click.option("--consolidate/--no-consolidate", default=True, show_default=True)
@click.option("--wait/--no-wait", default=True, show_default=True)
@pass_session
def apply_command(
    session: Session, site: str, drain: tuple[str, ...], *, consolidate: bool, wait: bool
) -> None:
    """Carry the plan out: live migrations, then power acts, in order."""
    path = f"/v1/energy/{site}/plan"
    body = {"drain": drain, "consolidate": consolidate}
    plan = row_of(session.client.call("POST", path, body))
    deadline_s = time.monotonic() + PLAN_WAIT_S
    while wait and plan["state"] == "running":
        if time.monotonic() > deadline_s:
            raise TimedOut(f"the plan of {site}", after_s=PLAN_WAIT_S)
        time.sleep(POLL_S)  # noqa: TID251 - a person waits
        plan = row_of(session.client.get(path))
    if not answered(session, plan):
        _show_plan(plan)


@energy_group.command("progress")
@click.argument("site")
@pass_session
def progress_command(session: Session, site: str) -> None:
    """Show the plan under way at SITE, or how the last one ended."""
    plan = row_of(session.client.get(f"/v1/energy/{site}/plan"))
    if not answered(session, plan):
        _show_plan(plan)


def _show_plan(plan: Row) -> None:
    rows = [
        (
            s["number"], number(s["begin_s"]), number(s["end_s"]), s["act"],
            s["vm_name"] or s["vm_id"] or "", s["from_node"] or "", s["node_id"], s["reason"],
            number(s["joules"], 0), s["state"], s["told"],
        )
        for s in listed(plan, "steps")
    ]  # fmt: skip
    headers = ("#", "FROM S", "TO S", "ACT", "VM", "FROM", "NODE", "REASON", "JOULES", "STATE", "")
    print_table(headers, rows, empty="nothing to do")
    pays = plan["pays_after_s"]
    told = "" if pays is None else f"; pays after {float(str(pays)):.0f} s"
    click.echo(
        f"{plan['site_id']}: {plan['state']}; costs {number(plan['joules'], 0)} J, "
        f"saves {number(plan['saved_watts'], 0)} W at the site's meter{told}"
    )
    for line in listed(plan, "unsolved"):
        click.secho(f"not solved: {line}", fg="yellow")


def _show_foreseen(plan: Row) -> None:
    rows, before = [], None
    for hour in listed(plan, "foreseen"):
        because = ", ".join(map(str, listed(hour, "because")))
        seen = (hour["share"], because, hour["pue"], hour["price_eur_per_mwh"])
        if seen == before:
            continue
        before = seen
        rows.append((
            _when(hour["at_s"]), number(hour["temperature_c"]), number(hour["pue"], 2),
            number(hour["price_eur_per_mwh"]), f"{float(str(hour['share'])):.0%}", because,
        ))  # fmt: skip
    if rows:
        click.echo("\nforeseen:")
        print_table(("FROM", "°C", "PUE", "EUR/MWh", "IN SERVICE", "BECAUSE"), rows, empty="")


@energy_group.command("report")
@click.option("--month", default="", metavar="YYYY-MM", help="Only this month.")
@click.option("--at", "at_site", default="", metavar="SITE", help="Only this site.")
@pass_session
def report_command(session: Session, month: str, at_site: str) -> None:
    """Show kWh, EUR and gCO2e per IaaS, site and month, as metered."""
    sites = [
        str(inner(r, "datacenter")["site_id"]) for r in rows_of(session.client.get("/v1/sites"))
    ]
    found: list[Row] = []
    for site in sites:
        if at_site and site != at_site:
            continue
        try:
            found += rows_of(session.client.get(f"/v1/energy/{site}/report", month=month))
        except NuageError as error:
            click.secho(f"{site} is missing: {error.message}", fg="yellow", err=True)
    found.sort(key=lambda r: (str(r["month"]), str(r["iaas_name"]), str(r["site_id"])))
    rows: list[tuple[object, ...]] = [
        (
            r["month"], r["iaas_name"] or r["iaas_id"] or "(the site's own)", r["site_id"],
            number(r["it_kwh"], 4), number(r["facility_kwh"], 4), number(r["cost_eur"], 4),
            number(r["carbon_g"], 1),
        )
        for r in found
    ]  # fmt: skip
    if len(rows) > 1:
        totals = [sum(float(str(r[k])) for r in found)
                  for k in ("it_kwh", "facility_kwh", "cost_eur", "carbon_g")]  # fmt: skip
        rows.append(
            ("", "total", "", *(f"{total:.4f}" for total in totals[:3]), f"{totals[3]:.1f}")
        )
    headers = ("MONTH", "IAAS", "SITE", "IT kWh", "METER kWh", "EUR", "gCO2e")
    show(session, found, headers, rows, empty="no account yet")


@energy_group.command("vm")
@click.argument("name")
@iaas_option
@pass_session
def vm_command(session: Session, name: str, iaas: str) -> None:
    """Show the energy that a VM has used at its present site."""
    path = f"/v1/iaas/{session.require_iaas(iaas)}/vms/{name}/energy"
    answer = row_of(session.client.get(path))
    if answered(session, answer):
        return
    joules = float(str(answer["it_joules"]))
    click.echo(f"{name}: {joules:.0f} J ({joules / 3.6e6:.6f} kWh) of IT at {answer['site_id']}")


energy_group.add_command(facility_command)
energy_group.add_command(availability_command)
COMMANDS = (energy_group,)
