"""A copy is erased by the explicit word of its volume's home, and by nothing else."""

from dataclasses import replace

from tests.unit.iaas.iaas_makers import IAAS, iaas, record, volume

from nuage.iaas.erasure import erased_copies, is_gone
from nuage.iaas.index import FederationIndex
from nuage.iaas.wishes import Leave, WishContext, ionode_wish
from nuage.ids import NodeId, SiteId
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
