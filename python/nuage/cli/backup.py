"""What a disaster needs: a controller's back-up, a new machine for it, a quorum of one site."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nuage.cli.joining import CONFIG
from nuage.cli.paths import FILE, NEW_FILE
from nuage.ids import SiteId

if TYPE_CHECKING:
    from nuage.daemon.configuration import ControllerConfiguration


def _configuration(config: Path) -> "ControllerConfiguration":
    from nuage.daemon.configuration import ControllerConfiguration, load
    from nuage.daemon.process import configure_logs

    configure_logs("backup", "", "error")  # whatever goes wrong ends the command, which tells it
    return load(config, ControllerConfiguration)


@click.command("backup")
@click.argument("file", type=NEW_FILE)
@CONFIG
def backup_command(file: Path, config: Path) -> None:
    """Back this machine's controller up into FILE, while it runs or not.

    FILE is a tar of mode 0600. It holds the keys of the site: keep it as secret as them, and away
    from this machine. Images are not in it.
    """
    from nuage.clock import SystemClock
    from nuage.daemon.backup import make_backup

    made = asyncio.run(make_backup(_configuration(config), file, SystemClock()))
    size = f"{made.size_bytes / 1e6:.1f} MB"
    click.echo(f"{file}: {made.record_count} records, revision {made.revision}, {size}")
    if made.holds_root:
        click.echo("The federation's root key is in it: keep it as you keep that key.")


@click.command("restore")
@click.argument("file", type=FILE)
@click.option(
    "--without",
    multiple=True,
    metavar="SITE",
    help="Do without what only SITE may know of this one; repeat.",
)
@CONFIG
def restore_command(file: Path, without: tuple[str, ...], config: Path) -> None:
    """Bring the controller of a lost machine back here from FILE.

    Asks every other datacenter what it knows of this one, and takes the newest. The directories
    that the configuration names must be empty, and the lost machine must never start again.
    """
    from nuage.clock import SystemClock
    from nuage.daemon.restore import restore

    restored = asyncio.run(
        restore(
            _configuration(config),
            file,
            SystemClock(),
            without=[SiteId(site) for site in without],
            say=click.echo,
        )
    )
    made = dt.datetime.fromtimestamp(restored.manifest.made_s).astimezone()
    newest = restored.source or f"the back-up of {made:%Y-%m-%d %H:%M}"
    click.echo(f"restored {restored.record_count} records, as {newest} knew them")
    if not restored.is_sure:
        click.echo("First switch this site's V-nodes off, all of them, and on again: a VM may run")
        click.echo("where its record does not say, and would be started a second time.")
    click.echo("Next: start `nuage quorum-member` and `nuage controller`.")


@click.command("recover-quorum")
@click.option(
    "--given-up",
    multiple=True,
    required=True,
    metavar="SITE",
    help="A datacenter whose member of the quorum is lost; repeat for every other one.",
)
@CONFIG
def recover_quorum_command(given_up: tuple[str, ...], config: Path) -> None:
    """Make this site's member the whole quorum, once the majority is lost for good.

    The daemons of this site must be stopped, and controllers and members of every SITE: a second
    quorum would let VMs run twice. It is refused while one of them answers; who cannot be reached
    from here, an operator has to make sure of.
    """
    from nuage.clock import SystemClock
    from nuage.daemon.recovery import recover_quorum

    lacked = asyncio.run(
        recover_quorum(
            _configuration(config),
            SystemClock(),
            given_up=[SiteId(site) for site in given_up],
            say=click.echo,
        )
    )
    for owned in lacked:
        click.echo(f"put in: {owned.kind} {owned.id} is {owned.owner}'s under epoch {owned.epoch}")
    click.echo("This site's member is the whole quorum now.")
    click.echo("Next: start `nuage quorum-member` and `nuage controller` here. Elsewhere, empty")
    click.echo(
        "`quorum.data_dir` before a member starts; revoke the datacenters that do not return."
    )


COMMANDS = (backup_command, restore_command, recover_quorum_command)
