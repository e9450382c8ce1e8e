"""The daemon's control socket, its life, and replicas on three sites."""

import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.storage_front.storage_front_daemon import IQN, MIB, Daemon, Refused, need

pytestmark = pytest.mark.system

VIEW_IQN = "iqn.2015-01.fr.nuage:view"


def qemu_io(url: str, *acts: str) -> subprocess.CompletedProcess[str]:
    """Run acts of `qemu-io` on a URL."""
    need("qemu-io")
    words = [word for act in acts for word in ("-c", act)]
    command = ["qemu-io", "-f", "raw", url, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def works(url: str, *acts: str) -> None:
    """Run acts that must all succeed; a pattern that does not match fails, too."""
    done = qemu_io(url, *acts)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verification failed" not in done.stdout, done.stdout


def serve(daemon: Daemon, **head: object) -> None:
    """Create and open the volume under test."""
    daemon.ask("create_volume", volume="v", size_bytes=64 * MIB, logical_block_bytes=512)
    daemon.ask("open_head", volume="v", epoch=1, iqn=IQN, **head)


def test_requests_may_be_repeated_and_refusals_have_codes(
    daemons: Callable[[str], Daemon],
) -> None:
    daemon = daemons("one")
    for _ in range(2):
        serve(daemon)
    cases: list[tuple[str, str, dict[str, object]]] = [
        ("not_found", "open_head", {"volume": "w", "epoch": 1}),
        ("stale_epoch", "open_head", {"volume": "v", "epoch": 0}),
        ("conflict", "delete_volume", {"volume": "v"}),
        ("conflict", "create_volume", {"volume": "v", "size_bytes": 4096}),
        ("invalid_request", "create_volume", {"volume": "../x", "size_bytes": 4096}),
        ("invalid_request", "create_volume", {"volume": "w", "size_bytes": 1 << 60}),
        ("invalid_request", "nonsense", {}),
        ("invalid_request", "set_chap", {"volume": "v", "chap": [{"name": "u", "secret": "x"}]}),
    ]
    for code, op, fields in cases:
        with pytest.raises(Refused) as refusal:
            daemon.ask(op, **fields)
        assert refusal.value.code == code, (op, fields)
    for _ in range(2):
        daemon.ask("close_head", volume="v")
        daemon.ask("delete_volume", volume="v")


def test_the_control_socket_is_its_owners_alone(daemons: Callable[[str], Daemon]) -> None:
    daemon = daemons("one")
    mode = (daemon.folder / "control").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_durable_writes_survive_a_kill_and_a_graceful_end_is_graceful(
    daemons: Callable[[str], Daemon],
) -> None:
    daemon = daemons("one")
    serve(daemon)
    works(daemon.url(), "write -P 7 3M 1M", "flush")
    daemon.kill()
    daemon.start()
    daemon.ask("open_head", volume="v", epoch=1, iqn=IQN)
    works(daemon.url(), "read -P 7 3M 1M", "write -P 8 0 4k")
    assert daemon.stop() == 0
    daemon.start()
    daemon.ask("open_head", volume="v", epoch=2, iqn=IQN)
    works(daemon.url(), "read -P 8 0 4k", "read -P 7 3M 1M")


def test_the_past_is_served_beside_the_present_and_can_be_rolled_back_to(
    daemons: Callable[[str], Daemon],
) -> None:
    daemon = daemons("one")
    serve(daemon)
    works(daemon.url(), "write -P 1 0 1M", "flush")
    sequences = daemon.ask("mark", volumes=["v"], name="before")["sequences"]
    assert isinstance(sequences, dict)
    works(daemon.url(), "write -P 2 0 1M", "flush")
    moment = {"sequence": sequences["v"]}
    view = daemon.ask("at", volume="v", moment=moment, iqn=VIEW_IQN)
    past = daemon.url().replace(IQN, VIEW_IQN)
    done = subprocess.run(
        ["qemu-io", "-r", "-f", "raw", past, "-c", "read -P 1 0 1M"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout
    works(daemon.url(), "read -P 2 0 1M")
    daemon.ask("close_at", view=view["view"])
    daemon.ask("rollback", volume="v", moment=moment)
    works(daemon.url(), "read -P 1 0 1M")
    marks = daemon.ask("history", volume="v")["marks"]
    assert isinstance(marks, list)
    assert [mark["name"] for mark in marks] == ["before"]


def test_the_views_of_a_volume_are_listed_bounded_and_gone_after_a_crash(
    daemons: Callable[[str], Daemon],
) -> None:
    daemon = daemons("one")
    serve(daemon)

    def listed() -> list[str]:
        views = daemon.ask("status", volume="v")["views"]
        assert isinstance(views, list)
        return [view["view"] for view in views]

    def show(number: int) -> str:
        moment = {"sequence": 0}
        view = daemon.ask("at", volume="v", moment=moment, iqn=f"{VIEW_IQN}-{number}", seconds=60)
        return str(view["view"])

    names = [show(number) for number in range(16)]
    assert sorted(listed()) == sorted(names)
    with pytest.raises(Refused, match="16 views open: close one"):
        show(16)
    daemon.ask("close_at", view=names[3])
    show(16)
    daemon.kill()
    daemon.start()
    daemon.ask("open_head", volume="v", epoch=2, iqn=IQN)
    assert listed() == []
    show(0)  # its name is free again


def test_an_image_fills_a_volume_and_tells_its_progress(
    daemons: Callable[[str], Daemon], tmp_path: Path
) -> None:
    daemon = daemons("one")
    daemon.ask("create_volume", volume="v", size_bytes=256 * MIB, logical_block_bytes=512)
    daemon.ask("open_head", volume="v", epoch=1, iqn=IQN)
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.write(b"\x05" * MIB)
        file.truncate(200 * MIB)
        file.seek(199 * MIB + 512)
        file.write(b"\x06" * 1024)
    daemon.ask("fill_from_image", volume="v", path=str(image))
    assert daemon.lines
    works(daemon.url(), "read -P 5 0 1M", "read -P 0 1M 1M", f"read -P 6 {199 * MIB + 512} 1k")
    assert daemon.head()["mapped_bytes"] == 2 * MIB


def replica_of(site: Daemon) -> dict[str, str]:
    """Return how a head is told of a copy."""
    name = site.folder.name
    return {"name": f"{name}-io1", "site": name, "address": f"127.0.0.1:{site.replica}"}


def open_on(sites: list[Daemon], number: int, epoch: int) -> None:
    """Let one of three daemons lead, with copies at the other two."""
    others = [site for index, site in enumerate(sites) if index != number]
    replicas = [replica_of(site) for site in others]
    sites[number].ask(
        "open_head", volume="v", epoch=epoch, policy="any-2-of-3", replicas=replicas, iqn=IQN,
        ack="memory",
    )  # fmt: skip
    sites[number].wait_until_open()


def test_a_head_that_dies_is_followed_by_another_site_with_every_write(
    three_sites: list[Daemon],
) -> None:
    for site in three_sites:
        site.ask(
            "create_replica", volume="v", size_bytes=64 * MIB, logical_block_bytes=512,
            uuid="00112233445566778899aabbccddeeff",
        )  # fmt: skip
    open_on(three_sites, 0, epoch=1)
    works(three_sites[0].url(), "write -P 1 0 8M", "write -P 2 1M 64k", "flush")
    three_sites[0].kill()
    open_on(three_sites, 1, epoch=2)
    works(three_sites[1].url(), "read -P 1 0 1M", "read -P 2 1M 64k", "write -P 3 0 4k", "flush")
    # The old one comes back, as a copy, and catches up; then it leads again.
    three_sites[0].start()
    until_live(three_sites[1], "v", within_s=20)
    three_sites[1].ask("close_head", volume="v")
    open_on(three_sites, 0, epoch=3)
    works(three_sites[0].url(), "read -P 3 0 4k", "read -P 2 1M 64k", "read -P 1 4M 4M")


def test_a_clone_made_by_each_copy_is_one_replicated_volume_and_no_empty_copy_passes_for_it(
    three_sites: list[Daemon],
) -> None:
    parent = "00112233445566778899aabbccddeeff"
    for site in three_sites:
        site.ask(
            "create_replica", volume="v", size_bytes=64 * MIB, logical_block_bytes=512, uuid=parent
        )
    open_on(three_sites, 0, epoch=1)
    works(three_sites[0].url(), "write -P 1 0 8M", "flush")
    three_sites[0].ask("mark", volumes=["v"], name="then")
    works(three_sites[0].url(), "write -P 2 0 8M", "flush")
    sequences = [clone_on(site) for site in three_sites[:2]]
    assert sequences[0] == sequences[1]
    three_sites[2].ask(
        "create_replica", volume="c", size_bytes=64 * MIB, logical_block_bytes=512, uuid="0c" * 16
    )
    iqn = f"{IQN}.clone"
    three_sites[1].ask(
        "open_head", volume="c", epoch=1, policy="any-2-of-3", iqn=iqn, ack="memory",
        replicas=[replica_of(three_sites[0]), replica_of(three_sites[2])],
    )  # fmt: skip
    three_sites[1].wait_until_open("c")
    url = three_sites[1].url().replace(IQN, iqn)
    works(url, "read -P 1 0 8M", "write -P 3 1M 1M", "flush")
    # The empty copy is live once it was filled, not before.
    until_live(three_sites[1], "c", within_s=60)
    works(three_sites[0].url(), "read -P 2 0 8M")
    # The other clone leads, with what was written to the first.
    three_sites[1].ask("close_head", volume="c")
    leads_clone(three_sites[0], three_sites[1], epoch=2, iqn=iqn)
    # And the one that was empty, which has nothing but what it was filled with.
    three_sites[0].ask("close_head", volume="c")
    leads_clone(three_sites[2], three_sites[1], epoch=3, iqn=iqn)


def leads_clone(site: Daemon, other: Daemon, *, epoch: int, iqn: str) -> None:
    """Let a site lead the clone with one other copy, and read what is known to be in it."""
    site.ask(
        "open_head", volume="c", epoch=epoch, policy="all", iqn=iqn, ack="memory", position=0,
        replicas=[replica_of(other)],
    )  # fmt: skip
    site.wait_until_open("c")
    works(site.url().replace(IQN, iqn), "read -P 3 1M 1M", "read -P 1 2M 6M")


def clone_on(site: Daemon) -> object:
    """Have one site make its copy of the clone, once it has the mark."""
    deadline_s = time.monotonic() + 20
    while True:
        try:
            moment = {"mark": "then"}
            return site.ask("clone", volume="v", moment=moment, clone="c", uuid="0c" * 16)[
                "sequence"
            ]
        except Refused as refused:
            if refused.code not in ("not_found", "unavailable") or time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)  # noqa: TID251 - real processes


def until_live(daemon: Daemon, volume: str, *, within_s: float) -> None:
    """Wait until both copies elsewhere have all that the head has."""
    deadline_s = time.monotonic() + within_s
    while [copy["state"] for copy in copies(daemon, volume)] != ["live", "live"]:
        assert time.monotonic() < deadline_s, (copies(daemon, volume), daemon.log)
        time.sleep(0.05)  # noqa: TID251 - real processes


def copies(daemon: Daemon, volume: str = "v") -> list[dict[str, object]]:
    """Return the copies of a volume as its head sees them."""
    found = daemon.head(volume)["copies"]
    assert isinstance(found, list)
    return found


def test_a_head_of_an_older_epoch_is_fenced_by_its_copies(three_sites: list[Daemon]) -> None:
    for site in three_sites:
        site.ask(
            "create_replica", volume="v", size_bytes=64 * MIB, logical_block_bytes=512,
            uuid="01" * 16,
        )  # fmt: skip
    open_on(three_sites, 0, epoch=1)
    works(three_sites[0].url(), "write -P 1 0 1M", "flush")
    # Nobody told the first head, and the second cannot ask it for its copy: it would close.
    beyond_reach = {**replica_of(three_sites[0]), "address": "127.0.0.1:1"}
    three_sites[1].ask(
        "open_head", volume="v", epoch=2, policy="any-2-of-3", iqn=IQN, ack="memory",
        replicas=[beyond_reach, replica_of(three_sites[2])],
    )  # fmt: skip
    three_sites[1].wait_until_open()
    works(three_sites[1].url(), "read -P 1 0 1M", "write -P 2 0 1M", "flush")
    done = qemu_io(three_sites[0].url(), "write -P 9 0 1M", "flush")
    assert done.returncode != 0 or "error" in (done.stdout + done.stderr).lower()
    assert "head_fenced" in three_sites[0].log
    works(three_sites[1].url(), "read -P 2 0 1M")


def test_a_path_without_head_shows_the_disk_and_serves_once_the_head_is_there(
    three_sites: list[Daemon],
) -> None:
    for site in three_sites:
        site.ask(
            "create_replica", volume="v", size_bytes=64 * MIB, logical_block_bytes=512,
            uuid="01" * 16,
        )  # fmt: skip
    open_on(three_sites, 0, epoch=1)
    works(three_sites[0].url(), "write -P 1 0 1M", "flush")
    other = three_sites[1]
    states = [{"id": 1, "state": "optimized"}, {"id": 2, "state": "unavailable"}]
    for own, code in ((1, "invalid_request"), (3, "invalid_request")):
        with pytest.raises(Refused) as refusal:
            other.ask("stand_by", volume="v", iqn=IQN, own=own, groups=states)
        assert refusal.value.code == code
    with pytest.raises(Refused, match="set_port_groups"):
        three_sites[0].ask("stand_by", volume="v", iqn=IQN, own=2, groups=states)
    for _ in range(2):
        other.ask("stand_by", volume="v", iqn=IQN, own=2, groups=states)
    assert qemu_io(other.url(), "read 0 4k").returncode != 0
    assert "iscsi_login " in other.log  # let in, though nothing is served
    three_sites[0].kill()
    open_on(three_sites, 1, epoch=2)
    works(other.url(), "read -P 1 0 1M", "write -P 2 0 4k", "flush")
    other.ask("close_head", volume="v")
    other.ask("stand_by", volume="v", iqn=IQN, own=2, groups=states)
    other.ask("end_standby", volume="v")
    assert qemu_io(other.url(), "read 0 4k").returncode != 0


def test_a_stranger_is_not_let_in_at_the_replicas_door(
    three_sites: list[Daemon], tmp_path: Path
) -> None:
    need("openssl")
    key, cert = tmp_path / "key", tmp_path / "cert"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-keyout", str(key),
         "-out", str(cert), "-subj", "/CN=stranger"],
        check=True, capture_output=True,
    )  # fmt: skip
    address = f"127.0.0.1:{three_sites[0].replica}"
    for identity in ([], ["-cert", str(cert), "-key", str(key)]):
        command = ["openssl", "s_client", "-connect", address, "-tls1_3", *identity]
        subprocess.run(
            command, input="x" * 64, capture_output=True, text=True, timeout=20, check=False
        )
    deadline_s = time.monotonic() + 10
    while three_sites[0].log.count("replica_refused") < 2:
        assert time.monotonic() < deadline_s, three_sites[0].log
        time.sleep(0.05)  # noqa: TID251 - real processes
    assert "replica_serves" not in three_sites[0].log
