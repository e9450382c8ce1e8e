"""Where the API is and who asks: profiles in ``~/.config/nuage/profiles.json`` (0600).

A profile holds an endpoint (``unix:/path`` or ``https://host:port``), the user's name and the last
token; where a `secret_file` is named, an expired token is renewed from it without a question.
"""

import os
from pathlib import Path

import msgspec

from nuage.errors import UNREADABLE, InvalidRequest, NotFound


class Profile(msgspec.Struct, frozen=True):
    """One way to a federation."""

    endpoint: str
    user: str = ""
    token: str = ""
    secret_file: str = ""
    ca_file: str = ""
    iaas: str = ""


class Profiles(msgspec.Struct, frozen=True):
    """All of them; `current` is used when none is named."""

    current: str = ""
    profiles: dict[str, Profile] = {}

    def require(self, name: str) -> Profile:
        """Return the profile named, or the current one.

        Raises:
            NotFound: there is none; the hint says how to make one.
        """
        wanted = name or os.environ.get("NUAGE_PROFILE", "") or self.current
        found = self.profiles.get(wanted)
        if found is None:
            raise NotFound(
                "profile",
                wanted or "(none)",
                hint="`nuage login --endpoint https://HOST:7400 USER`, or `nuage lab up`",
            )
        return found


def profiles_file() -> Path:
    """Return where profiles are kept."""
    root = os.environ.get("XDG_CONFIG_HOME", "") or str(Path.home() / ".config")
    return Path(root) / "nuage" / "profiles.json"


def load_profiles() -> Profiles:
    """Return the profiles kept, or none.

    Raises:
        InvalidRequest: the file holds something else.
    """
    path = profiles_file()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Profiles)
    except FileNotFoundError:
        return Profiles()
    except UNREADABLE as error:
        raise InvalidRequest(
            f"{path} cannot be read: {error}", hint="mend it, or remove it and log in again"
        ) from None


def keep_profile(name: str, profile: Profile, *, make_current: bool = True) -> None:
    """Write one profile."""
    known = load_profiles()
    changed = Profiles(
        current=name if make_current or not known.current else known.current,
        profiles={**known.profiles, name: profile},
    )
    _write(changed)


def use_profile(name: str) -> None:
    """Make a profile the current one.

    Raises:
        NotFound: there is none of that name.
    """
    _write(Profiles(current=name, profiles=_load_with(name).profiles))


def forget_profile(name: str) -> None:
    """Forget one profile and its token.

    Raises:
        NotFound: there is none of that name.
    """
    _forget(_load_with(name), {name})


def forget_profiles(prefix: str) -> None:
    """Forget the profiles whose name begins with `prefix`."""
    known = load_profiles()
    _forget(known, {name for name in known.profiles if name.startswith(prefix)})


def _forget(known: Profiles, names: set[str]) -> None:
    """Forget profiles; if the current one is among them, none is current any more."""
    kept = {name: profile for name, profile in known.profiles.items() if name not in names}
    if len(kept) != len(known.profiles):
        _write(Profiles(current=known.current if known.current in kept else "", profiles=kept))


def _load_with(name: str) -> Profiles:
    """Return the profiles kept, if one of that name is among them."""
    known = load_profiles()
    if name not in known.profiles:
        there = ", ".join(sorted(known.profiles))
        raise NotFound("profile", name, hint=f"there is {there}" if there else "there is none")
    return known


def _write(profiles: Profiles) -> None:
    path = profiles_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_suffix(".part")
    part.touch(mode=0o600)
    part.write_bytes(msgspec.json.format(msgspec.json.encode(profiles)))
    part.rename(path)
