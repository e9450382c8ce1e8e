"""`nuage lab …`: the hardware bench on the command line. `lab_group` is mounted by the CLI.

`up` builds hardware and then, when the assembly is there, hands over to
`nuage.lab.assembly.assemble(lab, report)`, which gives the nodes their daemons; without it,
or with `--hardware-only`, nodes get power and run nothing.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from nuage.errors import InvalidRequest, NotFound, NuageError
from nuage.lab.control import LabStatus, NodeStatus, PowerOrder
from nuage.lab.description import DEFAULT_DESCRIPTION, bundled_names
from nuage.lab.lab import Lab
from nuage.lab.rig import Fault

ASSEMBLY: Final = "nuage.lab.assembly"
UNFOLDED: Final = 10_000  # who reads a pipe wants a row a line
_STATE_STYLE: Final = {
    "on": "green", "off": "dim", "post": "yellow", "stopping": "yellow", "dark": "red",
}  # fmt: skip

F = TypeVar("F", bound=Callable[..., object])


def _options(function: F) -> F:
    """Add the two options by which every command finds its lab."""
    name = click.option(
        "--name", default="", envvar="NUAGE_LAB",
        help="The lab's name; needed only when this machine runs several.",
    )  # fmt: skip
    state_dir = click.option(
        "--state-dir", type=click.Path(path_type=Path), default=None, envvar="NUAGE_LAB_STATE",
        help="Where the lab keeps its state.  [default: /run/nuage/lab/NAME]",
    )  # fmt: skip
    return name(state_dir(function))


def _existing(name: str, state_dir: Path | None) -> Lab:
    """Return the lab that is meant: by name, or the only one there is."""
    if name or state_dir is not None:
        return Lab.existing(name or (state_dir or Path()).name, state_dir)
    names = Lab.names()
    if not names:
        raise InvalidRequest("no lab is up on this machine", hint="`nuage lab up` builds one")
    if len(names) > 1:
        raise InvalidRequest(
            f"this machine runs several labs: {', '.join(names)}",
            field="name", hint=f"say which: --name {names[0]}",
        )  # fmt: skip
    return Lab.existing(names[0])


class _LabGroup(click.Group):
    """Turns the house's errors into what a person reads: message, field and what would help."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except NuageError as error:
            # A parent that renders errors itself (the `nuage` command) gets the original.
            if ctx.parent is not None and ctx.parent.obj is not None:
                raise
            field = getattr(error, "field", "")
            where = f"{field}: " if field else ""
            hint = f"\n{error.hint}" if error.hint else ""
            raise click.ClickException(f"{where}{error.message}{hint}") from error


@click.group("lab", cls=_LabGroup)
def lab_group() -> None:
    """A whole federation's hardware on this machine.

    Nodes are network namespaces, cables are shaped links, every node has a Redfish BMC and
    every rack a PDU whose watts follow the CPU that its nodes really use. Needs root.
    """


@lab_group.command(
    "up",
    help="""Build the lab of DESCRIPTION (four French sites by default) and power it on.

    DESCRIPTION is a TOML file, or the name of one that comes with Nuage: {names}.
    Does nothing to what is already there; a lab that crashed half-way is built anew.
    """.format(names=", ".join(bundled_names())),
)
@click.argument("description", type=click.Path(path_type=Path), default=DEFAULT_DESCRIPTION)
@_options
@click.option("--hardware-only", is_flag=True, help="Power the nodes on with nothing to run.")
@click.option("--off", is_flag=True, help="Leave all nodes off (implies --hardware-only).")
def up_command(
    description: Path, name: str, state_dir: Path | None, *, hardware_only: bool, off: bool
) -> None:
    """Build hardware, give nodes their daemons, tell what stands."""
    lab = Lab.open(description, state_dir, name=name)
    console = Console(stderr=True)
    nodes = [node.name for node in lab.description.nodes()]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("hardware", total=None)
        lab.create_hardware(lambda what: progress.update(task, description=what))
        assemble = None if hardware_only or off else _assembly()
        if assemble is not None:
            assemble(lab, lambda what: progress.update(task, description=what))
        elif not off:
            progress.update(task, description="powering on", total=len(nodes), completed=0)
            lab.power_on_all(report=lambda _node: progress.advance(task))
    click.echo(
        f"lab {lab.description.name} is up: {len(lab.description.sites)} sites, "
        f"{len(nodes)} nodes, {len(lab.description.pdus())} PDUs"
    )
    first = "" if assemble is None else "nuage site list · "
    click.echo(f"next: {first}nuage lab status · nuage lab exec NODE -- COMMAND · nuage lab down")


def _assembly() -> Callable[[Lab, Callable[[str], None]], None] | None:
    """Return `assemble(lab, report)` of the product's assembly, or None when there is none."""
    if importlib.util.find_spec(ASSEMBLY) is None:
        return None
    assemble: Callable[[Lab, Callable[[str], None]], None] = importlib.import_module(
        ASSEMBLY
    ).assemble
    return assemble


@lab_group.command("down")
@_options
@click.option("--all", "everything", is_flag=True, help="Every lab of this machine.")
def down_command(name: str, state_dir: Path | None, *, everything: bool) -> None:
    """Remove a lab: processes, namespaces, mounts, state and disks, even after a crash."""
    chosen = Lab.names() if everything else [name or _only_name(state_dir)]
    for each in chosen:
        _lab_to_destroy(each, state_dir).destroy()
        _disband(each)
        click.echo(f"lab {each} is gone")
    if not chosen:
        click.echo("no lab is up on this machine")


def _disband(name: str) -> None:
    """Let the assembly forget what it left outside the lab's state."""
    if importlib.util.find_spec(ASSEMBLY) is not None:
        importlib.import_module(ASSEMBLY).disband(name)


def _only_name(state_dir: Path | None) -> str:
    if state_dir is not None:
        return Lab.existing(state_dir.name, state_dir).description.name
    names = Lab.names()
    if len(names) == 1:
        return names[0]
    return _existing("", None).description.name


def _lab_to_destroy(name: str, state_dir: Path | None) -> Lab:
    """Return a lab to destroy; when its state is lost, the name alone finds what it made."""
    try:
        return Lab.existing(name, state_dir)
    except NotFound:
        if state_dir is None and name not in Lab.names():
            raise
        return Lab.open(DEFAULT_DESCRIPTION, state_dir, name=name)


@lab_group.command("list")
def list_command() -> None:
    """Name the labs of this machine."""
    for name in Lab.names():
        click.echo(name)


@lab_group.command("status")
@_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status_command(name: str, state_dir: Path | None, *, as_json: bool) -> None:
    """Show sites, nodes, watts and what is cut."""
    status = _existing(name, state_dir).status()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
        return
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console.width = UNFOLDED
    console.print(_site_table(status))
    console.print(_node_table(status.nodes))


def _site_table(status: LabStatus) -> Table:
    table = Table(title=f"lab {status.name}", title_justify="left")
    for column in ("site", "place", "operator", "outside °C", "watts", "of W", "cut"):
        numeric = column in ("outside °C", "watts", "of W")
        table.add_column(column, justify="right" if numeric else "left")
    for site in status.sites:
        table.add_row(
            site.name, site.place, site.operator, f"{site.outside_celsius:.1f}",
            f"{site.watts:.0f}", f"{site.capacity_watts:.0f}",
            "[red]" + "; ".join(site.cuts) if site.cuts else "",
        )  # fmt: skip
    return table


def _node_table(nodes: tuple[NodeStatus, ...]) -> Table:
    table = Table()
    for column in ("node", "role", "state", "address", "watts", "CPU %", "daemons"):
        numeric = column in ("watts", "CPU %")
        table.add_column(
            column, justify="right" if numeric else "left", no_wrap=column != "daemons"
        )
    for node in nodes:
        daemons = [
            service.name if service.pid else f"[red]{service.name} (exit {service.last_exit})[/red]"
            for service in node.services
        ]
        style = _STATE_STYLE.get(node.state, "")
        table.add_row(
            node.name, node.role, f"[{style}]{node.state}[/{style}]", node.address,
            f"{node.watts:.1f}", f"{100 * node.utilisation:.0f}", ", ".join(daemons),
        )  # fmt: skip
    return table


@lab_group.command("cut")
@click.argument("site")
@_options
@click.option(
    "--how",
    type=click.Choice(["blackhole", "carrier"]),
    default="blackhole",
    show_default=True,
    help="blackhole: lines look well and deliver nothing. carrier: lines are dead at both ends.",
)
@click.option("--provider", default="", help="Cut only this provider's line.")
def cut_command(
    site: str, name: str, state_dir: Path | None, how: str, provider: str
) -> None:  # fmt: skip
    """Cut SITE off from the others; SITE:OTHER cuts only what goes between the two."""
    near, _, far = site.partition(":")
    lab = _existing(name, state_dir)
    lab.cut(near, far, provider=provider, how=how)
    click.echo(f"cut: {site} ({how}); `nuage lab heal {site}` undoes it")


@lab_group.command("heal")
@click.argument("site")
@_options
def heal_command(site: str, name: str, state_dir: Path | None) -> None:
    """Undo the cuts of SITE, or of SITE:OTHER."""
    near, _, far = site.partition(":")
    _existing(name, state_dir).heal(near, far)
    click.echo(f"healed: {site}")


@lab_group.command("kill")
@click.argument("node", metavar="NODE|SITE|all")
@_options
def kill_command(node: str, name: str, state_dir: Path | None) -> None:
    """Cut the power of a NODE, of a SITE's nodes, or of all: all processes end at one stroke."""
    lab = _existing(name, state_dir)
    lab.order_all(lab.named(node), "kill")
    click.echo(f"{node} has lost its power; `nuage lab power {node} on` gives it back")


ORDERS: Final[dict[str, PowerOrder]] = {"on": "on", "off": "off", "cycle": "cycle"}


@lab_group.command("power")
@click.argument("node", metavar="NODE|SITE|all")
@click.argument("order", type=click.Choice(list(ORDERS)))
@_options
@click.option("--no-wait", is_flag=True, help="Return before the nodes are there.")
def power_command(
    node: str, order: str, name: str, state_dir: Path | None, *, no_wait: bool
) -> None:
    """Press buttons: on, off (a shutdown), cycle (power cut and given back).

    Of a NODE, of all nodes of a SITE, or of the whole federation with `all`, at once.
    """
    lab = _existing(name, state_dir)
    lab.order_all(lab.named(node), ORDERS[order], wait=not no_wait)
    click.echo(f"{node}: {order}")


@lab_group.command("weather", context_settings={"ignore_unknown_options": True})
@click.argument("site")
@click.argument("celsius", type=float)
@_options
def weather_command(site: str, celsius: float, name: str, state_dir: Path | None) -> None:
    """Make it CELSIUS degrees outside SITE; the sensors of its PDUs follow."""
    _existing(name, state_dir).set_weather(site, celsius)
    click.echo(f"{site}: {celsius:.1f} °C outside")


@lab_group.command("fault")
@click.argument("device")
@_options
@click.option("--silent", is_flag=True, help="Take connections and never answer.")
@click.option("--slow", type=float, default=0.0, metavar="SECONDS", help="Answer so late.")
@click.option("--jump", type=float, default=0.0, metavar="WATTS", help="Read so much too high.")
def fault_command(
    device: str, name: str, state_dir: Path | None, *, silent: bool, slow: float, jump: float
) -> None:
    """Make the BMC of a node, or a PDU, misbehave; without options it is healed."""
    _existing(name, state_dir).set_fault(device, Fault(silent, slow, jump))
    click.echo(f"{device}: {'faulty' if silent or slow or jump else 'healthy'}")


@lab_group.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("node")
@_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def exec_command(
    node: str, name: str, state_dir: Path | None, command: tuple[str, ...]
) -> None:  # fmt: skip
    """Run COMMAND on NODE, as one of its processes: `nuage lab exec marne-v1 -- ip address`."""
    argv = _existing(name, state_dir).command(node, command)
    sys.stdout.flush()
    os.execvp(argv[0], argv)


@lab_group.command("log")
@click.argument("node")
@click.argument("service", default="")
@_options
@click.option("--lines", type=click.IntRange(1), default=40, show_default=True)
def log_command(node: str, service: str, name: str, state_dir: Path | None, lines: int) -> None:
    """Show the end of what SERVICE (all, if left out) printed on NODE."""
    lab = _existing(name, state_dir)
    lab.node(node)
    logs = sorted(lab.log(node, "x").parent.glob("*.log"))
    chosen = [path for path in logs if not service or path.stem == service]
    if not chosen:
        names = ", ".join(path.stem for path in logs) or "none yet"
        raise InvalidRequest(f"{node} has no log {service!r}", hint=f"logs: {names}")
    for path in chosen:
        if len(chosen) > 1:
            click.echo(f"==> {path.stem} <==")
        text = path.read_text(encoding="utf-8", errors="replace")
        click.echo("\n".join(text.splitlines()[-lines:]))
