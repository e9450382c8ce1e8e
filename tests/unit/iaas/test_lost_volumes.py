"""A volume whose disks are lost is shown as that, and opens by its owner's word alone."""

from dataclasses import replace

from tests.unit.iaas.iaas_makers import IAAS, datacenter, iaas, record, volume

from nuage.iaas.index import FederationIndex
from nuage.iaas.observe import Save, ionode_acts
from nuage.iaas.wishes import Leave, WishContext, ionode_wish
from nuage.ids import NodeId, SiteId
from nuage.model.desired import HeadReport, HeadWish, IonodeReport
from nuage.model.status import NodeStatus
from nuage.model.volume import Volume, VolumeState
from nuage.trust.shared_secrets import SharedSecrets

NODE = NodeId("m-io")
WHY = "what this volume held is lost here"


def index_of(value: Volume) -> FederationIndex:
    index = FederationIndex(SiteId("marne"))
    status = NodeStatus(
        node_id=NODE, site_id=SiteId("marne"), connected=True, since_s=0.0,
        replica_addresses={IAAS: "10.0.0.1:1"},
    )  # fmt: skip
    for noun in (datacenter("marne"), iaas(), value, status):
        index.put(record(noun))
    return index


def report(value: Volume, state: str, *, is_lost: bool) -> IonodeReport:
    head = HeadReport(
        volume_id=value.volume_id, iaas_id=IAAS, state=state, epoch=value.epoch,
        portal="10.0.0.1:2", failure=WHY if is_lost else "", is_lost=is_lost,
    )  # fmt: skip
    return IonodeReport(
        node_id=NODE, site_id=SiteId("marne"), wish_revision=1, replicas=(), heads=(head,),
        replica_addresses={},
    )  # fmt: skip


def wished(value: Volume) -> HeadWish:
    context = WishContext(
        index=index_of(value),
        secrets=SharedSecrets({0: b"k" * 32}),
        lease_until_s=lambda _vm: 0.0,
        leave=lambda _vm: Leave.SEND,
    )
    (daemon,) = ionode_wish(context, NODE, 1).daemons
    (head,) = daemon.heads
    assert daemon.replicas[0].joins
    return head


def single() -> Volume:
    return replace(volume(1, places=(("marne", "m-io"),)), whole=(NODE,))


def saved(value: Volume, told: IonodeReport) -> Volume:
    (act,) = ionode_acts(index_of(value), told)
    assert isinstance(act, Save)
    assert isinstance(act.value, Volume)
    return act.value


def test_an_only_copy_that_is_lost_is_shown_as_lost() -> None:
    lost = saved(single(), report(single(), "failed", is_lost=True))
    assert (lost.state, lost.failure) == (VolumeState.LOST, WHY)


def test_that_nobody_may_take_over_stays_told_while_its_head_fails_for_the_same_reason() -> None:
    told = report(single(), "failed", is_lost=False)
    failed = replace(told, heads=(replace(told.heads[0], failure="disk: EIO"),))
    assert saved(single(), failed).failure == "disk: EIO"
    stopped = replace(single(), failure="disk: EIO; no other copy may take over now")
    assert ionode_acts(index_of(stopped), failed) == [], "else two events each second"


def test_a_lost_volume_opens_under_the_epoch_of_the_owners_word_and_no_other() -> None:
    lost = replace(single(), state=VolumeState.LOST)
    assert not wished(lost).accepts_loss
    accepted = replace(lost, loss_accepted_epoch=lost.epoch)
    assert wished(accepted).accepts_loss
    assert not wished(replace(accepted, epoch=lost.epoch + 1)).accepts_loss
    assert saved(accepted, report(accepted, "ready", is_lost=False)).state is VolumeState.READY
