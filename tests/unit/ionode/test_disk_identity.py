"""Each disk is known by what lies on it: one that is replaced, unmounted or back shows."""

from itertools import count
from pathlib import Path

import pytest

from nuage.errors import Conflict
from nuage.ionode.disks import DiskPlace
from nuage.ionode.identity import MARK, DiskBook, Fate
from nuage.model.contract import DiskClass


class Node:
    """A node with two places for disks, whose agent starts anew."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now_ms = 1_000
        self.mounted_at = {"d0": directory / "d0", "d1": directory / "d1"}
        self.numbers = count(1)
        self.places = tuple(
            DiskPlace(
                name=name, disk_class=DiskClass.SSD, path=directory / name / "volumes", serial=name
            )
            for name in ("d0", "d1")
        )
        for name in ("d0", "d1"):
            (directory / name).mkdir()

    def start(self, *lost: str) -> DiskBook:
        book = DiskBook(
            self.directory / "disks.json",
            self.places,
            now_ms=lambda: self.now_ms,
            entropy=lambda size: next(self.numbers).to_bytes(size, "little"),
            mount_point=lambda path: self.mounted_at[path.parent.name],
        )
        book.take_in(lost)
        return book

    def put_volume(self, name: str) -> None:
        volume = self.directory / name / "volumes/iaas-1/volumes/vol-1"
        volume.mkdir(parents=True)
        (volume / "volume.json").write_bytes(b"{}")

    def take_out(self, name: str, to: str = "shelf") -> None:
        (self.directory / name).rename(self.directory / to)

    def put_in(self, name: str, of: str = "shelf") -> None:
        (self.directory / of).rename(self.directory / name)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def serials(book: DiskBook) -> list[str]:
    return [disk.serial for disk in book.serving]


def test_a_disk_keeps_its_name_and_another_in_its_place_has_its_own(node: Node) -> None:
    first = serials(node.start())
    assert serials(node.start()) == first
    assert len(set(first)) == 2
    node.take_out("d1")
    book = node.start()
    assert serials(book)[0] == first[0]
    assert serials(book)[1] not in first
    [away] = book.absent(())
    assert (away.serial, away.is_back, away.reason) == (
        first[1], False, "another disk is in its place",
    )  # fmt: skip


def test_a_disk_keeps_its_name_wherever_it_is_put(node: Node) -> None:
    first = serials(node.start())
    node.take_out("d1")
    node.take_out("d0", "other")
    node.put_in("d0")
    node.put_in("d1", "other")
    book = node.start()
    assert serials(book) == first[::-1]
    assert book.absent(()) == ()


def test_one_of_before_that_holds_volumes_keeps_the_name_that_its_receipts_bear(node: Node) -> None:
    node.put_volume("d1")
    before = serials(node.start())
    assert before[0] != "d0"
    assert before[1] == "d1"
    node.take_out("d1")
    assert serials(node.start())[1] != "d1"


def test_a_mark_that_is_lost_alone_is_written_again(node: Node) -> None:
    first = serials(node.start())
    node.put_volume("d1")
    (node.directory / "d1/volumes" / MARK).write_bytes(b"\xff")
    assert serials(node.start()) == first


def test_folders_that_a_daemon_made_in_the_place_of_its_lost_disk_are_no_disk(node: Node) -> None:
    first = serials(node.start())
    node.take_out("d1")
    (node.directory / "d1/volumes/iaas-1/volumes/vol-1/journal").mkdir(parents=True)
    assert serials(node.start())[1] not in (first[1], "d1")


def test_nothing_is_written_where_a_file_system_is_not_mounted(node: Node) -> None:
    first = serials(node.start())
    node.take_out("d1")
    (node.directory / "d1").mkdir()
    node.mounted_at["d1"] = node.directory
    book = node.start()
    assert serials(book) == first[:1]
    assert [disk.reason for disk in book.absent(())] == [
        f"nothing is mounted at {node.directory / 'd1'}"
    ]
    assert list((node.directory / "d1").iterdir()) == []
    node.mounted_at["d1"] = node.directory / "d1"
    (node.directory / "d1").rmdir()
    node.put_in("d1")
    assert [disk.is_back for disk in book.absent(())] == [True]
    assert serials(book) == first[:1], "storage daemons were started without it"
    assert serials(node.start()) == first


def test_a_new_file_system_in_a_folder_of_before_is_a_new_disk(node: Node) -> None:
    node.mounted_at["d1"] = node.directory
    first = serials(node.start())
    node.take_out("d1")
    node.mounted_at["d1"] = node.directory / "d1"
    assert serials(node.start())[1] not in (first[1], "d1")


def test_a_disk_that_goes_while_the_agent_runs_is_away_until_it_answers(node: Node) -> None:
    book = node.start()
    node.take_out("d1")
    assert book.away() == {"d1"}
    assert len(book.absent(())) == 1
    node.put_in("d1")
    assert (book.away(), book.absent(())) == (frozenset(), ())


def test_a_disk_that_comes_while_the_agent_runs_is_taken_in(node: Node) -> None:
    d0, d1 = node.directory / "d0", node.directory / "d1"
    book = node.start()
    first, old = serials(book)
    assert book.look_again(()) == ()
    assert book.is_complete(())

    d1.rename(node.directory / "shelf")
    d1.mkdir()  # the mount point
    node.mounted_at["d1"] = node.directory
    assert book.look_again(()) == ()
    assert [*d1.iterdir()] == []

    node.mounted_at["d1"] = d1  # another disk
    assert not book.is_complete(())
    assert book.look_again(()) == ("d1",)
    assert (book.is_complete(()), book.is_complete({old})) == (False, True)
    assert serials(book) == [first, f"d1+{0x03:02x}000000"]
    assert [absent.serial for absent in book.absent(())] == [old]
    assert book.look_again(()) == ()

    (d1 / "volumes" / MARK).write_bytes((d0 / "volumes" / MARK).read_bytes())
    assert book.look_again(()) == (), "it is a copy of the other"
    (d1 / "volumes" / MARK).write_bytes((node.directory / "shelf/volumes" / MARK).read_bytes())
    assert book.look_again({old}) == (), "it was declared lost"
    assert book.look_again(()) == ("d1",)
    assert serials(book) == [first, old]
    assert not book.is_complete(()), "the other is away"


def test_where_no_file_system_tells_a_place_that_is_emptied_stays_as_it_was(node: Node) -> None:
    node.mounted_at = {"d0": Path("/"), "d1": Path("/")}
    book = node.start()
    node.take_out("d1")
    assert book.look_again(()) == ()
    assert not (node.directory / "d1").exists()


def test_a_copy_of_a_disk_is_not_used_beside_it(node: Node) -> None:
    node.start()
    mark = (node.directory / "d0/volumes" / MARK).read_bytes()
    (node.directory / "d1/volumes" / MARK).write_bytes(mark)
    assert [disk.name for disk in node.start().serving] == ["d0"]


def test_what_was_noted_before_a_disk_was_replaced_is_told_of_that_disk(node: Node) -> None:
    first = serials(node.start())
    node.take_out("d1")
    node.now_ms = 5_000
    book = node.start()
    assert book.serial_at("d1", 4_999) == first[1]
    assert book.serial_at("d1", 5_000) == serials(book)[1]
    assert book.serial_at("", 9_000) == first[0]


def test_a_lost_disk_that_comes_back_is_not_used_and_is_another_once_erased(node: Node) -> None:
    old = serials(node.start())[1]
    node.take_out("d1")
    assert node.start(old).fate_of(old) == (Fate.GONE, 0)
    node.put_volume("shelf")
    node.take_out("d1", "newer")
    node.put_in("d1")
    book = node.start(old)
    assert [disk.name for disk in book.serving] == ["d0"]
    assert book.fate_of(old) == (Fate.BACK, 0)
    assert {disk.serial for disk in book.absent({old}) if disk.is_back} == {old}
    node.now_ms = 7_000
    book.erase(old)
    assert book.fate_of(old) == (Fate.ERASED, 7_000)
    assert [path.name for path in (node.directory / "d1/volumes").iterdir()] == [MARK]
    with pytest.raises(Conflict):
        book.erase(old)
    again = node.start(old)
    assert [disk.name for disk in again.serving] == ["d0", "d1"]
    assert serials(again)[1] != old
    assert again.fate_of(old) == (Fate.ERASED, 7_000)


def test_where_lost_disks_were_is_known_though_their_places_are_configured_no_more(
    node: Node,
) -> None:
    first, second = serials(node.start())
    assert node.start(second).lost_paths({second}) == (node.directory / "d1/volumes",)
    node.take_out("d1")
    node.places = node.places[:1]
    assert node.start().lost_paths(()) == ()
    assert node.start(second).lost_paths({second}) == (node.directory / "d1/volumes",)
    assert node.start(second).lost_paths({first}) == ()


def test_a_disk_in_service_is_never_erased(node: Node) -> None:
    book = node.start()
    serial = serials(book)[1]
    assert book.fate_of(serial) == (Fate.SERVES, 0)
    with pytest.raises(Conflict):
        book.erase(serial)


def test_a_state_that_is_younger_than_the_disks_never_says_that_all_are_here(node: Node) -> None:
    """An empty directory may stand for one that is not mounted: what nothing leads to stays."""
    assert node.start().is_complete(())
    node.take_out("d1")
    (node.directory / "disks.json").unlink()
    book = node.start()
    assert len(book.serving) == 2, "d1 passes for a new disk"
    assert not book.is_complete(())
    assert not node.start().is_complete(())
