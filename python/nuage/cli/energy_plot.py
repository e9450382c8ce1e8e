"""Plots for people: a plan as bars over time, and what the rules foresee. PNG or SVG by name."""

from collections.abc import Sequence
from math import nan
from pathlib import Path
from time import localtime, strftime
from typing import TYPE_CHECKING, Final

from nuage.cli.showing import Row, listed
from nuage.errors import InvalidRequest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: Final = {
    "migrate": "#2a78b8", "power-off": "#777777", "power-on": "#d98a00", "boot": "#6a3d9a",
}  # fmt: skip


def require_plot(path: Path) -> None:
    """Raise InvalidRequest unless the name ends in .png or .svg."""
    if path.suffix not in (".png", ".svg"):
        raise InvalidRequest(f"{path} is neither .png nor .svg", field="plot")


def plot_plan(plan: Row, path: Path) -> None:
    """Draw a plan's steps by node; below, hour by hour, what the rules foresee and from what."""
    require_plot(path)
    from matplotlib.figure import Figure  # half a second that tables do not need

    figure = Figure(figsize=(9, 8), layout="constrained")
    steps, shares, weather = figure.subplots(3, 1, height_ratios=(1.4, 1.0, 1.0))
    _draw_steps(steps, plan)
    foreseen = listed(plan, "foreseen")
    hours = [strftime("%d %H:%M", localtime(float(str(h["at_s"])))) for h in foreseen]
    _draw(shares, hours, [100.0 * float(str(h["share"])) for h in foreseen], "black",
          "nodes in service, %")  # fmt: skip
    shares.set_ylim(0, 105)
    _draw(shares.twinx(), hours, _values(foreseen, "price_eur_per_mwh"), "#2a78b8", "EUR/MWh")
    _draw(weather, hours, _values(foreseen, "temperature_c"), "#c0392b", "°C outside")
    _draw(weather.twinx(), hours, _values(foreseen, "pue"), "#6a3d9a", "PUE")
    shares.tick_params(axis="x", labelbottom=False)
    weather.tick_params(axis="x", rotation=60)
    figure.savefig(path)


def _draw_steps(axes: "Axes", plan: Row) -> None:
    steps = listed(plan, "steps")
    for step in steps:
        begin_s, end_s = float(str(step["begin_s"])), float(str(step["end_s"]))
        act, node = str(step["act"]), str(step["node_id"])
        bar = axes.barh(node, end_s - begin_s, left=begin_s, color=COLOURS[act], alpha=0.8)
        label = f"{step['vm_name']} comes" if step["vm_name"] else act
        axes.bar_label(bar, labels=[label], label_type="center")
    if not steps:
        axes.text(0.5, 0.5, "nothing to do", ha="center", transform=axes.transAxes)
        axes.set_yticks([])
    axes.margins(y=0.3)
    axes.set_xlabel("seconds from the plan's begin")
    axes.set_title(
        f"{plan['site_id']}: {len(steps)} steps, {float(str(plan['joules'])):.0f} J, "
        f"saves {float(str(plan['saved_watts'])):.0f} W"
    )


def _values(foreseen: Sequence[Row], name: str) -> list[float]:
    """Return a figure by hour; NaN, which is not drawn, for what is not known."""
    return [nan if hour[name] is None else float(str(hour[name])) for hour in foreseen]


def _draw(
    axes: "Axes", hours: Sequence[str], values: Sequence[float], colour: str, label: str
) -> None:
    """Draw a figure that holds for an hour each, its axis in its own colour."""
    axes.step(hours, values, where="post", color=colour)
    axes.set_ylabel(label, color=colour)
    axes.tick_params(axis="y", colors=colour)
