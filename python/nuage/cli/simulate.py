"""`nuage simulate …`: the product's own engine and planner under a virtual clock.

The simulation is imported when it is asked for: solvers and plots take a second to load.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nuage.cli.energy_plot import require_plot
from nuage.cli.paths import FILE, FOLDER, NEW_FILE
from nuage.cli.session import Session, pass_session
from nuage.cli.showing import answered, inner, print_table, rows_of
from nuage.errors import InvalidRequest, Unavailable

if TYPE_CHECKING:
    from nuage.simulation.fleet_year import FleetScenario, HourRow

HOURS_OF_YEAR: Final = 8760
TOLD_EVERY_S: Final = 10.0  # where stderr is no terminal
WEIGHTINGS: Final = ("power", "cost", "carbon", "none")
UNPLANNED: Final = "no-planner"


@click.group("simulate")
def simulate_group() -> None:
    """Try placement and energy out on recorded or made-up load; the same seed, the same bytes."""


@simulate_group.command("fleet")
@click.option("--nodes", default=1344, show_default=True, help="10 to 100,000.")
@click.option("--zones", default="H1a,H1c,H2a,H2d", show_default=True, help="RT2012, one a site.")
@click.option("--hours", default=168, show_default=True, help=f"A year is {HOURS_OF_YEAR}.")
@click.option("--start-day", default=181, show_default=True, help="Of the year.")
@click.option("--seed", default=1, show_default=True)
@click.option("--weigh", type=click.Choice(WEIGHTINGS), default="power", show_default=True)
@click.option("--policy", default="", metavar="NAME",
              help="Place by this policy, a plug-in's too, through the product's Master and Local "
              "Agents. Left out, the engine places by --weigh.")  # fmt: skip
@click.option("--set-point", default=20.0, show_default=True, help="°C")
@click.option("--load", default=0.4, show_default=True, help="Share of all vCPUs, on average.")
@click.option("--ahead", default=24, show_default=True,
              help="Hours over which a site's weight is taken; 1 is the moment alone.")  # fmt: skip
@click.option("--planner/--no-planner", default=False, show_default=True,
              help="Have the planner consolidate each container.")  # fmt: skip
@click.option("--every", default=6, show_default=True, help="Hours between its looks.")
@click.option("--hold", default=1.0, show_default=True,
              help="Hours an idle node is expected to stay idle; savings pay within.")  # fmt: skip
@click.option("--boot", default=120.0, show_default=True, help="Seconds of a boot, at full draw.")
@click.option("--trace", type=FILE, default=None,
              help="Recorded load: CSV of begin_h,end_h,vcpu_count,memory_mib.")  # fmt: skip
@click.option("--export", "export_file", type=NEW_FILE, default=None,
              help="Write the load that is made up as such a trace.")  # fmt: skip
@click.option("--against", default="", metavar="NAME",
              help=f"Run another weighting too (another policy, if there is one), or {UNPLANNED}: "
              "the same without planner; and compare.")  # fmt: skip
@click.option("--csv", "csv_file", type=NEW_FILE, default=None)
@click.option("--plot", type=NEW_FILE, default=None, help="PNG or SVG file.")
@pass_session
def fleet_command(session: Session, /, csv_file: Path | None, plot: Path | None,
                  export_file: Path | None, **options: object) -> None:  # fmt: skip
    """A federation of containers over hours or a year: VMs, weather, prices, carbon."""
    from nuage.simulation import load_trace
    from nuage.simulation.fleet_year import made_up_trace, to_csv
    from nuage.simulation.plots import plot_fleet

    if plot is not None:
        require_plot(plot)
    if export_file is not None:
        if options["trace"] is not None:
            raise InvalidRequest(
                "a trace is not made up: there is nothing to export", field="export"
            )
        spans = made_up_trace(_scenario(options, _names(options)[0]))
        export_file.write_text(load_trace.to_csv(spans))
    names = _names(options)
    found = {name: _run(_scenario(options, name), name) for name in names}
    first = found[names[0]]
    if csv_file is not None:
        csv_file.write_text(to_csv(first))
    if plot is not None:
        load = "a recorded load" if options["trace"] else f"seed {options['seed']}"
        title = f"{options['nodes']} nodes, placed by {names[0]}, {load}"
        plot.write_bytes(plot_fleet(first, kind=plot.suffix.removeprefix("."), title=title))
    tables = {name: _by_site(rows) for name, rows in found.items()}
    named = {
        name: [dict(zip(COLUMNS, row, strict=True)) for row in table]
        for name, table in tables.items()
    }
    if answered(session, named):
        return
    shown = [(name, *row) for name, table in tables.items() for row in table]
    placed_by = "POLICY" if options["policy"] else "WEIGHING"
    print_table((placed_by, *COLUMNS), shown, empty="nothing ran")
    click.echo(f"placed by the product's {'agents' if options['policy'] else 'engine'}")
    if len(names) == 2:
        _compare(names, found)
    for path in (csv_file, plot, export_file):
        if path is not None:
            click.echo(f"wrote {path}")


def _names(options: dict[str, object]) -> list[str]:
    """Return the weighting or the policy to run, and what to compare it with."""
    policy, against = str(options["policy"]), str(options["against"])
    if not policy and against and against not in (*WEIGHTINGS, UNPLANNED):
        told = ", ".join((*WEIGHTINGS, UNPLANNED))
        raise InvalidRequest(f"no weighting {against!r}; there are {told}", field="against")
    if policy:
        from nuage.placement.policies import PolicyBook

        book = PolicyBook.load()
        for name in (policy, *([against] if against not in ("", UNPLANNED) else [])):
            book.require(name)
    return [policy or str(options["weigh"]), *([against] if against else [])]


def _scenario(options: dict[str, object], name: str) -> "FleetScenario":
    from nuage.simulation.fleet_year import FleetScenario, Weighting
    from nuage.simulation.load_trace import read_trace

    trace = options["trace"]
    plans = bool(options["planner"]) and name != UNPLANNED
    policy = str(options["policy"])
    if name == UNPLANNED:
        name = policy or str(options["weigh"])
    return FleetScenario(
        node_count=int(str(options["nodes"])),
        zones=tuple(str(options["zones"]).split(",")),
        hours=int(str(options["hours"])),
        start_day=int(str(options["start_day"])),
        seed=int(str(options["seed"])),
        weighting=Weighting(str(options["weigh"]) if policy else name),
        policy=name if policy else "",
        set_point_c=float(str(options["set_point"])),
        target_share=float(str(options["load"])),
        ahead_hours=int(str(options["ahead"])),
        planner_every_h=int(str(options["every"])) if plans else 0,
        hold_h=float(str(options["hold"])),
        boot_s=float(str(options["boot"])),
        trace=() if trace is None else read_trace(Path(str(trace))),
    )


def _run(scenario: "FleetScenario", name: str) -> "list[HourRow]":
    from nuage.simulation.fleet_year import run

    rows: list[HourRow] = []
    with _progress() as progress:
        tell = teller(progress, name, scenario.hours)
        for hour in run(scenario, tell):
            rows += hour
            tell(hour[0].hour + 1)
    return rows


def teller(
    progress: Progress, name: str, hours: int, monotonic_s: Callable[[], float] = time.monotonic
) -> Callable[[float], None]:
    """Return what tells how many hours have passed: by a bar, or where nobody looks by lines."""
    if progress.console.is_terminal:
        task = progress.add_task(name, total=hours)
        return lambda passed: progress.update(task, completed=passed)
    told_s = monotonic_s()

    def tell(passed: float) -> None:
        nonlocal told_s
        if monotonic_s() - told_s >= TOLD_EVERY_S:
            told_s = monotonic_s()
            click.echo(f"{name}: {passed:.2f} of {hours} hours", err=True)

    return tell


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


COLUMNS: Final = (
    "SITE", "VMS", "NODES ON", "BOOTS", "MOVES", "IT kWh", "PUE", "METER kWh", "EUR", "kgCO2e",
    "REFUSED",
)  # fmt: skip


def _by_site(rows: "Sequence[HourRow]") -> list[tuple[object, ...]]:
    sites = list(dict.fromkeys(row.site for row in rows))
    table: list[tuple[object, ...]] = [
        (site, *_sums([row for row in rows if row.site == site])) for site in sites
    ]
    hours = len(rows) // max(len(sites), 1)
    refused = sum(row.refused for row in rows[:: max(len(sites), 1)])
    return [*table, ("total", *_sums(rows, hours)[:-1], refused)]


def _sums(rows: "Sequence[HourRow]", hours: int = 0) -> tuple[object, ...]:
    count = max(hours or len(rows), 1)
    it_kwh = sum(row.it_kwh for row in rows)
    meter_kwh = sum(row.facility_kwh for row in rows)
    return (
        f"{sum(row.vms for row in rows) / count:.0f}",
        f"{sum(row.nodes_on for row in rows) / count:.1f}",
        sum(row.boots for row in rows),
        sum(row.migrations for row in rows),
        f"{it_kwh:.1f}",
        f"{meter_kwh / it_kwh:.3f}" if it_kwh else "-",
        f"{meter_kwh:.1f}",
        f"{sum(row.cost_eur for row in rows):.2f}",
        f"{sum(row.carbon_g for row in rows) / 1000.0:.2f}",
        "",
    )


def _compare(names: Sequence[str], found: "dict[str, list[HourRow]]") -> None:
    def change(of: str) -> str:
        one, two = (sum(getattr(row, of) for row in found[name]) for name in names)
        return f"{(one / two - 1.0) * 100.0:+.2f} %" if two else "-"

    click.echo(
        f"{names[0]} against {names[1]}: meter {change('facility_kwh')}, "
        f"EUR {change('cost_eur')}, gCO2e {change('carbon_g')}"
    )


@simulate_group.command("planetlab")
@click.argument("folder", type=FOLDER)
@click.option("--honest/--compat", default=True, show_default=True,
              help="Memory enforced and switching paid for, or CloudSim's rules.")  # fmt: skip
@click.option("--csv", "csv_file", type=NEW_FILE, default=None)
@click.option("--plot", type=NEW_FILE, default=None, help="PNG or SVG file.")
@pass_session
def planetlab_command(
    session: Session, folder: Path, csv_file: Path | None, plot: Path | None, *, honest: bool
) -> None:
    """A day of PlanetLab traces in FOLDER (one file a VM, 288 per cents) on 800 hosts."""
    from nuage.simulation import planetlab
    from nuage.simulation.plots import plot_day

    try:
        from nuage.simulation.consolidation import PackedByMemory, Steady, Threshold
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"this simulation needs {error.name}, which is not installed here",
            hint="run it from Nuage's tree after `make setup`",
        ) from error
    if plot is not None:
        require_plot(plot)
    day = planetlab.load_day(folder)
    policies: list[planetlab.Policy] = [PackedByMemory()] if honest else [Threshold(), Steady()]
    results = []
    with _progress() as progress:
        for policy in policies:
            step = partial(progress.advance, progress.add_task(policy.name, total=planetlab.STEPS))
            results.append(planetlab.run_day(day, policy, honest=honest, on_step=step))
    rows = [
        (
            r.policy, f"{r.energy_kwh:.2f}", r.migration_count, f"{r.slav:.3e}",
            f"{r.overload_share:.4%}", f"{r.degraded_share:.4%}", f"{r.host_count_mean:.1f}",
            r.boot_count,
        )
        for r in results
    ]  # fmt: skip
    headers = ("POLICY", "kWh", "MIGRATIONS", "SLAV", "SLATAH", "PDM", "HOSTS", "BOOTS")
    if csv_file is not None:
        lines = [",".join(headers), *(",".join(map(str, row)) for row in rows)]
        csv_file.write_text("\n".join(lines) + "\n")
    if plot is not None:
        rules = "memory enforced" if honest else "CloudSim's rules"
        title = f"PlanetLab {folder.name}, {len(day.vm_mips):,} VMs, {rules}"
        plot.write_bytes(plot_day(results, kind=plot.suffix.removeprefix("."), title=title))
    if answered(session, [dict(zip(headers, row, strict=True)) for row in rows]):
        return
    print_table(headers, rows, empty="no policy")
    if honest:
        hosts = round(results[0].host_count_mean)
        whole, fluid = planetlab.whole_vms_bound_kwh(day, hosts), planetlab.memory_bound_kwh(day)
        over = results[0].energy_kwh / whole - 1.0
        click.echo(
            f"memory bound: {whole:.2f} kWh with whole VMs ({hosts} hosts; {over:+.2%}), "
            f"{fluid:.2f} kWh if VMs were fluid"
        )


@simulate_group.command("export")
@click.argument("file", type=NEW_FILE)
@pass_session
def export_command(session: Session, file: Path) -> None:
    """Write the VMs that the federation runs now into FILE, as a load for `fleet --trace`."""
    from math import inf

    from nuage.simulation.load_trace import VmSpan, to_csv

    spans = []
    for iaas in rows_of(session.client.get("/v1/iaas")):
        name = inner(iaas, "value")["iaas_id"]
        for row in rows_of(session.client.get(f"/v1/iaas/{name}/vms")):
            vm = inner(row, "value")
            shape = inner(vm, "shape")
            if vm["wish"] == "running":
                size = int(str(shape["vcpu_count"])), int(str(shape["memory_mib"]))
                spans.append(VmSpan(0.0, inf, *size))
    file.write_text(to_csv(sorted(spans)))
    click.echo(f"wrote {len(spans)} VMs to {file}")


COMMANDS = (simulate_group,)
