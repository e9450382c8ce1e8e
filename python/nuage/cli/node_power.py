"""`nuage node power`, `confirm-off` and `boot-files`: machines by hand, through BMCs and PDUs."""

from pathlib import Path

import click

from nuage.cli.paths import FILE, NEW_FOLDER
from nuage.cli.session import Session, pass_session
from nuage.cli.showing import answered, inner, listed, print_facts, row_of
from nuage.cli.sites import node_group
from nuage.facility.provisioning import read_network, write_boot_files

DONE = {"on": "is switched on", "off": "is switched off", "cycle": "is switched off and on"}


@node_group.command("power")
@click.argument("node")
@click.argument("order", type=click.Choice(["on", "off", "cycle"]), required=False)
@click.option("--force", is_flag=True, help="Take the power away, whatever runs there.")
@click.option("--outlets", is_flag=True, help="At the PDUs, where its BMC does not answer.")
@click.option(
    "--boot",
    type=click.Choice(["network", "disk", "cd", "http"]),
    help="What it boots from, this time.",
)
@pass_session
def power(
    session: Session, node: str, order: str | None, force: bool, outlets: bool, boot: str | None
) -> None:
    """Show what NODE's BMC and PDUs say, or switch it on, off, or off and on.

    Only a node in maintenance is switched off, and only when nothing needs it: no VM runs there, it
    has no copies of volumes, it is no edge. `--force` does it all the same.
    """
    path = f"/v1/nodes/{node}/power"
    if order is None:
        _show_power(session, path)
        return
    body = {"order": order, "force": force, "by_outlets": outlets, "boot": boot}
    answer = session.client.call("POST", path, body)
    if answered(session, answer):
        return
    if order == "off" and not force and not outlets:
        click.echo(f"{node}: its operating system is asked to end; `nuage node power {node}` tells")
    else:
        click.echo(f"{node} {DONE[order]}")


def _show_power(session: Session, path: str) -> None:
    answer = row_of(session.client.get(path))
    if answered(session, answer):
        return
    told = {True: "on", False: "off", None: "not told"}
    outlets = inner(answer, "outlets")
    print_facts([
        ("node", inner(answer, "node")["name"]),
        ("power", answer["state"] or "not told"),
        ("outlets", ", ".join(f"{name} {told[bool(on) if on is not None else None]}"
                              for name, on in sorted(outlets.items()))),
    ])  # fmt: skip
    for failure in listed(answer, "failures"):
        click.echo(str(failure), err=True)


@node_group.command("confirm-off")
@click.argument("node")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def confirm_off(session: Session, node: str, yes: bool) -> None:
    """Say that you have seen that NODE, a silent V-node, is off: its VMs start elsewhere.

    For nodes without a BMC, or whose BMC died with them. Its disks are safe if it runs after all:
    whoever starts a VM elsewhere keeps the former one from them. What its guests say to the network
    is not, so be sure.
    """
    if not yes:
        click.confirm(f"have you seen that {node} is off, or pulled its plug?", abort=True)
    answer = session.client.call("POST", f"/v1/nodes/{node}/confirm-off", {})
    if not answered(session, answer):
        click.echo(f"{node} counts as off; its VMs start elsewhere")


@node_group.command("boot-files")
@click.argument("inventory", type=FILE)
@click.argument("directory", type=NEW_FOLDER)
def boot_files_command(inventory: Path, directory: Path) -> None:
    """Write what boots bare machines by network: dnsmasq's configuration and iPXE scripts.

    INVENTORY is a file as `examples/boot.toml`. DIRECTORY gets `dnsmasq.conf` and `tftp/`, in which
    iPXE's own loaders have to lie for machines that are not iPXE themselves. Scripts of machines
    that are not in the inventory any more are removed.
    """
    network = read_network(inventory)
    write_boot_files(network, directory)
    count = len(network.machines)
    click.echo(f"{directory}: dnsmasq.conf, and scripts for {count} machines")
    click.echo(f"next: dnsmasq --conf-file={directory / 'dnsmasq.conf'}")
