"""What goes wrong is told in words, or as JSON, and never as a traceback."""

import json
import socket
import ssl
import threading
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner, Result
from tests.unit.api.unix_door import unix_door

from nuage.api.client import Client
from nuage.api.profile import Profile, keep_profile, load_profiles
from nuage.cli.main import INTERRUPTED, main
from nuage.errors import InvalidRequest, Unavailable
from nuage.lab.certificate import make_certificate

REFUSED = {
    "site": "lyon", "request_id": "req-1",
    "error": {"code": "not_found", "message": "no vm 'web'", "hint": "there is db"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("NUAGE_PROFILE", "NUAGE_SITE", "NUAGE_IAAS"):
        monkeypatch.delenv(name, raising=False)


def nuage(*words: str, input: str = "") -> Result:
    return CliRunner().invoke(main, words, input=input)


def test_a_refusal_is_told_in_words_or_as_the_api_said_it(tmp_path: Path) -> None:
    async def refuse(_request: web.Request) -> web.Response:
        return web.json_response(REFUSED, status=404)

    app = web.Application()
    app.router.add_get("/v1/iaas/acme/vms/web", refuse)
    with unix_door(app, tmp_path) as endpoint:
        keep_profile("ada", Profile(endpoint=endpoint, token="t", iaas="acme"))
        told = nuage("vm", "show", "web")
        assert (told.exit_code, told.stdout) == (1, "")
        assert told.stderr == "error: no vm 'web'\nhint:  there is db\n"
        told = nuage("vm", "show", "web", "--json")
        assert (told.exit_code, told.stdout) == (1, "")
        assert json.loads(told.stderr) == REFUSED


def test_what_the_command_line_refuses_itself_is_json_too() -> None:
    told = nuage("--json", "vm", "list")
    assert json.loads(told.stderr)["error"]["code"] == "not_found"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    async def proof(_request: web.Request) -> web.Response:
        return web.json_response({"site": "lyon", "result": {"document": "{}"}})

    app = web.Application()
    app.router.add_get("/v1/iaas/acme/volumes/data/proof", proof)
    missing = tmp_path / "nowhere" / "proof.json"
    with unix_door(app, tmp_path) as endpoint:
        keep_profile("ada", Profile(endpoint=endpoint, token="t", iaas="acme"))
        told = nuage("volume", "prove", "data", "-o", str(missing))
    assert told.exit_code == 1
    assert told.stderr == f"error: {missing}: No such file or directory\n"


def test_what_cannot_be_verified_without_keys_says_so(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_bytes(b"no JSON")
    told = nuage("verify", str(tmp_path / "ledger"))
    assert told.exit_code == 1
    assert "keys.json" in told.stderr


def test_profiles_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    keep_profile("ada", Profile(endpoint="unix:/nowhere"))
    file = tmp_path / "config/nuage/profiles.json"
    file.write_text("{")
    told = nuage("vm", "list")
    assert told.exit_code == 1
    assert f"{file} cannot be read" in told.stderr


def test_an_interrupt_ends_as_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nuage.cli.session.load_profiles", interrupted)
    assert nuage("vm", "list").exit_code == INTERRUPTED


def test_a_certificate_that_is_not_believed_is_not_a_site_that_is_down(tmp_path: Path) -> None:
    make_certificate(tmp_path / "c.pem", tmp_path / "c.key", ("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "c.key")
    with socket.create_server(("127.0.0.1", 0)) as door:
        endpoint = f"https://127.0.0.1:{door.getsockname()[1]}"

        def shake_hands() -> None:
            peer, _ = door.accept()
            with peer, pytest.raises(OSError):  # noqa: PT011 - whatever its end says of ours
                context.wrap_socket(peer, server_side=True)

        server = threading.Thread(target=shake_hands)
        server.start()
        with pytest.raises(Unavailable, match="certificate that is not believed") as refused:
            Client(endpoint).get("/v1/sites")
        server.join()
    assert "--ca-file" in refused.value.hint
    (tmp_path / "none.pem").write_text("none")
    with pytest.raises(InvalidRequest, match="is no certificate"):
        Client(endpoint, ca_file=str(tmp_path / "none.pem")).get("/v1/sites")


def test_a_login_keeps_what_was_said_before_at_the_same_endpoint(tmp_path: Path) -> None:
    async def issue(_request: web.Request) -> web.Response:
        return web.json_response({"site": "lyon", "result": {"token": "fresh"}}, status=201)

    app = web.Application()
    app.router.add_post("/v1/tokens", issue)
    (tmp_path / "secret").write_text("correct horse battery")
    with unix_door(app, tmp_path) as endpoint:
        before = Profile(endpoint=endpoint, user="ada", ca_file="/etc/root.pem", iaas="acme")
        keep_profile("ada", before)
        told = nuage("login", "ada", "--secret-file", str(tmp_path / "secret"))
    assert told.exit_code == 0, told.output
    kept = load_profiles().require("ada")
    assert (kept.token, kept.ca_file, kept.iaas) == ("fresh", "/etc/root.pem", "acme")


@pytest.mark.parametrize(("names", "meant"), [(["acme"], "acme"), (["acme", "other"], "")])
def test_a_login_takes_the_only_iaas_and_the_secret_from_a_pipe(
    names: list[str], meant: str, tmp_path: Path
) -> None:
    heard: list[object] = []

    async def issue(request: web.Request) -> web.Response:
        heard.append(await request.json())
        return web.json_response({"site": "lyon", "result": {"token": "fresh"}}, status=201)

    async def iaases(request: web.Request) -> web.Response:
        heard.append(request.headers["Authorization"])
        return web.json_response({"result": [{"value": {"name": name}} for name in names]})

    app = web.Application()
    app.router.add_post("/v1/tokens", issue)
    app.router.add_get("/v1/iaas", iaases)
    with unix_door(app, tmp_path) as endpoint:
        words = ("login", "ann", "--endpoint", endpoint)
        none = nuage(*words)
        told = nuage(*words, input="correct horse battery\n")
    assert "standard input gives no secret" in none.stderr
    assert told.exit_code == 0, told.output
    assert heard == [{"name": "ann", "secret": "correct horse battery"}, "Bearer fresh"]
    assert load_profiles().require("ann").iaas == meant


def test_a_site_without_a_profile_is_told_how_to_get_one() -> None:
    keep_profile("ada", Profile(endpoint="unix:/nowhere", token="t", iaas="acme"))
    told = nuage("--site", "lyon", "vm", "list")
    assert "--profile ada-lyon" in told.stderr
    keep_profile("ada-lyon", Profile(endpoint="unix:/other", token="t", iaas="acme"))
    told = nuage("--site", "lyon", "--profile", "ada", "vm", "list")
    assert "unix:/other cannot be reached" in told.stderr
