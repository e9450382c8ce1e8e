"""`nuage profile …` and `nuage logout`: by which door commands go, and as whom."""

import click

from nuage.api.profile import forget_profile, load_profiles, use_profile
from nuage.cli.session import Session, pass_session
from nuage.cli.showing import Row, show


@click.group("profile")
def profile_group() -> None:
    """Where commands go, and as whom; `nuage login` makes profiles."""


@profile_group.command("list")
@pass_session
def list_command(session: Session) -> None:
    """Show the profiles kept here; the current one is used where none is named."""
    known = load_profiles()
    told: list[Row] = [
        {
            "name": name, "current": name == known.current, "user": profile.user,
            "endpoint": profile.endpoint, "iaas": profile.iaas,
        }
        for name, profile in sorted(known.profiles.items())
    ]  # fmt: skip
    rows = [(r["name"], "yes" if r["current"] else "", r["user"], r["endpoint"]) for r in told]
    none = "no profiles: `nuage login --endpoint https://HOST:7400 USER` makes one"
    show(session, told, ("name", "current", "user", "endpoint"), rows, empty=none)


@profile_group.command("use")
@click.argument("name")
def use_command(name: str) -> None:
    """Make NAME the current profile."""
    use_profile(name)
    click.echo(f"commands go by profile {name}")


@click.command("logout")
@click.argument("name", required=False, default="")
@pass_session
def logout_command(session: Session, name: str) -> None:
    """Forget the profile NAME and its token.

    Without a NAME it is the current one. The token itself ends within the hour; should somebody
    else have it, `nuage user secret` makes it void at once.
    """
    name = name or session.profile_name or load_profiles().current
    forget_profile(name)
    click.echo(f"profile {name} is forgotten")


COMMANDS = (profile_group, logout_command)
