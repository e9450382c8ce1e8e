"""The index against an obvious oracle: any sequence of puts, removals and snapshots."""

from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.iaas.iaas_makers import port, record, vm, volume

from nuage.iaas.index import FederationIndex, iaas_of, name_of, nodes_of
from nuage.ids import IaasId, NodeId, SiteId
from nuage.model.network import Port
from nuage.model.record import Record
from nuage.model.vm import Vm
from nuage.model.volume import Volume
from nuage.units import MIB

SITES = ("marne", "lyon", "rennes")
NODES = ("n1", "n2", "n3")
Key = tuple[str, str]


@dataclass
class Oracle:
    """What each site said last of each object."""

    said: dict[Key, dict[SiteId, Record]] = field(default_factory=dict)

    def visible(self, own: str) -> dict[Key, Record]:
        return {
            key: max(by_home.values(), key=lambda r: (r.epoch, r.home == own, r.home))
            for key, by_home in self.said.items()
            if by_home
        }


@st.composite
def records(draw: st.DrawFn) -> Record:
    number, epoch = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    home = draw(st.sampled_from(SITES))
    node_id = draw(st.sampled_from(NODES))
    match draw(st.sampled_from(("vm", "volume", "port"))):
        case "vm":
            name = draw(st.sampled_from(("web", "db")))
            owner = draw(st.integers(1, 2))
            value = vm(number, site=home, node_id=node_id, epoch=epoch, name=name,
                       iaas_number=owner)  # fmt: skip
            return record(value, home=home)
        case "volume":
            others = [node for node in NODES if node != node_id]
            places = ((home, node_id), ("lyon", draw(st.sampled_from(others))))
            drawn = replace(
                volume(number, places=places, epoch=epoch),
                iaas_id=IaasId(f"iaas-{draw(st.integers(1, 2))}"),
                size_bytes=MIB * draw(st.integers(1, 3)),
                is_template=draw(st.booleans()),
            )
            return record(drawn, home=home)
        case _:
            return record(port(number), home=home, epoch=epoch)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), records()),
        st.tuples(st.just("remove"), records()),
        st.tuples(st.just("replace"), st.lists(records(), max_size=4)),
    ),
    max_size=12,
)


def check(index: FederationIndex, oracle: Oracle) -> None:
    visible = oracle.visible(index.site_id)
    for kind in ("vm", "volume", "port"):
        shown = {(r.kind, r.id): r for r in index.records(kind)}
        assert shown == {key: r for key, r in visible.items() if key[0] == kind}
    for node_id in map(NodeId, NODES):
        for cls, kind in ((Vm, "vm"), (Volume, "volume")):
            expected = sorted(
                r.id for r in visible.values() if r.kind == kind and node_id in nodes_of(r.value)
            )
            served = index.on_node(cls, node_id)
            assert [getattr(value, f"{kind}_id") for value in served] == expected
        promised: Counter[IaasId] = Counter()
        for r in visible.values():
            if isinstance(r.value, Volume) and node_id in nodes_of(r.value):
                promised[r.value.iaas_id] += 0 if r.value.is_template else r.value.size_bytes
        assert index.promises.by_iaas(node_id) == +promised
        assert index.promises.on(node_id) == promised.total()
    for iaas_id in (IaasId("iaas-1"), IaasId("iaas-2")):
        for kind, found in (
            ("vm", index.of_iaas(Vm, iaas_id)),
            ("port", index.of_iaas(Port, iaas_id)),
        ):
            expected = [
                r.id for r in visible.values() if r.kind == kind and iaas_of(r.value) == iaas_id
            ]
            assert sorted(getattr(value, f"{kind}_id") for value in found) == sorted(expected)
        for name in ("web", "db"):
            named = {
                r.id
                for r in visible.values()
                if r.kind == "vm" and name_of(r.value) == name and iaas_of(r.value) == iaas_id
            }
            assert index.is_name_taken(Vm, name, iaas_id) == bool(named)
            if len(named) == 1:
                assert index.named(Vm, name, iaas_id).vm_id in named
    own = {
        key
        for key, by_home in oracle.said.items()
        if index.site_id in by_home and visible[key].home != index.site_id
    }
    assert {(r.kind, r.id) for r in index.shadowed()} == own


@given(steps)
def test_the_index_shows_what_a_recomputation_shows(
    sequence: list[tuple[str, Record | list[Record]]],
) -> None:
    index, oracle = FederationIndex(SiteId("marne")), Oracle()
    for revision, (what, given_) in enumerate(sequence, start=1):
        before = oracle.visible(index.site_id)
        if isinstance(given_, list):
            home = given_[0].home if given_ else SiteId("lyon")
            # A snapshot of a catalogue made anew counts its revisions from one again.
            fresh = [replace(r, home=home, revision=n) for n, r in enumerate(given_, start=1)]
            latest = {(r.kind, r.id): r for r in fresh}
            for by_home in oracle.said.values():
                by_home.pop(home, None)
            for key, r in latest.items():
                oracle.said.setdefault(key, {})[home] = r
            changes = index.replace_site(home, fresh)
        elif what == "put":
            fed = replace(given_, revision=1000 + revision)
            oracle.said.setdefault((fed.kind, fed.id), {})[fed.home] = fed
            changes = [index.put(fed)]
        else:
            oracle.said.get((given_.kind, given_.id), {}).pop(given_.home, None)
            changes = [index.remove(given_.kind, given_.id, given_.home)]
        after = oracle.visible(index.site_id)
        for change in changes:
            assert change.after == after.get((change.kind, change.id))
        told = {(c.kind, c.id) for c in changes if c.before != c.after}
        assert {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)} <= told
        check(index, oracle)


@given(st.permutations(range(4)))
def test_the_order_in_which_sites_are_heard_does_not_matter(order: list[int]) -> None:
    said = [
        record(vm(1, site="marne", epoch=1), home="marne", revision=5),
        record(vm(1, site="lyon", epoch=2), home="lyon", revision=3),
        record(vm(1, site="rennes", epoch=2), home="rennes", revision=9),
        record(vm(2, site="lyon", epoch=0), home="lyon", revision=4),
    ]
    index = FederationIndex(SiteId("paris"))
    for number in order:
        index.put(said[number])
    assert index.home("vm", "vm-1") == "rennes"
    assert index.home("vm", "vm-2") == "lyon"


def test_an_older_revision_that_comes_late_changes_nothing() -> None:
    index = FederationIndex(SiteId("marne"))
    index.put(record(vm(1, name="new"), home="lyon", revision=7))
    index.put(record(vm(1, name="old"), home="lyon", revision=6))
    assert index.value(Vm, "vm-1").name == "new"
