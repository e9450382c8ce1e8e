"""Any wish, any daemon: the plan gets there, deletes nothing unnamed, and never steps back."""

import asyncio
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nuage.ids import IaasId, VolumeId
from nuage.ionode.fake import FakeDaemon
from nuage.ionode.plan import (
    CloseHead,
    Create,
    EndStandby,
    Erase,
    Fill,
    Keep,
    OpenHead,
    Resize,
    StandBy,
    Tell,
    plan,
)
from nuage.model.contract import AckPolicy, JournalRule
from nuage.model.desired import (
    ChapWish,
    DaemonWish,
    HeadWish,
    PathState,
    PathWish,
    PortGroup,
    ReplicaWish,
)
from nuage.units import MIB

IAAS = IaasId("iaas-1")
VOLUMES = tuple(VolumeId(f"vol-{n}") for n in range(3))


@st.composite
def wishes(draw: st.DrawFn) -> DaemonWish:
    replicas, heads, paths, erased = [], [], [], []
    for volume_id in VOLUMES:
        role = draw(st.sampled_from(("absent", "replica", "head", "path", "erased")))
        if role in ("replica", "head", "path"):
            size_bytes = draw(st.sampled_from((8, 16, 32))) * MIB
            replicas.append(
                ReplicaWish(
                    volume_id=volume_id,
                    iaas_id=IAAS,
                    size_bytes=size_bytes,
                    journal=JournalRule(window_s=draw(st.integers(0, 2))),
                )
            )
        if role == "head":
            user = draw(st.sampled_from(("a", "b")))
            heads.append(
                HeadWish(
                    volume_id=volume_id, iaas_id=IAAS, epoch=draw(st.integers(1, 4)),
                    policy=AckPolicy.LOCAL, replicas=(), iqn=f"iqn:{volume_id}",
                    chap=(ChapWish(user=user, secret="s" * 16),),
                    image_sha256=draw(st.sampled_from(("", "aa"))),
                )
            )  # fmt: skip
        if role == "path":
            user = draw(st.sampled_from(("a", "b")))
            paths.append(
                PathWish(
                    volume_id=volume_id, iaas_id=IAAS, iqn=f"iqn:{volume_id}",
                    chap=(ChapWish(user=user, secret="s" * 16),), initiators=("iqn.host",),
                    groups=(PortGroup(1, PathState.STANDBY), PortGroup(2, PathState.OPTIMIZED)),
                )
            )  # fmt: skip
        if role == "erased":
            erased.append(volume_id)
    return DaemonWish(
        iaas_id=IAAS,
        label=5,
        replicas=tuple(replicas),
        heads=tuple(heads),
        paths=tuple(paths),
        erased=tuple(erased),
    )


async def perform(daemon: FakeDaemon, wish: DaemonWish, told: dict[VolumeId, HeadWish],
                  filled: set[VolumeId]) -> bool:  # fmt: skip
    """Do one turn as the agent does; tell whether there was anything to do."""
    acts = plan(wish, await daemon.seen(), filled=filled, told=told, shown=daemon.paths)
    for act in acts:
        match act:
            case Create(wish=replica):
                await daemon.create(replica)
            case Resize(volume_id=volume_id, size_bytes=size_bytes):
                await daemon.resize(volume_id, size_bytes)
            case Keep(volume_id=volume_id, journal=journal):
                await daemon.set_journal(volume_id, journal)
            case OpenHead(wish=head):
                await daemon.open_head(head)
                told[head.volume_id] = head
            case Tell(wish=head):
                await daemon.set_initiators(head)
                told[head.volume_id] = head
            case Fill(volume_id=volume_id):
                await daemon.fill(volume_id, Path("/nonexistent"))
                filled.add(volume_id)
            case CloseHead(volume_id=volume_id):
                await daemon.close_head(volume_id)
            case StandBy(wish=path):
                await daemon.stand_by(path)
            case EndStandby(volume_id=volume_id):
                await daemon.end_standby(volume_id)
            case Erase(volume_id=volume_id):
                await daemon.erase(volume_id)
    return bool(acts)


@given(st.lists(wishes(), min_size=1, max_size=5))
def test_any_sequence_of_wishes_is_reached_and_nothing_unnamed_is_deleted(
    sequence: list[DaemonWish],
) -> None:
    async def run() -> None:
        daemon = FakeDaemon()
        told: dict[VolumeId, HeadWish] = {}
        filled: set[VolumeId] = set()
        highest: dict[VolumeId, int] = {}
        for wish in sequence:
            before = {v.volume_id for v in (await daemon.seen()).volumes}
            stale = {h.volume_id for h in wish.heads if h.epoch < highest.get(h.volume_id, 0)}
            wish_now = DaemonWish(
                iaas_id=wish.iaas_id, label=5, replicas=wish.replicas, erased=wish.erased,
                heads=tuple(h for h in wish.heads if h.volume_id not in stale), paths=wish.paths,
            )  # fmt: skip
            turns = 0
            while await perform(daemon, wish_now, told, filled):
                turns += 1
                assert turns < 8, "the plan does not come to rest"
            seen = await daemon.seen()
            kept = {v.volume_id: v.size_bytes for v in seen.volumes}
            assert before - set(wish.erased) <= set(kept)
            assert not set(wish.erased) & set(kept)
            assert {h.volume_id: h.epoch for h in seen.heads} == {
                h.volume_id: h.epoch for h in wish_now.heads
            }
            # A path goes with its head or by a word; what is led shows itself.
            assert set(daemon.paths.values()) == set(wish.paths)
            for head in wish_now.heads:
                highest[head.volume_id] = head.epoch
                assert daemon.may_log_in(head.volume_id, head.chap[0].user)
                size_bytes = next(
                    r.size_bytes for r in wish.replicas if r.volume_id == head.volume_id
                )
                assert kept[head.volume_id] >= size_bytes
            for volume_id in wish.erased:
                highest.pop(volume_id, None)

    asyncio.run(run())
