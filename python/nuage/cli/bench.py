"""`nuage lab`: the hardware bench, and the demo that runs on it."""

import click

from nuage.lab.commands import lab_group


@lab_group.command("demo")
@click.option("--once", is_flag=True, help="Take everything down at the end.")
@click.option("--name", default="", help="The lab's name.  [default: the description's]")
def demo_command(once: bool, name: str) -> None:
    """Run the main job: four datacenters, an IaaS, machines, a move, a loss, a cut."""
    from nuage.cli.demo import run

    run(name, once=once)


COMMANDS = (lab_group,)
