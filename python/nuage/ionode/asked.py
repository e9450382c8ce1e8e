"""What a storage daemon is asked, in its own words (docs/protocols/storaged.md §3)."""

from nuage.ids import VolumeId
from nuage.model.contract import JournalRule, Limits
from nuage.model.desired import ChapWish, HeadWish, PathWish, PortGroup
from nuage.model.history import Moment

Json = dict[str, object]


def retention_of(rule: JournalRule) -> Json:
    """Return how much of its past a volume keeps."""
    return {"seconds": rule.window_s, "bytes": rule.window_bytes, "strict": rule.strict}


def limits_of(limits: Limits) -> Json:
    """Return what may be taken a second."""
    return {"operations_per_s": limits.operations_per_s, "bytes_per_s": limits.bytes_per_s}


def lag_bound_of(wish: HeadWish) -> Json:
    """Return how far copies may be behind."""
    return {"seconds": wish.rpo.seconds, "strict": wish.rpo.strict, "nodes": list(wish.bound)}


def moment_of(moment: Moment) -> Json:
    """Return a moment of a volume's past."""
    if moment.mark:
        return {"mark": moment.mark}
    if moment.sequence is not None:
        return {"sequence": moment.sequence}
    assert moment.time_s is not None, "a Moment has one of the two"
    return {"time_us": int(moment.time_s * 1e6)}


def chap_of(logins: tuple[ChapWish, ...]) -> list[dict[str, str]]:
    """Return who may log in."""
    return [_credential(login) for login in logins]


def chap_own_of(wish: HeadWish | PathWish) -> dict[str, str] | None:
    """Return how the target names itself, if it does."""
    return None if wish.chap_own is None else _credential(wish.chap_own)


def _credential(login: ChapWish) -> dict[str, str]:
    return {"name": login.user, "secret": login.secret}


def port_groups_of(groups: tuple[PortGroup, ...]) -> tuple[int, list[Json]]:
    """Return the own port group's tag, and how each stands."""
    return groups[0].tag, [{"id": group.tag, "state": group.state.value} for group in groups]


def uuid_of(volume_id: VolumeId) -> str:
    """Return the identity that initiators see: the same on every copy and after a failover."""
    return (volume_id.partition("-")[2] * 2)[:32].ljust(32, "0")
