"""What strangers, old heads and mistakes send: refused in words, logged, and nothing lost."""

import contextlib
import resource
import socket
import struct
import time
from collections.abc import Callable

import pytest
from tests.system.storage_front.storage_front_daemon import IQN, MIB, SECRET, Daemon, Refused
from tests.system.storage_front.test_storage_front_control import works

pytestmark = pytest.mark.system
CONNECTIONS_MAX = 1024  # crates/nuage-scsi/src/server.rs


def serve(daemon: Daemon, **words: object) -> None:
    daemon.ask("create_volume", volume="v", size_bytes=64 * MIB, logical_block_bytes=512)
    daemon.ask("open_head", volume="v", epoch=1, iqn=IQN, nbd="v", **words)


def login_pdu(text: bytes, *, length: int | None = None) -> bytes:
    """Return one operational login PDU; `length`: what its header says of its data."""
    head = bytearray(48)
    head[0], head[1] = 0x43, 0x87
    head[4:8] = struct.pack(">I", len(text) if length is None else length)
    return bytes(head) + text + bytes(-len(text) % 4)


def answer(daemon: Daemon, data: bytes) -> bytes:
    """Return what the iSCSI door says to some bytes before it hangs up or waits for more."""
    with socket.create_connection(("127.0.0.1", daemon.iscsi[0]), timeout=60) as door:
        door.sendall(data)
        door.settimeout(60)
        with contextlib.suppress(ConnectionError):
            return door.recv(4096)
    return b""


def eventually(holds: Callable[[], bool], daemon: Daemon) -> None:
    deadline_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline_s, daemon.log[-2000:]
        time.sleep(0.05)  # noqa: TID251 - a real process


def test_a_pdu_of_impossible_size_ends_its_connection_alone(
    daemons: Callable[[str], Daemon],
) -> None:
    daemon = daemons("one")
    serve(daemon)
    works(daemon.url(), "write -P 1 0 1M", "flush")
    assert answer(daemon, login_pdu(b"InitiatorName=iqn.x:y\0", length=0xFFFFFF)) == b""
    eventually(lambda: "iscsi_protocol_error" in daemon.log, daemon)
    works(daemon.url(), "read -P 1 0 1M")


def test_who_is_not_listed_is_forbidden_and_named_in_the_log(
    daemons: Callable[[str], Daemon],
) -> None:
    daemon = daemons("one")
    serve(daemon, initiators=["iqn.2015-01.fr.nuage:host"])
    text = f"InitiatorName=iqn.x:stranger\0SessionType=Normal\0TargetName={IQN}\0".encode()
    told = answer(daemon, login_pdu(text))
    assert (told[0] & 0x3F, told[36], told[37]) == (0x23, 0x02, 0x02)
    eventually(lambda: "iqn.x:stranger" in daemon.log, daemon)


def test_a_login_with_a_wrong_secret_is_refused_and_the_secret_is_in_no_log(
    daemons: Callable[[str], Daemon],
) -> None:
    daemon = daemons("one")
    serve(daemon, chap=[{"name": "user", "secret": SECRET}])
    text = f"InitiatorName=iqn.x:host\0SessionType=Normal\0TargetName={IQN}\0AuthMethod=None\0"
    told = answer(daemon, login_pdu(text.encode()))
    assert (told[36], told[37]) == (0x02, 0x01)
    eventually(lambda: "iscsi_login_refused" in daemon.log, daemon)
    assert SECRET not in daemon.log


def test_a_volume_of_nobody_lets_nobody_in(
    daemons: Callable[[str], Daemon],
) -> None:
    daemon = daemons("one")
    serve(daemon, chap=[])
    text = f"InitiatorName=iqn.x:host\0SessionType=Normal\0TargetName={IQN}\0"
    for asked in ("", "AuthMethod=None\0"):
        told = answer(daemon, login_pdu((text + asked).encode()))
        assert (told[36], told[37]) == (0x02, 0x01)
    daemon.ask("set_chap", volume="v")  # nobody is asked
    assert answer(daemon, login_pdu(text.encode()))[36:38] == b"\0\0"


def test_impossible_sizes_are_refused_in_words(daemons: Callable[[str], Daemon]) -> None:
    daemon = daemons("one")
    for size_bytes in (0, 1, 4095, (64 << 40) + 4096, (1 << 64) - 4096):
        with pytest.raises(Refused) as refusal:
            daemon.ask("create_volume", volume="v", size_bytes=size_bytes)
        assert refusal.value.code == "invalid_request", size_bytes
    serve(daemon)
    for size_bytes in (64 * MIB + 512, 1 << 60):
        with pytest.raises(Refused) as refusal:
            daemon.ask("resize", volume="v", size_bytes=size_bytes)
        assert refusal.value.code == "invalid_request", size_bytes
    works(daemon.url(), "write -P 1 0 1M", "flush", "read -P 1 0 1M")


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_the_largest_volume_is_written_and_read_at_both_ends_and_over_a_kill(
    daemons: Callable[[str], Daemon], block_bytes: int
) -> None:
    daemon = daemons("one")
    size_bytes = 64 << 40
    words = {"size_bytes": size_bytes, "logical_block_bytes": block_bytes}
    daemon.ask("create_volume", volume="v", **words)
    daemon.ask("open_head", volume="v", epoch=1, iqn=IQN)
    end = size_bytes - 8192
    works(daemon.url(), f"write -P 7 {end} 8k", "write -P 8 0 4k", "flush")
    daemon.kill()
    daemon.start()
    daemon.ask("open_head", volume="v", epoch=2, iqn=IQN)
    works(daemon.url(), f"read -P 7 {end} 8k", "read -P 8 0 4k", f"read -P 0 {end - 4096} 4k")


def test_a_flood_of_logins_is_bounded_and_logged_and_who_is_in_goes_on(
    daemons: Callable[[str], Daemon],
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 4 * CONNECTIONS_MAX:
        pytest.skip("too few descriptors for a flood")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * CONNECTIONS_MAX, hard))
    try:
        daemon = daemons("one")
        serve(daemon)
        with contextlib.ExitStack() as flood:
            for _ in range(CONNECTIONS_MAX + 50):
                door = flood.enter_context(socket.socket())
                door.connect(("127.0.0.1", daemon.iscsi[0]))
            eventually(lambda: daemon.log.count("too_many_connections") >= 1, daemon)
            # NBD is another door: who is in there does not notice.
            works(f"nbd://127.0.0.1:{daemon.nbd}/v", "write -P 3 0 1M", "flush", "read -P 3 0 1M")
        # Nobody stays: the flood is gone, or out after the time of a login.
        eventually(lambda: logs_in(daemon), daemon)
        works(daemon.url(), "read -P 3 0 1M")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def logs_in(daemon: Daemon) -> bool:
    text = f"InitiatorName=iqn.x:late\0SessionType=Normal\0TargetName={IQN}\0".encode()
    told = answer(daemon, login_pdu(text))
    return told[36:38] == b"\0\0"
