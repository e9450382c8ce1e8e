"""Small values of the federation for the tests of `iaas`, `storage` and `api`."""

from nuage.ids import IaasId, ImageId, NodeId, PortId, RackId, SegmentId, SiteId, VmId, VolumeId
from nuage.model.contract import AckPolicy, Contract, JournalRule
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Datacenter, Node, NodeRole, Operator
from nuage.model.network import Port, Segment
from nuage.model.record import KIND_OF, KINDS, Noun, Record
from nuage.model.vm import Vm, VmShape, VmState
from nuage.model.volume import ReplicaPlace, Volume, VolumeState
from nuage.units import MIB

MARNE, LYON, RENNES = SiteId("marne"), SiteId("lyon"), SiteId("rennes")
IAAS = IaasId("iaas-1")


def datacenter(
    site: str, *, number: int = 0, country: str = "FR", operator: str = "FR", tier: int = 3,
    latitude_deg: float = 48.0, longitude_deg: float = 2.0,
) -> Datacenter:  # fmt: skip
    return Datacenter(
        site_id=SiteId(site), place=site.title(), country=country,
        operator=Operator(f"Operator of {site}", operator), tier=tier, number=number,
        power_capacity_watts=18_000.0, latitude_deg=latitude_deg, longitude_deg=longitude_deg,
    )  # fmt: skip


def iaas(contract: Contract | None = None, *, number: int = 1, name: str = "") -> Iaas:
    return Iaas(
        iaas_id=IaasId(f"iaas-{number}"), name=name or f"tenant-{number}", owner="ada",
        contract=contract or Contract(), label=0x1000 + number,
    )  # fmt: skip


def node(site: str, role: NodeRole, number: int = 1) -> Node:
    name = f"{role.value}-{number}"
    return Node(
        node_id=NodeId(f"{site}-{name}"), site_id=SiteId(site), rack_id=RackId(f"{site}-rack"),
        name=f"{site}-{name}", roles=(role,), cpu_count=8, memory_mib=8192,
    )  # fmt: skip


def vm(
    number: int = 1, *, site: str | None = None, node_id: str | None = None, epoch: int = 0,
    state: VmState = VmState.RUNNING, volumes: tuple[str, ...] = (), name: str = "",
    iaas_number: int = 1,
) -> Vm:  # fmt: skip
    return Vm(
        vm_id=VmId(f"vm-{number}"), iaas_id=IaasId(f"iaas-{iaas_number}"),
        name=name or f"web-{number}", shape=VmShape(), epoch=epoch, state=state,
        site_id=None if site is None else SiteId(site),
        node_id=None if node_id is None else NodeId(node_id),
        volumes=tuple(VolumeId(volume) for volume in volumes),
    )  # fmt: skip


def volume(
    number: int = 1, *, places: tuple[tuple[str, str], ...] = (), vm_id: str | None = None,
    epoch: int = 1 << 20, state: VolumeState = VolumeState.READY, image: str | None = None,
    name: str = "", portal: str = "10.0.0.1:3260",
) -> Volume:  # fmt: skip
    return Volume(
        volume_id=VolumeId(f"vol-{number}"), iaas_id=IAAS, name=name or f"disk-{number}",
        size_bytes=64 * MIB, ack_policy=AckPolicy.LOCAL, journal=JournalRule(), state=state,
        image_id=None if image is None else ImageId(image),
        vm_id=None if vm_id is None else VmId(vm_id),
        replicas=tuple(ReplicaPlace(node_id=NodeId(n), site_id=SiteId(s)) for s, n in places),
        head=NodeId(places[0][1]) if places else None, epoch=epoch, portal=portal,
        iqn=f"iqn.2026-01.cloud.nuage:iaas-1:vol-{number}",
    )  # fmt: skip


def segment(*, cidr: str = "10.0.0.0/20", number: int = 1) -> Segment:
    return Segment(
        segment_id=SegmentId(f"seg-{number}"), iaas_id=IAAS, name="default", label=0x2000,
        cidr=cidr, gateway="10.0.0.1",
    )  # fmt: skip


def port(number: int = 1, *, vm_id: str = "vm-1", address: str = "10.0.0.2/20") -> Port:
    return Port(
        port_id=PortId(f"port-{number}"), iaas_id=IAAS, segment_id=SegmentId("seg-1"),
        vm_id=VmId(vm_id), mac="02:00:00:00:00:01", addresses=(address,),
    )  # fmt: skip


def record(value: Noun, *, home: str = "marne", revision: int = 1, epoch: int = -1) -> Record:
    kind = KIND_OF[type(value)]
    own: int = getattr(value, "epoch", 0)
    return Record(
        kind=kind, id=getattr(value, KINDS[kind][1]), home=SiteId(home), revision=revision,
        epoch=own if epoch < 0 else epoch, changed_s=1.0, value=value,
    )  # fmt: skip
