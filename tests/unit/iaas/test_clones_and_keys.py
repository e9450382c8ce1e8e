"""What nodes are told of clones, of images' templates and of data keys."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from tests.unit.iaas.iaas_makers import IAAS, datacenter, iaas, record, volume
from tests.unit.iaas.iaas_makers import node as made_node
from tests.unit.placement.placement_builders import vector

from nuage.errors import Conflict, Forbidden, InvalidRequest, Locked
from nuage.iaas.index import FederationIndex
from nuage.iaas.observe import Save, node_status
from nuage.iaas.past import started_from
from nuage.iaas.promises import Promises
from nuage.iaas.site import Site
from nuage.iaas.templates import template_for
from nuage.iaas.wishes import Leave, WishContext, ionode_wish
from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.model.contract import AckPolicy, Contract, DiskClass
from nuage.model.desired import DaemonWish, DiskReport, IonodeReport, VnodeReport
from nuage.model.history import IMAGE_MARK, Moment
from nuage.model.iaas import KEY_SHREDDED, IaasKey, KeyHolder
from nuage.model.infrastructure import NodeRole
from nuage.model.record import Noun
from nuage.model.status import NodeStatus
from nuage.model.volume import Volume, VolumeState
from nuage.trust.datakeys import Keyring, key_id_of
from nuage.trust.shared_secrets import SharedSecrets
from nuage.units import MIB

PLACES = (("marne", "m-io"), ("lyon", "l-io"), ("rennes", "r-io"))
TENANT_KEY = "5a" * 32


def index_of(*values: Noun) -> FederationIndex:
    index = FederationIndex(SiteId("marne"))
    sites = [datacenter(name) for name in ("marne", "lyon", "rennes")]
    for value in (*sites, *values):
        index.put(record(value))
    for number, (site, node) in enumerate(PLACES):
        status = NodeStatus(
            node_id=NodeId(node), site_id=SiteId(site), connected=True, since_s=0.0,
            replica_addresses={IAAS: f"10.0.0.{number}:1"},
        )  # fmt: skip
        index.put(record(status))
    return index


def told(index: FederationIndex, node: str) -> DaemonWish | None:
    context = WishContext(
        index=index,
        secrets=SharedSecrets({0: b"k" * 32}),
        lease_until_s=lambda _vm: 0.0,
        leave=lambda _vm: Leave.SEND,
    )
    daemons = ionode_wish(context, NodeId(node), 1).daemons
    return daemons[0] if daemons else None


def template(state: VolumeState = VolumeState.READY) -> Volume:
    made = volume(1, places=PLACES, image="img-1", state=state)
    return replace(made, is_template=True, ack_policy=AckPolicy.ANY_2_OF_3)


def boot(source: Volume) -> Volume:
    fresh = volume(2, state=VolumeState.CREATING, image="img-1")
    return started_from(fresh, source, Moment(mark=IMAGE_MARK))


def test_every_node_with_the_past_makes_the_clone_from_its_own_copy() -> None:
    source = template()
    clone = boot(source)
    index = index_of(iaas(), source, clone)
    assert clone.head == source.head
    for _, node in PLACES:
        wish = told(index, node)
        assert wish is not None
        origins = {r.volume_id: r.origin for r in wish.replicas}
        assert origins == {source.volume_id: None, clone.volume_id: clone.origin}
    head = told(index, "m-io")
    assert head is not None
    assert [h.image_sha256 for h in head.heads if h.volume_id == clone.volume_id] == [""]


def test_a_boot_volume_waits_until_its_image_is_there() -> None:
    source = template(VolumeState.CREATING)
    wish = told(index_of(iaas(), source, boot(source)), "m-io")
    assert wish is not None
    assert [r.volume_id for r in wish.replicas] == [source.volume_id]


def test_a_copy_on_a_further_node_is_filled_from_the_others() -> None:
    source = template()
    clone = boot(source)
    further = replace(
        clone, replicas=(*clone.replicas[:2], replace(clone.replicas[0], node_id=NodeId("m-io2")))
    )
    wish = told(index_of(iaas(), source, further), "m-io2")
    assert wish is not None
    assert [r.origin for r in wish.replicas] == [None]


def test_a_copy_that_is_made_once_the_clone_was_written_to_vouches_for_nothing() -> None:
    source = template()
    clone = boot(source)
    written = replace(clone, state=VolumeState.READY, whole=(NodeId("m-io"), NodeId("l-io")))
    for volumes, origin in (((source, written), clone.origin), ((written,), None)):
        wish = told(index_of(iaas(), *volumes), "r-io")
        assert wish is not None
        copy = next(r for r in wish.replicas if r.volume_id == clone.volume_id)
        assert (copy.origin, copy.joins) == (origin, True)


def test_a_clone_needs_as_many_whole_copies_as_acknowledge_its_writes() -> None:
    source = replace(template(), catching_up=(NodeId("r-io"),))
    clone = boot(source)
    assert clone.catching_up == (NodeId("r-io"),)
    worse = replace(source, without=(NodeId("l-io"),))
    with pytest.raises(Conflict, match="whole"):
        boot(worse)


def test_a_template_uses_nothing_of_the_quota() -> None:
    source = template()
    assert index_of(iaas(), source).usage(IAAS).volume_bytes == 0
    assert index_of(iaas(), source, boot(source)).usage(IAAS).volume_bytes == source.size_bytes


def key_of(keyring: Keyring, tenant_key: str = "") -> IaasKey:
    return keyring.make(IAAS, tenant_key)


def test_the_sites_unseal_a_key_of_the_federation_by_themselves() -> None:
    key = key_of(Keyring(SharedSecrets({0: b"shared"})))
    (opened,) = Keyring(SharedSecrets({0: b"shared"})).data_keys(key)
    assert key_id_of(opened) == key.key_id
    assert opened.hex() not in key.sealed


def test_a_tenants_key_is_wanted_after_a_restart_and_no_other_will_do() -> None:
    key = key_of(Keyring(SharedSecrets({0: b"shared"})), TENANT_KEY)
    assert key.holder is KeyHolder.TENANT
    restarted = Keyring(SharedSecrets({0: b"shared"}))
    assert restarted.data_keys(key) == ()
    with pytest.raises(Forbidden):
        restarted.unlock(key, "00" * 32)
    with pytest.raises(InvalidRequest):
        restarted.unlock(key, "short")
    restarted.unlock(key, TENANT_KEY)
    (opened,) = restarted.data_keys(key)
    assert key_id_of(opened) == key.key_id


def test_a_sealed_key_does_not_open_for_another_iaas() -> None:
    key = key_of(Keyring(SharedSecrets({0: b"shared"})), TENANT_KEY)
    with pytest.raises(Forbidden):
        Keyring(SharedSecrets({0: b"shared"})).unlock(
            replace(key, iaas_id=IaasId("iaas-2")), TENANT_KEY
        )


def test_a_destroyed_key_is_gone_from_the_ring_and_for_all() -> None:
    ring = Keyring(SharedSecrets({0: b"shared"}))
    key = key_of(ring)
    destroyed = replace(key, key_id=KEY_SHREDDED, sealed="")
    assert ring.data_keys(destroyed) == ()
    with pytest.raises(Locked):
        ring.unlock(destroyed, TENANT_KEY)


def test_a_node_is_told_which_key_and_never_the_key() -> None:
    ring = Keyring(SharedSecrets({0: b"shared"}))
    key = key_of(ring)
    (opened,) = ring.data_keys(key)
    index = index_of(replace(iaas(), encrypted=True), key, volume(1, places=PLACES))
    wish = told(index, "m-io")
    assert wish is not None
    assert (wish.key_id, [r.encrypted for r in wish.replicas]) == (key.key_id, [True])
    assert opened.hex() not in repr(wish)


def test_a_boot_volume_starts_from_a_template_of_its_own_iaas_alone() -> None:
    """Another's template lies under another's data key, or in clear: it is never cloned."""
    contract = Contract(copies=3, copy_sites=3, ack_policy=AckPolicy.ANY_2_OF_3)
    own, other = iaas(contract), replace(iaas(contract, number=2), encrypted=True)
    whole = tuple(NodeId(node) for _, node in PLACES)
    source = replace(template(), whole=whole, settled_epoch=template().epoch)
    nodes = [replace(made_node(at, NodeRole.IONODE), node_id=NodeId(name)) for at, name in PLACES]
    index = index_of(own, other, source, *nodes)
    site = cast(Site, SimpleNamespace(
            site_id=SiteId("marne"), index=index, promises_begun=Promises(),
        ))  # fmt: skip
    wanted = volume(2, state=VolumeState.CREATING, image="img-1")
    assert template_for(site, own, wanted) == source
    assert template_for(site, other, replace(wanted, iaas_id=other.iaas_id)) is None


def report_of(free_bytes: int) -> IonodeReport:
    disk = DiskReport(name="d0", disk_class=DiskClass.NVME, free_bytes=free_bytes, total_bytes=1000)
    return IonodeReport(
        node_id=NodeId("m-io"), site_id=SiteId("marne"), wish_revision=1, replicas=(), heads=(),
        replica_addresses={}, disks=(disk,),
    )  # fmt: skip


def test_what_a_node_cannot_read_of_its_guests_is_announced_once() -> None:
    index = index_of(iaas())
    told = []
    for revision, unreadable in enumerate(((), (VmId("vm-7"),), (VmId("vm-7"),), ()), start=2):
        report = VnodeReport(
            node_id=NodeId("m-v"), site_id=SiteId("marne"), wish_revision=1, vms=(),
            estimate=vector("m-v"), unreadable=unreadable,
        )  # fmt: skip
        for act in node_status(index, NodeId("m-v"), connected=True, now_s=1.0, vnode=report):
            assert isinstance(act, Save)
            index.put(record(act.value, revision=revision))
            told.append((act.what, act.text.split(":")[0]))
    assert [text for what, text in told if what == "unreadable"] == [
        "node m-v cannot read what it kept of vm-7"
    ]


def test_a_node_that_is_promised_out_is_announced_before_it_is_and_once() -> None:
    """Of 1000 MiB of disk with a ratio of 0.5, volumes of 64 MiB each."""
    index = index_of(iaas())
    disk = DiskReport(
        name="d0", disk_class=DiskClass.NVME, free_bytes=1000 * MIB, total_bytes=1000 * MIB
    )
    report = replace(report_of(0), disks=(disk,), overcommit_ratio=0.5)
    told = []
    for revision, count in enumerate((0, 6, 7, 6, 8, 9, 5), start=2):
        for number in range(1, 10):
            if number <= count:
                index.put(record(volume(number, places=(("marne", "m-io"),)), revision=revision))
            else:
                index.remove("volume", f"vol-{number}", SiteId("marne"))
        for act in node_status(index, NodeId("m-io"), connected=True, now_s=1.0, ionode=report):
            assert isinstance(act, Save)
            index.put(record(act.value, revision=revision))
            told.append((act.what, act.text))
    assert [text.split(";")[0] for what, text in told if what == "space"] == [
        "of node m-io 448 MiB of 500 MiB are promised to volumes: it soon takes no new ones",
        "of node m-io 512 MiB of 500 MiB are promised to volumes: it takes no new ones",
        "of node m-io 320 MiB of 500 MiB are promised to volumes: it takes more again",
    ]


def test_an_ionode_of_an_earlier_version_that_says_no_ratio_has_the_default() -> None:
    said = msgspec.to_builtins(replace(report_of(1000), overcommit_ratio=1.0))
    del said["overcommit_ratio"]
    index = index_of(iaas())
    heard = msgspec.convert(said, IonodeReport)
    (act,) = node_status(index, NodeId("m-io"), connected=True, now_s=1.0, ionode=heard)
    assert isinstance(act, Save)
    assert isinstance(act.value, NodeStatus)
    assert (act.value.overcommit_ratio, act.value.promise_bytes_max) == (4.0, 4000)


def test_a_disk_that_fills_is_announced_before_it_is_full_and_once() -> None:
    index = index_of(iaas())
    told = []
    for revision, free_bytes in enumerate((900, 190, 230, 60, 900), start=2):
        for act in node_status(
            index, NodeId("m-io"), connected=True, now_s=1.0, ionode=report_of(free_bytes)
        ):
            assert isinstance(act, Save)
            index.put(record(act.value, revision=revision))
            told.append((act.what, act.text.split(":")[0]))
    assert [text for what, text in told if what == "space"] == [
        "disk d0 (nvme) of node m-io is low on space",
        "disk d0 (nvme) of node m-io is full on space",
        "disk d0 (nvme) of node m-io has space again",
    ]
