"""Founding a federation, joining it with a datacenter, joining a site with a node."""

import asyncio
import sys
from pathlib import Path

import click

from nuage.cli.paths import NEW_FILE
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.infrastructure import NodeRole

CONFIG = click.option(
    "--config",
    type=NEW_FILE,
    default=Path("/etc/nuage/controller.toml"),
    show_default=True,
    help="The controller's TOML file.",
)


@click.group("federation")
def federation_group() -> None:
    """Found a federation, invite datacenters."""


@federation_group.command("found")
@click.argument("name")
@CONFIG
def found_command(name: str, config: Path) -> None:
    """Found the federation NAME with this site as its first.

    Prints the first administrator's secret, once.
    """
    from nuage.daemon.configuration import ControllerConfiguration, load
    from nuage.daemon.joining import found

    founded = found(load(config, ControllerConfiguration), FederationId(name))
    click.echo(f"federation  {founded.federation_id}, first site {founded.site_id}")
    click.echo(f"user        {founded.admin_name}")
    click.echo(f"secret      {founded.admin_secret}   (shown once)")
    click.echo("Next: start `nuage quorum-member` and `nuage controller`, then `nuage login`.")


@federation_group.command("invite")
@click.argument("site")
@CONFIG
def invite_site_command(site: str, config: Path) -> None:
    """Print a single-use token with which the datacenter SITE joins; valid for a day."""
    from nuage.daemon.configuration import ControllerConfiguration, load
    from nuage.daemon.joining import invite_site

    click.echo(invite_site(load(config, ControllerConfiguration), SiteId(site)))


@federation_group.command("join")
@click.argument("token")
@CONFIG
def join_site_command(token: str, config: Path) -> None:
    """Join this datacenter to a federation with TOKEN (- reads it from standard input)."""
    from nuage.daemon.configuration import ControllerConfiguration, load
    from nuage.daemon.joining import join_as_site

    welcome = asyncio.run(join_as_site(load(config, ControllerConfiguration), _token(token)))
    click.echo(f"joined as site number {welcome.number}; peers: {', '.join(welcome.peers)}")
    click.echo("Next: start `nuage quorum-member` and `nuage controller`.")


@click.command("invite-node")
@click.argument("node")
@click.option(
    "--role",
    "roles",
    type=click.Choice([role.value for role in NodeRole]),
    multiple=True,
    required=True,
    help="What the node will be; repeat for several.",
)
@CONFIG
def invite_node_command(node: str, roles: tuple[str, ...], config: Path) -> None:
    """Print a single-use token with which the node NODE joins this site; valid for a day."""
    from nuage.daemon.configuration import ControllerConfiguration, load
    from nuage.daemon.joining import invite_node

    wanted = tuple(NodeRole(role) for role in roles)
    click.echo(invite_node(load(config, ControllerConfiguration), NodeId(node), wanted))


@click.command("join-node")
@click.argument("role", type=click.Choice(["vnode", "ionode", "edge"]))
@click.argument("token")
@click.option(
    "--config",
    type=NEW_FILE,
    required=True,
    help="The agent's TOML file.",
)
def join_node_command(role: str, token: str, config: Path) -> None:
    """Join this node to its site in ROLE with TOKEN (- reads it from standard input)."""
    from nuage.daemon.configuration import (
        AgentConfiguration,
        EdgeConfiguration,
        IonodeConfiguration,
        VnodeConfiguration,
        load,
    )
    from nuage.daemon.joining import join_as_node

    kinds: dict[str, type[AgentConfiguration]] = {
        "vnode": VnodeConfiguration,
        "ionode": IonodeConfiguration,
        "edge": EdgeConfiguration,
    }
    kind = kinds[role]
    configuration = load(config, kind)
    asyncio.run(join_as_node(configuration, NodeRole(role), _token(token)))
    click.echo(f"joined as {role} {configuration.node.node_id}")


def _token(text: str) -> str:
    return sys.stdin.readline().strip() if text == "-" else text


COMMANDS = (federation_group, invite_node_command, join_node_command)
