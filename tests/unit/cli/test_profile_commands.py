"""Profiles are listed without their tokens, chosen and forgotten."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nuage.api.profile import Profile, keep_profile, load_profiles
from nuage.cli.main import main


@pytest.fixture(autouse=True)
def _two_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("NUAGE_PROFILE", "NUAGE_SITE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ada", "bob"):
        keep_profile(name, Profile(endpoint="unix:/door", user=name, token="s3cret"))


def nuage(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_profiles_are_listed_without_their_tokens() -> None:
    told = nuage("profile", "list", "--json")
    assert [(row["name"], row["current"]) for row in json.loads(told.stdout)] == [
        ("ada", False),
        ("bob", True),
    ]
    assert "s3cret" not in told.stdout
    assert "s3cret" not in nuage("profile", "list").stdout


def test_a_profile_becomes_the_current_one_if_there_is_one() -> None:
    assert nuage("profile", "use", "ada").exit_code == 0
    assert load_profiles().current == "ada"
    told = nuage("profile", "use", "eve")
    assert (told.exit_code, told.stderr) == (
        1,
        "error: no profile 'eve'\nhint:  there is ada, bob\n",
    )
    assert load_profiles().current == "ada"


def test_who_logs_out_leaves_no_token_and_is_nobody_else_after_it() -> None:
    assert nuage("logout").exit_code == 0
    assert list(load_profiles().profiles) == ["ada"]
    assert nuage("logout").exit_code == 1, "none is current now"
    assert nuage("logout", "ada").exit_code == 0
    assert "no profiles" in nuage("profile", "list").stdout


def test_a_site_without_a_profile_is_answered_by_those_that_there_are_and_never_by_oneself() -> (
    None
):
    keep_profile("lab-one", Profile(endpoint="unix:/door", user="ada", token="s3cret"))
    told = nuage("--site", "lyon", "volume", "list", "--iaas", "acme")
    assert "no profile reaches site 'lyon' beside 'lab-one'" in told.stderr
    assert "known" not in told.stderr
    keep_profile("lab-one-marne", Profile(endpoint="unix:/door", user="ada", token="s3cret"))
    told = nuage("--site", "lyon", "--profile", "lab-one", "volume", "list", "--iaas", "acme")
    assert "known: marne\n" in told.stderr
