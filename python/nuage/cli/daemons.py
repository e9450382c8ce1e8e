"""The processes of a node, as its init starts them."""

import asyncio
import os
import sys
from pathlib import Path

import click

CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The process's TOML file.",
)


@click.command("controller")
@CONFIG
def controller_command(config: Path) -> None:
    """Run a site's controller: API, catalogue, placement."""
    from nuage.daemon.configuration import ControllerConfiguration, load
    from nuage.daemon.controller import Controller
    from nuage.daemon.process import configure_logs, run_process

    configuration = load(config, ControllerConfiguration)
    configure_logs("controller", configuration.datacenter.site_id, configuration.log_level)
    sys.exit(run_process(lambda: Controller(configuration).start()))


@click.command("vnode")
@CONFIG
def vnode_command(config: Path) -> None:
    """Run a V-node's agent: it runs virtual machines."""
    from nuage.daemon.configuration import VnodeConfiguration, load
    from nuage.daemon.process import configure_logs, run_process
    from nuage.daemon.vnode import VnodeProcess

    configuration = load(config, VnodeConfiguration)
    configure_logs("vnode", configuration.node.node_id, configuration.log_level)
    sys.exit(run_process(lambda: VnodeProcess(configuration).start()))


@click.command("ionode")
@CONFIG
def ionode_command(config: Path) -> None:
    """Run an IO-node's agent: it stores."""
    from nuage.daemon.configuration import IonodeConfiguration, load
    from nuage.daemon.ionode import IonodeProcess
    from nuage.daemon.process import configure_logs, run_process

    configuration = load(config, IonodeConfiguration)
    configure_logs("ionode", configuration.node.node_id, configuration.log_level)
    sys.exit(run_process(lambda: IonodeProcess(configuration).start()))


@click.command("edge")
@CONFIG
def edge_command(config: Path) -> None:
    """Run an edge: the RBridge that joins its site to the others."""
    from nuage.daemon.configuration import EdgeConfiguration, load
    from nuage.daemon.edge import EdgeProcess
    from nuage.daemon.process import configure_logs, run_process

    configuration = load(config, EdgeConfiguration)
    configure_logs("edge", configuration.node.node_id, configuration.log_level)
    sys.exit(run_process(lambda: EdgeProcess(configuration).start()))


@click.command("quorum-member")
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


DAEMON_COMMANDS = (
    controller_command,
    vnode_command,
    ionode_command,
    edge_command,
    quorum_member_command,
)
