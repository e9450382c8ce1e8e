"""What a node tells of public addresses when asked: `nuage fabric show` and `path`."""

from dataclasses import replace
from ipaddress import ip_address

from nuage.daemon.lisp import NATIVELY, PUBLIC, Lisp
from nuage.model.fabric import MappingReport, PathAnswer, PathStep, RlocReport
from nuage.network.forwarding import MapAction
from nuage.network.lisp_message import MapRecord, host_eid
from nuage.network.xtr import Xtr

MAPPINGS_TOLD_MAX = 1000
_WHY = {
    MapAction.NO_ACTION: "no way left",
    MapAction.NATIVELY_FORWARD: "no address of ours: by a proxy",
    MapAction.SEND_MAP_REQUEST: "to be asked for",
    MapAction.DROP: "nobody has registered it",
}


def part(lisp: Lisp) -> str:
    """Return which part a node plays, or why none."""
    if lisp.failure:
        return lisp.failure
    return "tunnel router, map-server, proxy" if lisp.server is not None else "tunnel router"


def counters(lisp: Lisp) -> dict[str, int]:
    """Return what the machines counted: refusals, limits, replays."""
    machines = (("xtr", lisp.xtr), ("map_server", lisp.server))
    return {
        f"{name}_{what}": count
        for name, machine in machines
        if machine is not None
        for what, count in machine.counters.items()
    }


def mappings(lisp: Lisp) -> tuple[MappingReport, ...]:
    """Return the addresses as this node has them."""
    xtr = lisp.xtr
    if xtr is None:
        return ()
    found = [
        MappingReport(
            prefix=str(eid.prefix), role="here", why="" if confirmed else "not confirmed yet"
        )
        for eid, confirmed in xtr.local().items()
    ]
    found += [
        MappingReport(
            prefix=str(eid.prefix),
            role="relayed",
            rlocs=(RlocReport(address=to, priority=1, up=True),),
        )
        for eid, to in xtr.relayed().items()
    ]
    if lisp.server is not None:
        found += [_mapping(xtr, record, "registered") for record in lisp.server.registered()]
    foreign = [r for r in xtr.cached() if r.action is NATIVELY and not r.locators]
    found += [_mapping(xtr, record, "cached") for record in xtr.cached() if record not in foreign]
    if foreign:  # all that is in no pool, cut into prefixes: told as one
        found.append(replace(_mapping(xtr, foreign[0], "cached"), prefix="others"))
    return tuple(found[:MAPPINGS_TOLD_MAX])


def _mapping(xtr: Xtr, record: MapRecord, role: str) -> MappingReport:
    return MappingReport(
        prefix=str(record.eid.prefix),
        role=role,
        version=record.version,
        rlocs=tuple(
            RlocReport(
                address=str(locator.address),
                priority=locator.priority,
                up=xtr.is_up(locator.address),
            )
            for locator in xtr.locators_of(record)
        ),
        why="" if record.locators else _WHY.get(record.action, record.action.name.lower()),
    )


def way_to(lisp: Lisp, address: str) -> PathAnswer:
    """Tell where a packet to a public address would go from here, and why."""
    xtr = lisp.xtr
    if xtr is None:
        return PathAnswer(reason=f"no tunnel router here: {part(lisp)}")
    eid, here = host_eid(PUBLIC, ip_address(address)), lisp.options.node_id
    if eid in xtr.local():
        step = PathStep(node_id=here, distance=0)
        return PathAnswer(reason="the address is on a port of this node", steps=(step,))
    if eid in xtr.relayed():
        steps = (
            PathStep(node_id=here, distance=1),
            PathStep(node_id=xtr.relayed()[eid], distance=0),
        )
        return PathAnswer(reason="relayed to the node of this site that registered it", steps=steps)
    covering = [record for record in xtr.cached() if record.eid.covers(eid)]
    if not covering:
        return PathAnswer(reason="no mapping here: the first packet asks the map-server")
    record = max(covering, key=lambda found: found.eid.prefix.prefixlen)
    told = _mapping(xtr, record, "cached")
    usable = [rloc for rloc in told.rlocs if rloc.up]
    if not usable:
        return PathAnswer(reason=f"{told.prefix}: {told.why or 'no way answers probes'}: dropped")
    best = min(rloc.priority for rloc in usable)
    taken = tuple(rloc.address for rloc in usable if rloc.priority == best)
    down = [rloc.address for rloc in told.rlocs if not rloc.up]
    reason = f"mapping {told.prefix}, version {told.version}: ways of priority {best}"
    if told.why:
        reason = f"{told.prefix}: {told.why}"
    if down:
        reason += f"; {', '.join(down)} do not answer probes"
    steps = (
        PathStep(node_id=here, distance=1, choices=taken),
        PathStep(node_id=taken[0], distance=0),
    )
    return PathAnswer(reason=reason, steps=steps)
