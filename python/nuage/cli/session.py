"""Which federation is meant, and who asks: profile → client."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import click

from nuage.api.client import Client
from nuage.api.profile import Profile, keep_profile, load_profiles
from nuage.errors import InvalidRequest, Unauthenticated

# Before it answers the API does not say what takes it so long.
WAITS: Final = "no answer yet: still waiting"
F = TypeVar("F", bound=Callable[..., object])


@dataclass(slots=True)
class Session:
    """What the options of the whole command line say."""

    profile_name: str = ""
    site: str = ""
    as_json: bool = False
    _client: Client | None = field(default=None)

    @property
    def profile(self) -> Profile:
        """Return the profile that is meant; `--site` picks the sister profile of that site."""
        profiles = load_profiles()
        name = self.profile_name or profiles.current
        if self.site:
            name = _sister(name, self.site, profiles.profiles)
        return profiles.require(name)

    @property
    def client(self) -> Client:
        """Return the API's client, logged in."""
        if self._client is None:
            profile = self.profile
            client = Client(profile.endpoint, token=profile.token, ca_file=profile.ca_file)
            if sys.stderr.isatty():
                client.slow = lambda: click.echo(WAITS, err=True)
            if profile.secret_file:
                client.renew = lambda: self._renew(profile)
                if not profile.token:
                    client.token = self._renew(profile)
            elif not profile.token:
                raise Unauthenticated(
                    "the profile holds no token", hint=f"`nuage login {profile.user or 'USER'}`"
                )
            self._client = client
        return self._client

    def _renew(self, profile: Profile) -> str:
        secret = json.loads(Path(profile.secret_file).read_text())["secret"]
        fresh = Client(profile.endpoint, ca_file=profile.ca_file)
        token = fresh.log_in(profile.user, secret)
        name = self.profile_name or load_profiles().current
        if not self.site:
            keep_profile(name, replace_token(profile, token), make_current=False)
        return token

    def require_iaas(self, iaas: str) -> str:
        """Return the IaaS that is meant: the option, or the profile's.

        Raises:
            InvalidRequest: none is named anywhere.
        """
        chosen = iaas or self.profile.iaas
        if not chosen:
            raise InvalidRequest(
                "no IaaS is named",
                field="iaas",
                hint="--iaas NAME, or NUAGE_IAAS; `nuage iaas list` shows what there is",
            )
        return chosen

    def volume_path(self, iaas: str, name: str) -> str:
        """Return where the API has a volume of the IaaS that is meant."""
        return f"/v1/iaas/{self.require_iaas(iaas)}/volumes/{name}"


def replace_token(profile: Profile, token: str) -> Profile:
    """Return `profile` with another token."""
    return Profile(
        endpoint=profile.endpoint,
        user=profile.user,
        token=token,
        secret_file=profile.secret_file,
        ca_file=profile.ca_file,
        iaas=profile.iaas,
    )


def _sister(name: str, site: str, profiles: dict[str, Profile]) -> str:
    """Return the profile of another site beside `name`.

    ``lab-france-marne`` → ``lab-france-lyon``; ``alice`` → ``alice-lyon``.
    """
    stem = name.rpartition("-")[0]
    found = next((p for p in (site, f"{name}-{site}", f"{stem}-{site}") if p in profiles), "")
    if not found:
        below = [p.removeprefix(f"{name}-") for p in profiles if p.startswith(f"{name}-")]
        beside = [p.removeprefix(f"{stem}-") for p in profiles if stem and p.startswith(f"{stem}-")]
        known = below or [other for other in beside if f"{stem}-{other}" != name]
        raise InvalidRequest(
            f"no profile reaches site {site!r} beside {name!r}",
            field="site",
            hint=f"known: {', '.join(known)}" if known
            else f"`nuage login USER --endpoint … --profile {name}-{site}` makes one",
        )  # fmt: skip
    return found


pass_session = click.make_pass_decorator(Session, ensure=True)


def iaas_option(function: F) -> F:
    """Add the option that names the IaaS."""
    option = click.option(
        "--iaas", "-i", default="", envvar="NUAGE_IAAS", help="The IaaS, by name or id."
    )
    return option(function)
