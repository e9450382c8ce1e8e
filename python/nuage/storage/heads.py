"""Which copies a volume's head asks, where it may open next, and what becomes of its copies. Pure.

A volume's record names its copies; three lists in it say how they stand (`model.volume`). From them
follow the set that the head works with and the policy it works under:

- what is `without` is left out: the owner decided to go on with the others;
- what is `catching_up` follows: with two whole copies beside it the head works as `metro`, whose
  first two copies acknowledge while the others are brought up to date. With one whole copy it works
  as `all`: writes wait until the second has everything;
- what is `leaving` still acknowledges while it is needed for two, and while the head is there; then
  it follows as long as another is brought up to date.

A head opens only at a copy of which acknowledged writes were demanded when the last head became
ready (`whole`). So a copy that is still being filled is never taken for the truth, whatever its log
says. The journals' own rules (docs/protocols/replication.md) then fence and recover.

Steps are taken one at a time, each under its own epoch, and only once the last has settled.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from nuage.ids import NodeId, SiteId
from nuage.model.contract import AckPolicy
from nuage.model.desired import CopyReport, FormerSet
from nuage.model.volume import ReplicaPlace, Volume, VolumeState

PAIR: Final = 2  # copies whose acknowledgement survives the loss of one
THREE: Final = 3


@dataclass(frozen=True, slots=True)
class HeadSet:
    """The copies that a head asks, in order, and the policy it asks them under."""

    policy: AckPolicy
    members: tuple[ReplicaPlace, ...]
    acknowledging: tuple[NodeId, ...]


def head_set(volume: Volume) -> HeadSet:
    """Return what the head of `volume` works with."""
    sound = [p for p in volume.replicas if p.node_id not in volume.without]
    joining = tuple(p for p in sound if p.node_id in volume.catching_up)
    leaders = [p for p in sound if p.node_id not in volume.catching_up]
    staying = [p for p in leaders if p.node_id not in volume.leaving or p.node_id == volume.head]
    trailing: tuple[ReplicaPlace, ...] = ()
    is_three = volume.ack_policy is AckPolicy.ANY_2_OF_3 and not joining
    if len(leaders) > len(staying) >= (THREE if is_three else PAIR):
        trailing = tuple(p for p in leaders if p not in staying)
        leaders = staying
    policy = _policy(volume.ack_policy, len(leaders), len(joining))
    counted = leaders if policy is not AckPolicy.METRO else leaders[:PAIR]
    if joining and policy is AckPolicy.ALL:
        counted = [*leaders, *joining]
    if policy is not AckPolicy.METRO:
        trailing = ()
    return HeadSet(
        policy=policy,
        members=(*leaders, *trailing, *joining),
        acknowledging=tuple(place.node_id for place in counted),
    )


def _policy(contract: AckPolicy, leader_count: int, follower_count: int) -> AckPolicy:
    if follower_count:
        return AckPolicy.METRO if leader_count == PAIR else AckPolicy.ALL
    match contract:
        case AckPolicy.ANY_2_OF_3:
            return contract if leader_count == THREE else AckPolicy.ALL
        case AckPolicy.METRO:
            return contract if leader_count >= PAIR else AckPolicy.ALL
        case _:
            return contract


def former_set(volume: Volume) -> FormerSet | None:
    """Return what acknowledged before the copies were changed, until a head is ready with these.

    The next head must hear as many of them as met every write that they acknowledged: its own set
    may be content with fewer, or with others.
    """
    policy, nodes = volume.settled_policy, volume.whole
    if policy is None or not nodes or volume.settled_epoch == volume.epoch:
        return None
    now = head_set(volume)
    if (now.policy, now.acknowledging) == (policy, nodes):
        return None
    return FormerSet(policy=policy, nodes=nodes)


def whole_copies(volume: Volume) -> list[ReplicaPlace]:
    """Return the copies at which a head may open, in order."""
    return [
        place
        for place in volume.replicas
        if place.node_id not in volume.without
        and place.node_id not in volume.catching_up
        and (not volume.whole or place.node_id in volume.whole)
    ]


def next_head(
    volume: Volume,
    *,
    is_usable: Callable[[NodeId], bool],
    near: SiteId | None,
    is_away: Callable[[NodeId], bool] = lambda _node: False,
) -> ReplicaPlace | None:
    """Return where the head opens when its node is lost, or None where no copy may be it.

    The same site first, which raises its epoch alone; then the VM's site; then in order. A head
    that gave up on a node that answers is still a copy there: it counts. One whose agent is away
    serves as a copy, and opens nothing: it comes last.
    """
    here = next((p.site_id for p in volume.replicas if p.node_id == volume.head), None)
    able = [p for p in whole_copies(volume) if is_usable(p.node_id)]
    usable = [p for p in able if p.node_id != volume.head]
    pairs = volume.ack_policy is AckPolicy.ANY_2_OF_3 and head_set(volume).policy is not (
        AckPolicy.ALL
    )
    if pairs and len(able) < PAIR and len(volume.whole or volume.replicas) > PAIR:
        return None  # one of three: it may lack what the other two acknowledged
    if pairs and volume.settled_epoch != volume.epoch and _is_in_flux(volume):
        return None  # what the former set acknowledged may lie elsewhere
    order = sorted(
        usable,
        key=lambda p: (
            is_away(p.node_id),
            p.site_id != here,
            p.site_id != near,
            p.node_id in volume.leaving,
            volume.replicas.index(p),
        ),
    )
    return order[0] if order else None


def _is_in_flux(volume: Volume) -> bool:
    return bool(volume.catching_up or volume.leaving or volume.without)


# Steps ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Include:
    """Have the head bring a copy up to date."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Complete:
    """A copy has everything: it counts from now on. `reopens`: the head must open anew for that."""

    node_id: NodeId
    reopens: bool


@dataclass(frozen=True, slots=True)
class Drop:
    """A copy that leaves is not needed any more."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class MoveHead:
    """Open the head at another copy: it is near the VM, or the present one leaves."""

    place: ReplicaPlace


@dataclass(frozen=True, slots=True)
class AddCopy:
    """The contract asks for more copies than there are."""


@dataclass(frozen=True, slots=True)
class Retire:
    """The contract asks for fewer copies than there are: this one goes."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Repolicy:
    """The contract acknowledges otherwise than the volume does."""

    policy: AckPolicy


@dataclass(frozen=True, slots=True)
class Replace:
    """Have this copy leave once another is whole: its node is emptied, or was lost for long."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class KeyAnew:
    """The head opens once more, to write with the data key that holds now."""


Step: TypeAlias = (
    Include | Complete | Drop | MoveHead | AddCopy | Retire | Repolicy | Replace | KeyAnew
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFacts:
    """What is known of a volume's surroundings.

    `usable` are nodes that answer and whose daemon's address is known; `copies` what the head says
    of the others; `vm_site` where a VM that runs and does not move uses it. `draining` nodes are to
    be empty, `gone` ones have been lost for so long that their copies are made anew elsewhere. From
    `resting` ones a fault has driven the head, too short ago for it to go back near its VM.
    `may_key_anew`: the head's daemon has a newer data key than the head writes with.
    """

    usable: Collection[NodeId]
    wanted_copies: int
    wanted_policy: AckPolicy
    copies: Mapping[NodeId, CopyReport] = field(default_factory=dict)
    vm_site: SiteId | None = None
    draining: Collection[NodeId] = ()
    gone: Collection[NodeId] = ()
    resting: Collection[NodeId] = ()
    may_key_anew: bool = False


def is_settled(volume: Volume) -> bool:
    """Tell whether a volume serves under the epoch it was last given: no step is due before."""
    return volume.state is VolumeState.READY and volume.settled_epoch == volume.epoch


def next_step(volume: Volume, facts: VolumeFacts) -> Step | None:
    """Return the next thing to do about a volume's head and copies, or None."""
    if not is_settled(volume) or volume.failure or volume.head not in facts.usable:
        return None
    for place in volume.replicas:
        node_id = place.node_id
        if node_id in volume.without and node_id in facts.usable:
            return Include(node_id)
    completed = _completed(volume, facts)
    if completed is not None:
        return completed
    if facts.may_key_anew:
        return KeyAnew()
    for node_id in volume.catching_up:
        if node_id in facts.gone and serves_without(volume, node_id):
            return Drop(node_id)  # it was never whole: another is begun elsewhere
    if volume.catching_up or any(node_id not in facts.gone for node_id in volume.without):
        return None  # one change at a time
    sound_count = sum(_is_sound(volume, facts, place.node_id) for place in volume.replicas)
    for node_id in volume.leaving:
        if node_id != volume.head and sound_count >= facts.wanted_copies:
            return Drop(node_id)
        another = _another_head(volume, facts) if node_id == volume.head else None
        if another is not None:
            return MoveHead(another)
    return _away(volume, facts) or _towards_contract(volume, facts)


def _is_sound(volume: Volume, facts: VolumeFacts, node_id: NodeId) -> bool:
    """Tell whether a copy that stays has everything, so that another may leave."""
    seen = facts.copies.get(node_id)
    stays = node_id not in volume.leaving and node_id not in volume.without
    return stays and (seen is None or seen.is_live)


def held_up(volume: Volume, facts: VolumeFacts) -> str:
    """Say why a change of a volume's copies does not go on, and what would help; "": it does."""
    moving = {*volume.leaving, *volume.catching_up}
    moving |= {p.node_id for p in volume.replicas if p.node_id in facts.draining}
    if not moving:
        return ""
    if volume.failure:
        return volume.failure
    if volume.head not in facts.usable:
        return f"the IO-node of its head, {volume.head}, does not answer: bring it back"
    for node_id in volume.catching_up:
        other = f"bring it back, or `nuage volume replace-copy {volume.name} {node_id}`"
        if node_id not in facts.usable:
            return f"the IO-node {node_id}, where a copy is filled, does not answer: {other}"
        if _has_failed(facts, node_id):
            return f"the copy that is filled on {node_id} failed, or its disk is full: {other}"
    for place in volume.replicas:
        if place.node_id not in moving and not _is_sound(volume, facts, place.node_id):
            fault = (
                "failed, or its disk is full" if _has_failed(facts, place.node_id) else "is away"
            )
            help_ = f"bring it back, or `nuage volume replace-copy {volume.name} {place.node_id}`"
            return f"the copy on {place.node_id} {fault}, and none leaves before: {help_}"
    return ""


def _has_failed(facts: VolumeFacts, node_id: NodeId) -> bool:
    seen = facts.copies.get(node_id)
    return seen is not None and seen.is_failed


def _another_head(
    volume: Volume, facts: VolumeFacts, *, but: Collection[NodeId] = ()
) -> ReplicaPlace | None:
    """Return the best of the whole copies that stay and answer, the present head's left out."""
    unfit = {*volume.leaving, *facts.draining, *but, volume.head}
    fit = [
        place
        for place in whole_copies(volume)
        if place.node_id in facts.usable and place.node_id not in unfit
    ]
    return min(fit, key=lambda p: p.site_id != facts.vm_site) if fit else None


def _away(volume: Volume, facts: VolumeFacts) -> Step | None:
    """Return how a copy comes off a node that is emptied or gone: the head first."""
    for place in volume.replicas:
        node_id = place.node_id
        if node_id in volume.leaving:
            continue
        if node_id in facts.draining:
            another = _another_head(volume, facts) if node_id == volume.head else None
            return Replace(node_id) if another is None else MoveHead(another)
        if node_id in facts.gone and node_id != volume.head and serves_without(volume, node_id):
            return Replace(node_id)
    return None


def serves_without(volume: Volume, node_id: NodeId) -> bool:
    """Tell whether writes go on without a copy; where they wait for it, its owner decides first."""
    asked = head_set(volume)
    if node_id in volume.without or node_id not in asked.acknowledging:
        return True
    return asked.policy is AckPolicy.ANY_2_OF_3


def _completed(volume: Volume, facts: VolumeFacts) -> Complete | None:
    for node_id in volume.catching_up:
        seen = facts.copies.get(node_id)
        if node_id not in volume.without and seen is not None and seen.is_live:
            same = head_set(volume).policy is AckPolicy.ALL
            return Complete(node_id, reopens=not same)
    return None


def _towards_contract(volume: Volume, facts: VolumeFacts) -> Step | None:
    if len(volume.replicas) - len(volume.leaving) < facts.wanted_copies:
        return AddCopy()
    if volume.ack_policy is not facts.wanted_policy:
        return Repolicy(facts.wanted_policy)
    if len(volume.replicas) - len(volume.leaving) > facts.wanted_copies:
        surplus = [p.node_id for p in volume.replicas if p.node_id != volume.head]
        return Retire(surplus[-1])
    here = next(p.site_id for p in volume.replicas if p.node_id == volume.head)
    if facts.vm_site is not None and facts.vm_site != here:
        another = _another_head(volume, facts, but=facts.resting)
        if another is not None and another.site_id == facts.vm_site:
            return MoveHead(another)
    return None
