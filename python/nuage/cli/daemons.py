"""The processes of a node, as its init starts them."""

import asyncio
import os
import sys
from pathlib import Path

import click

from nuage.cli.paths import NEW_FILE

CONFIG = click.option(
    "--config",
    type=NEW_FILE,
    required=True,
    help="The process's TOML file.",
)


class Daemon(click.Command):
    """A process without people: it imports nothing that draws."""

    def invoke(self, ctx: click.Context) -> object:
        """Run until it is told to end."""
        # structlog takes Rich in for tracebacks in colour, which a log has no use for. None is how
        # Python is told that a module is not there: each daemon starts sooner, and is smaller.
        sys.modules["rich"] = None  # type: ignore[assignment]
        return super().invoke(ctx)


@click.command("controller", cls=Daemon)
@CONFIG
def controller_command(config: Path) -> None:
    """Run a site's controller: API, catalogue, placement."""
    from nuage.daemon.configuration import ControllerConfiguration, load
    from nuage.daemon.controller import Controller
    from nuage.daemon.process import configure_logs, run_process

    configuration = load(config, ControllerConfiguration)
    configure_logs("controller", configuration.datacenter.site_id, configuration.log_level)
    sys.exit(run_process(lambda: Controller(configuration).start()))


@click.command("vnode", cls=Daemon)
@CONFIG
def vnode_command(config: Path) -> None:
    """Run a V-node's agent: it runs virtual machines."""
    from nuage.daemon.configuration import VnodeConfiguration, load
    from nuage.daemon.process import configure_logs, run_process
    from nuage.daemon.vnode import VnodeProcess

    configuration = load(config, VnodeConfiguration)
    configure_logs("vnode", configuration.node.node_id, configuration.log_level)
    sys.exit(run_process(lambda: VnodeProcess(configuration).start()))


@click.command("ionode", cls=Daemon)
@CONFIG
def ionode_command(config: Path) -> None:
    """Run an IO-node's agent: it stores."""
    from nuage.daemon.configuration import IonodeConfiguration, load
    from nuage.daemon.ionode import IonodeProcess
    from nuage.daemon.process import configure_logs, run_process

    configuration = load(config, IonodeConfiguration)
    configure_logs("ionode", configuration.node.node_id, configuration.log_level)
    sys.exit(run_process(lambda: IonodeProcess(configuration).start()))


@click.command("edge", cls=Daemon)
@CONFIG
def edge_command(config: Path) -> None:
    """Run an edge: the RBridge that joins its site to the others."""
    from nuage.daemon.configuration import EdgeConfiguration, load
    from nuage.daemon.edge import EdgeProcess
    from nuage.daemon.process import configure_logs, run_process

    configuration = load(config, EdgeConfiguration)
    configure_logs("edge", configuration.node.node_id, configuration.log_level)
    sys.exit(run_process(lambda: EdgeProcess(configuration).start()))


@click.command("quorum-member", cls=Daemon)
@CONFIG
def quorum_member_command(config: Path) -> None:
    """Run this site's member of the quorum (etcd, in place of this process)."""
    from nuage.clock import SystemClock
    from nuage.daemon.configuration import ControllerConfiguration, load
    from nuage.daemon.process import configure_logs
    from nuage.daemon.quorum import etcd_command
    from nuage.quorum.member import MEMBER_ENVIRONMENT

    configuration = load(config, ControllerConfiguration)
    configure_logs("quorum-member", configuration.datacenter.site_id, configuration.log_level)
    argv = asyncio.run(etcd_command(configuration, SystemClock()))
    os.execvpe(argv[0], argv, {**os.environ, **MEMBER_ENVIRONMENT})


COMMANDS = (
    controller_command,
    vnode_command,
    ionode_command,
    edge_command,
    quorum_member_command,
)
