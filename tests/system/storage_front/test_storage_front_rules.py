"""Three real daemons: which loss stops the writes of which rule, and what no loss takes away."""

import itertools
import json
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from tests.system.storage_front.storage_front_daemon import IQN, MIB, Daemon, Json, Refused
from tests.system.storage_front.test_storage_front_control import replica_of, works

pytestmark = pytest.mark.system
KIB = 1024
PATIENCE_S = 60.0  # a loaded machine
LOOK_S = 0.05


class Writer:
    """Writes 4 KiB blocks through a head, one after another, and knows which were answered."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.answered: dict[int, int] = {}
        self.values = itertools.count(1)

    def begin(self, head: Daemon, block: int) -> Future[None]:
        value = next(self.values) % 255 + 1
        return self.pool.submit(self._write, head, block, value)

    def write(self, head: Daemon, *blocks: int) -> None:
        for block in blocks:
            self.begin(head, block).result(timeout=PATIENCE_S)

    def _write(self, head: Daemon, block: int, value: int) -> None:
        """Ask on a connection of its own: the answer may take as long as a copy is away."""
        data = (bytes([value]) * 4 * KIB).hex()
        ask: Json = {"id": 1, "op": "write", "volume": "v", "offset": block * 4 * KIB, "data": data}
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(head.folder / "control"))
            control.sendall(json.dumps(ask).encode() + b"\n")
            line = control.makefile().readline()
        assert '"ok"' in line, line
        self.answered[block] = value

    def require_all(self, head: Daemon) -> None:
        """Read back all that was answered."""
        commands = [f"read -P {value} {block * 4}k 4k" for block, value in self.answered.items()]
        works(head.url(), *commands)


@pytest.fixture
def writer() -> Writer:
    return Writer(ThreadPoolExecutor(max_workers=4))


def until(holds: Callable[[], bool], told: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, told()
        time.sleep(LOOK_S)  # noqa: TID251 - real processes


def create_on(sites: list[Daemon], *, joins: bool = False) -> None:
    for site in sites:
        site.ask(
            "create_replica", volume="v", size_bytes=64 * MIB, logical_block_bytes=512,
            uuid="00112233445566778899aabbccddeeff", joins=joins,
        )  # fmt: skip


def lead(sites: list[Daemon], number: int, policy: str, epoch: int, **fields: object) -> Daemon:
    """Have one of three daemons lead; its copies keep their places among all."""
    others = [replica_of(site) for index, site in enumerate(sites) if index != number]
    sites[number].ask(
        "open_head", volume="v", epoch=epoch, policy=policy, replicas=others, position=number,
        iqn=IQN, ack="memory", **fields,
    )  # fmt: skip
    return sites[number]


def copy_of(head: Daemon, site: Daemon) -> Json:
    found = head.head()["copies"]
    assert isinstance(found, list)
    named: dict[str, Json] = {copy["node"]: copy for copy in found}
    return named[replica_of(site)["name"]]


def until_live(head: Daemon, *sites: Daemon) -> None:
    def are_live() -> bool:
        return all(copy_of(head, site)["state"] == "live" for site in sites)

    until(are_live, lambda: (head.head(), head.log))


def still_waits(write: Future[None]) -> bool:
    """Tell whether a write has no answer after a while; a slow machine errs to the same side."""
    time.sleep(2 * LOOK_S + 1.2)  # noqa: TID251 - longer than a lease
    return not write.done()


GOES_ON, STOPS = True, False


@pytest.mark.parametrize(
    ("policy", "lost", "goes_on"),
    [
        ("any-2-of-3", (1,), GOES_ON),
        ("any-2-of-3", (1, 2), STOPS),
        ("metro", (2,), GOES_ON),
        ("metro", (1,), STOPS),
        ("all", (2,), STOPS),
        ("local", (1,), STOPS),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_a_rule_stops_where_it_says_and_no_answered_write_is_lost(
    three_sites: list[Daemon], writer: Writer, policy: str, lost: tuple[int, ...], *, goes_on: bool
) -> None:
    create_on(three_sites)
    head = lead(three_sites, 0, policy, epoch=1)
    head.wait_until_open(timeout_s=PATIENCE_S)
    until_live(head, *three_sites[1:])
    writer.write(head, 0, 1, 2)
    for number in lost:
        three_sites[number].kill()
    write = writer.begin(head, 3)
    if goes_on:
        write.result(timeout=PATIENCE_S)
        writer.write(head, 4)
    else:
        assert still_waits(write)
    for number in lost:
        three_sites[number].start()
    write.result(timeout=PATIENCE_S)
    # What restarted vouches for nothing before it has everything; then the head may be lost too.
    until_live(head, *three_sites[1:])
    head.kill()
    second = lead(three_sites, 1, policy, epoch=2)
    if policy != "any-2-of-3":  # these wait for the first copy
        head.start()
    second.wait_until_open(timeout_s=PATIENCE_S)
    writer.require_all(second)


def test_a_head_of_which_nobody_is_left_to_close_it_gives_way_to_a_later_one(
    three_sites: list[Daemon], writer: Writer
) -> None:
    """Its agent was killed: the copy would be withheld from the next head until it is back."""
    create_on(three_sites)
    first = lead(three_sites, 0, "all", epoch=1)
    first.wait_until_open(timeout_s=PATIENCE_S)
    until_live(first, *three_sites[1:])
    writer.write(first, 0, 1)
    second = lead(three_sites, 1, "all", epoch=2)
    second.wait_until_open(timeout_s=PATIENCE_S)
    until_live(second, three_sites[0], three_sites[2])
    writer.require_all(second)
    writer.write(second, 2)


def test_two_disks_of_three_lost_are_told_and_open_by_the_owners_word(
    three_sites: list[Daemon], writer: Writer
) -> None:
    create_on(three_sites)
    head = lead(three_sites, 0, "any-2-of-3", epoch=1)
    head.wait_until_open(timeout_s=PATIENCE_S)
    writer.write(head, 0)
    head.ask("close_head", volume="v")
    for site in three_sites[1:]:
        site.ask("delete_volume", volume="v")
    create_on(three_sites[1:], joins=True)
    head = lead(three_sites, 0, "any-2-of-3", epoch=2)
    until(lambda: head.head()["lost"] is True, lambda: (head.head(), head.log))
    assert head.head()["state"] == "opening"
    assert head.ask("close_head", volume="v") == {"volume": "v"}
    head = lead(three_sites, 0, "any-2-of-3", epoch=3, accepts_loss=True)
    head.wait_until_open(timeout_s=PATIENCE_S)
    until_live(head, *three_sites[1:])
    writer.require_all(head)


def test_a_policy_that_its_copies_cannot_keep_is_refused(three_sites: list[Daemon]) -> None:
    create_on(three_sites)
    with pytest.raises(Refused, match="needs 3 copies, there are 2"):
        lead(three_sites[:2], 0, "any-2-of-3", epoch=1)


def test_writers_wait_for_a_far_copy_at_its_bound_and_one_that_is_cut_off_is_let_go(
    three_sites: list[Daemon], writer: Writer
) -> None:
    far = three_sites[2]
    bound = {"seconds": 2, "strict": True, "nodes": [replica_of(far)["name"]]}
    create_on(three_sites)
    head = lead(three_sites, 0, "metro", epoch=1, lag_bound=bound)
    head.wait_until_open(timeout_s=PATIENCE_S)
    until_live(head, *three_sites[1:])
    assert far.process is not None
    far.process.send_signal(signal.SIGSTOP)
    try:
        writer.write(head, 0, 1)
        until(lambda: head.head()["answers"] == "held", lambda: (head.head(), head.log))
        lag = copy_of(head, far)["lag"]
        assert isinstance(lag, dict)
        assert lag["milliseconds"] >= 2000
        assert lag["bytes"] > 0
        assert 'nuage_volume_answers_held{volume="v"} 1' in str(head.ask("metrics")["text"])
        write = writer.begin(head, 2)
        assert still_waits(write)
    finally:
        far.process.send_signal(signal.SIGCONT)
    write.result(timeout=PATIENCE_S)
    until(lambda: head.head()["answers"] == "at_once", head.head)
    # Not strict: a cut is told, and the writers go on.
    head.ask("set_lag_bound", volume="v", lag_bound={**bound, "strict": False})
    far.kill()
    until(lambda: copy_of(head, far)["let_go"] is True, head.head)
    writer.write(head, 3, 4, 5)
    far.start()
    until_live(head, far)
    until(lambda: copy_of(head, far)["let_go"] is False, head.head)
    writer.require_all(head)
