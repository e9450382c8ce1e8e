"""Plots of simulations, PNG or SVG; the same figures give the same bytes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from typing import TYPE_CHECKING, Final

import matplotlib as mpl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nuage.simulation.fleet_year import HourRow
    from nuage.simulation.planetlab import DayResult

# Told apart by people who see colours differently (Okabe and Ito's set, darkest first).
COLOURS: Final = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#f0e442",
)  # fmt: skip


def plot_fleet(rows: "Sequence[HourRow]", *, kind: str, title: str = "") -> bytes:
    """Return kW, nodes on and PUE by site over the hours, `kind` svg or png."""
    from matplotlib.figure import Figure  # noqa: PLC0415 half a second that a table does not need

    sites = list(dict.fromkeys(row.site for row in rows))
    by_site = {site: [row for row in rows if row.site == site] for site in sites}
    hours = [row.hour for row in by_site[sites[0]]] if sites else []
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(sites))]
    with _style():
        figure = Figure(figsize=(9, 6.5), layout="constrained")
        watts, nodes, pue = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
        watts.stackplot(
            hours,
            *([row.facility_kwh for row in by_site[site]] for site in sites),
            labels=sites, colors=colours, linewidth=0,
        )  # fmt: skip
        for site, colour in zip(sites, colours, strict=True):
            nodes.plot(hours, [row.nodes_on for row in by_site[site]], color=colour)
            pue.plot(hours, [row.pue for row in by_site[site]], color=colour)
        watts.set_ylabel("kW at the sites' meters")
        nodes.set_ylabel("nodes on")
        nodes.set_ylim(bottom=0)
        pue.set_ylabel("PUE")
        pue.set_xlabel("hour")
        watts.set_title(title)
        for axes in (watts, nodes, pue):
            axes.margins(x=0)
            axes.grid(visible=True, axis="y", alpha=0.25)
        figure.legend(loc="outside right upper", frameon=False, title="site")
        return _bytes(figure, kind)


def plot_day(results: "Sequence[DayResult]", *, kind: str, title: str = "") -> bytes:
    """Return energy, migrations and SLAV of each policy as bars, `kind` svg or png."""
    from matplotlib.figure import Figure  # noqa: PLC0415 half a second that a table does not need

    names = [result.policy for result in results]
    with _style():
        figure = Figure(figsize=(9, 1.4 + 0.5 * len(names)), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes, (label, values, form) in zip(
            panels,
            (
                ("kWh over the day", [r.energy_kwh for r in results], "{:.1f}"),
                ("migrations", [float(r.migration_count) for r in results], "{:,.0f}"),
                ("SLAV, millionths", [r.slav * 1e6 for r in results], "{:.1f}"),
            ),
            strict=True,
        ):
            _bars(axes, names, values, form)
            axes.set_xlabel(label)
        panels[0].invert_yaxis()
        figure.suptitle(title, fontsize=10.0)
        return _bytes(figure, kind)


def _style() -> AbstractContextManager[None]:
    return mpl.rc_context({
        "svg.hashsalt": "nuage", "svg.fonttype": "none", "font.size": 9.0,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10.0,
    })  # fmt: skip


def _bars(axes: "Axes", names: Sequence[str], values: Sequence[float], form: str) -> None:
    bars = axes.barh(names, values, color=COLOURS[: len(names)], height=0.6)
    axes.bar_label(bars, [form.format(value) for value in values], padding=3)
    axes.set_xlim(0, max([*values, 1e-9]) * 1.3)
    axes.tick_params(axis="y", length=0)


def _bytes(figure: "Figure", kind: str) -> bytes:
    out = BytesIO()
    told = {"Date": None, "Creator": "nuage"} if kind == "svg" else {"Software": "nuage"}
    figure.savefig(out, format=kind, metadata=told, dpi=120)
    return out.getvalue()
