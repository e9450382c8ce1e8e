"""A copy is erased by the explicit word of its volume's home, and by nothing else."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

from tests.unit.iaas.iaas_makers import IAAS, iaas, record, volume

from nuage.catalogue.store import LostRace
from nuage.clock import SystemClock
from nuage.errors import NotFound
from nuage.iaas.erasure import CopyErased, copy_erased, end_done, erased_copies, is_gone
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import Site
from nuage.iaas.wishes import Leave, WishContext, ionode_wish
from nuage.ids import NodeId, SiteId, VolumeId
from nuage.model.record import Noun
from nuage.model.volume import Erasure, Volume
from nuage.trust.shared_secrets import SharedSecrets

NODE = NodeId("marne-ionode-1")
PLACES = (("marne", "marne-ionode-1"), ("lyon", "lyon-ionode-1"))


def erasure(of: Volume, *, is_deleted: bool = True) -> Erasure:
    return Erasure(
        volume_id=of.volume_id, iaas_id=IAAS, name=of.name, label=5, places=of.replicas,
        is_deleted=is_deleted, volume_epoch=of.epoch,
    )  # fmt: skip


def context(index: FederationIndex) -> WishContext:
    return WishContext(
        index=index, secrets=SharedSecrets({0: b"k" * 32}), lease_until_s=lambda _vm: 0.0,
        leave=lambda _vm: Leave.SEND,
    )  # fmt: skip


def test_absence_erases_nothing() -> None:
    index = FederationIndex(SiteId("marne"))
    index.put(record(iaas()))
    index.put(record(volume(places=PLACES)))
    (daemon,) = ionode_wish(context(index), NODE, 1).daemons
    assert daemon.erased == ()
    index.remove("volume", "vol-1", SiteId("marne"))
    assert ionode_wish(context(index), NODE, 2).daemons == ()


def test_a_deleted_volume_is_erased_on_each_node_even_without_its_iaas() -> None:
    index = FederationIndex(SiteId("marne"))
    index.put(record(erasure(volume(places=PLACES)), home="lyon"))
    (daemon,) = ionode_wish(context(index), NODE, 1).daemons
    assert (daemon.erased, daemon.replicas, daemon.label) == (("vol-1",), (), 5)


def test_an_old_record_of_a_deleted_volume_brings_nothing_back() -> None:
    index = FederationIndex(SiteId("marne"))
    index.put(record(iaas()))
    old = volume(places=PLACES)
    index.put(record(old))
    index.put(record(erasure(replace(old, epoch=old.epoch + 5)), home="lyon"))
    assert is_gone(index, old)
    (daemon,) = ionode_wish(context(index), NODE, 1).daemons
    assert (daemon.erased, daemon.replicas, daemon.heads) == (("vol-1",), (), ())


def test_a_copy_that_a_living_volume_names_is_kept() -> None:
    index = FederationIndex(SiteId("marne"))
    index.put(record(iaas()))
    living = volume(places=PLACES)
    index.put(record(living))
    index.put(record(erasure(living, is_deleted=False)))
    assert erased_copies(index, NODE) == []
    (daemon,) = ionode_wish(context(index), NODE, 1).daemons
    assert daemon.erased == ()
    assert [replica.volume_id for replica in daemon.replicas] == ["vol-1"]


class Lyon:
    """The home of a volume that was deleted."""

    site_id = SiteId("lyon")

    def __init__(self, *erasures: Erasure) -> None:
        self.index = FederationIndex(self.site_id)
        self.revision = 1
        self.is_late = False  # somebody else has just deleted it
        for each in erasures:
            self.index.put(record(each, home="lyon"))

    async def save(self, value: Noun) -> None:
        self.revision += 1
        self.index.put(replace(record(value, home="lyon"), revision=self.revision))

    async def delete(self, value: Erasure) -> None:
        if self.is_late:
            raise NotFound("erasure", value.volume_id)
        self.index.remove("erasure", value.volume_id, self.site_id)

    def announce(self, *_what: str) -> None:
        """Tell nobody."""


async def erase(lyon: Lyon, of: Volume) -> None:
    for place in of.replicas:
        done = CopyErased(volume_id=of.volume_id, node_id=place.node_id)
        await copy_erased(cast(Site, lyon), done)


async def test_an_erasure_ends_with_the_last_copy() -> None:
    deleted = volume(places=PLACES)
    lyon = Lyon(erasure(deleted))
    await erase(lyon, deleted)
    assert lyon.index.find("erasure", "vol-1") is None


async def test_an_erasure_waits_for_a_former_home_to_forget_the_volume() -> None:
    """Else the old record would be the truth again, and its copies made anew, empty."""
    old = volume(places=PLACES)
    deleted = replace(old, epoch=old.epoch + (1 << 20))
    lyon = Lyon(erasure(deleted))
    lyon.index.put(record(old, home="marne"))
    await erase(lyon, deleted)
    await end_done(cast(Site, lyon))
    assert is_gone(lyon.index, old)
    lyon.index.remove("volume", "vol-1", SiteId("marne"))
    await end_done(cast(Site, lyon))
    assert lyon.index.find("erasure", "vol-1") is None


async def test_an_erasure_of_one_copy_does_not_wait_for_the_volume_that_lives() -> None:
    living = volume(places=PLACES)
    lyon = Lyon(replace(erasure(living, is_deleted=False), places=living.replicas[1:]))
    lyon.index.put(record(living, home="lyon"))
    await erase(lyon, living)
    assert lyon.index.find("erasure", "vol-1") is None


async def test_an_erasure_that_was_ended_meanwhile_is_ended() -> None:
    """A node says twice that it has erased, and both words are on their way at once."""
    deleted = volume(places=PLACES)
    lyon = Lyon(erasure(deleted))
    lyon.is_late = True
    await erase(lyon, deleted)


async def test_an_erased_copy_is_told_once_though_the_record_was_changed_meanwhile() -> None:
    index = FederationIndex(SiteId("marne"))
    index.put(record(erasure(volume(places=PLACES))))
    news: list[str] = []
    saved: list[Erasure] = []

    async def save(value: Erasure) -> None:
        saved.append(value)
        if len(saved) == 1:
            raise LostRace("another node's word came first")

    site = SimpleNamespace(
        index=index, site_id=SiteId("marne"), save=save, clock=SystemClock(),
        announce=lambda _kind, _id, what, _text: news.append(what),
    )  # fmt: skip
    await copy_erased(cast(Site, site), CopyErased(volume_id=VolumeId("vol-1"), node_id=NODE))
    assert [len(value.places) for value in saved] == [1, 1]
    assert news == ["erased"]
