"""Plots for people: a plan as bars over time, and what the rules foresee. PNG or SVG by name."""

from pathlib import Path
from time import localtime, strftime
from typing import Final

from nuage.cli.showing import Row, listed
from nuage.errors import InvalidRequest

COLOURS: Final = {
    "migrate": "#2a78b8", "power-off": "#777777", "power-on": "#d98a00", "boot": "#6a3d9a",
}  # fmt: skip


def require_plot(path: Path) -> None:
    """Raise InvalidRequest unless the name ends in .png or .svg."""
    if path.suffix not in (".png", ".svg"):
        raise InvalidRequest(f"{path} is neither .png nor .svg", field="plot")


def plot_plan(plan: Row, path: Path) -> None:
    """Draw a plan's steps by node, and below them share, price and temperature foreseen."""
    require_plot(path)
    from matplotlib.figure import Figure  # half a second that tables do not need

    steps, foreseen = listed(plan, "steps"), listed(plan, "foreseen")
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1)
    for step in steps:
        begin_s, end_s = float(str(step["begin_s"])), float(str(step["end_s"]))
        act = str(step["act"])
        above.barh(
            str(step["node_id"]), end_s - begin_s, left=begin_s, color=COLOURS[act], alpha=0.8
        )
        label = str(step["vm_name"] or act)
        above.text((begin_s + end_s) / 2, str(step["node_id"]), label, ha="center", va="center")
    above.set_xlabel("seconds from the plan's begin")
    above.set_title(
        f"{plan['site_id']}: {len(steps)} steps, {float(str(plan['joules'])):.0f} J, "
        f"saves {float(str(plan['saved_watts'])):.0f} W"
    )
    hours = [strftime("%d %H:%M", localtime(float(str(h["at_s"])))) for h in foreseen]
    below.step(hours, [float(str(h["share"])) * 100 for h in foreseen], where="post", color="black")
    below.set_ylabel("nodes in service, %")
    below.set_ylim(0, 105)
    below.tick_params(axis="x", rotation=60)
    other = below.twinx()
    for name, text, colour in (
        ("price_eur_per_mwh", "EUR/MWh", "#2a78b8"),
        ("temperature_c", "°C", "#c0392b"),
    ):
        points = [(t, h[name]) for t, h in zip(hours, foreseen, strict=True) if h[name] is not None]
        if points:
            other.plot(
                [t for t, _ in points], [float(str(v)) for _, v in points],
                color=colour, label=text, alpha=0.7,
            )  # fmt: skip
    other.legend(loc="upper right")
    figure.savefig(path)
