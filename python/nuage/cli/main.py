"""`nuage`: the group of all commands, and the one place that tells errors to people."""

import sys

import click

from nuage import __version__
from nuage.cli.session import Session
from nuage.errors import NoCandidate, NuageError


class NuageGroup(click.Group):
    """Tells our errors in two lines: what was wrong, and what would help."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; exit with 1 on an error of ours."""
        try:
            return super().invoke(ctx)
        except NuageError as error:
            tell(error)
            sys.exit(1)


def tell(error: NuageError) -> None:
    """Print an error on standard error."""
    field = getattr(error, "field", "")
    where = f" ({field})" if field else ""
    click.secho(f"error: {error.message}{where}", fg="red", err=True)
    if isinstance(error, NoCandidate):
        for candidate, rule, reason in error.refusals:
            click.echo(f"  {candidate:<24} {rule:<18} {reason}", err=True)
    if error.hint:
        click.echo(f"hint:  {error.hint}", err=True)


@click.group(cls=NuageGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nuage")
@click.option(
    "--profile", default="", envvar="NUAGE_PROFILE", help="Which federation, and who asks."
)
@click.option(
    "--site", default="", envvar="NUAGE_SITE", help="Ask this site; any shows the whole federation."
)
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON.")
@click.pass_context
def main(context: click.Context, profile: str, site: str, as_json: bool) -> None:
    """Nuage joins small, independent datacenters into one sovereign cloud.

    For a first look on one machine, `nuage lab up` starts four datacenters here;
    `nuage site list` then shows them.
    """
    context.obj = Session(profile_name=profile, site=site, as_json=as_json)


def _as_json(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked:
        context.ensure_object(Session).as_json = True


def _take_json(command: click.Command) -> None:
    """Let `--json` stand behind the command too, as it may stand before it."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _take_json(inner)
    elif not any("--json" in parameter.opts for parameter in command.params):
        option = click.Option(
            ["--json"], is_flag=True, expose_value=False, callback=_as_json,
            help="Print the API's answer as JSON.",
        )  # fmt: skip
        command.params.append(option)


def _mount() -> None:
    from nuage.cli.daemons import DAEMON_COMMANDS

    if sys.argv[1:2] in [[command.name] for command in DAEMON_COMMANDS]:
        # structlog takes Rich in for tracebacks in colour, which a log has no use for. None is how
        # Python is told that a module is not there: each daemon starts sooner, and is smaller.
        sys.modules["rich"] = None  # type: ignore[assignment]
        for command in DAEMON_COMMANDS:  # a daemon does not carry every other command's modules
            main.add_command(command)
        return
    from nuage.cli import (  # noqa: F401 - contracts, exports and keys add to the groups of iaas and storage
        addresses,
        audit,
        completion,
        contracts,
        energy,
        exports,
        fabric,
        iaas,
        keys,
        provenance,
        simulate,
        sites,
        storage,
        vms,
    )
    from nuage.cli.demo import demo_command
    from nuage.cli.joining import JOINING_COMMANDS
    from nuage.lab.commands import lab_group

    lab_group.add_command(demo_command)
    commands = (
        *sites.COMMANDS, *iaas.COMMANDS, *vms.COMMANDS, *storage.COMMANDS, *provenance.COMMANDS,
        *audit.COMMANDS, *energy.COMMANDS, *fabric.COMMANDS, *addresses.COMMANDS,
        *simulate.COMMANDS, *completion.COMMANDS,
    )  # fmt: skip
    for command in commands:
        _take_json(command)
    for command in (*commands, *DAEMON_COMMANDS, *JOINING_COMMANDS, lab_group):
        main.add_command(command)


_mount()

if __name__ == "__main__":
    main()
