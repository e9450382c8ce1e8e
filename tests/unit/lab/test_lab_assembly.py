"""What the assembly gives a node's init, and how it waits for a controller."""

import socket
from pathlib import Path

import pytest

from nuage.lab.assembly import daemon_service, listens


def test_a_daemon_is_the_same_whoevers_shell_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a second `nuage lab up`, from another shell, would restart all daemons."""
    first = daemon_service("controller", "controller", Path("/run/c.toml"))
    monkeypatch.setenv("PATH", "/opt/mine/bin:/usr/bin")
    assert daemon_service("controller", "controller", Path("/run/c.toml")) == first


def test_a_socket_that_a_controller_left_is_no_controller(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    assert not listens(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(path))
        door.listen()
        assert listens(path)
    assert path.exists()
    assert not listens(path)
