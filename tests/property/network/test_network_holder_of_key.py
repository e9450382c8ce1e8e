"""A neighbour with the fabric's key says what TLVs can say: nothing it says breaks an RBridge."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.property.network.test_network_codecs import lsp, pdu, tlvs
from tests.unit.network.test_network_flood import FAR, Near

from nuage.network.campus import system_id
from nuage.network.forwarding import NICKNAME_MAX, FibEntry
from nuage.network.isis_pdu import Hello, Lsp, Pdu

systems = st.sampled_from((system_id(0), system_id(1), system_id(2), FAR))
of_somebody = st.builds(
    lambda system, pseudonode, fragment, *rest: Lsp(system + bytes((pseudonode, fragment)), *rest),
    systems, st.sampled_from((0, 0, 0, 1)), st.sampled_from((0, 0, 1, 255)),
    st.integers(0, 2**32 - 1), st.integers(0, 65535), tlvs, st.integers(0, 255),
)  # fmt: skip
hello = st.builds(Hello, st.sampled_from((system_id(1), FAR)), st.integers(1, 65535), tlvs)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(of_somebody, hello, pdu, lsp), min_size=1, max_size=12))
def test_contradictory_tlvs_with_the_right_key_break_nothing(values: list[Pdu]) -> None:
    near = Near()
    for value in values:
        near.take(near.framed(value))
        near.campus.run_for(0.05)
    near.campus.run_for(3.0)
    assert 0 < near.rbridge.nickname <= NICKNAME_MAX
    fibs = [entry for entry in near.rbridge.table if isinstance(entry, FibEntry)]
    assert all(0 < entry.nickname <= NICKNAME_MAX and entry.next_hops for entry in fibs)
    near.campus.run_for(12.0)
    assert near.state() == "report", "what is true is said again, and heard"
