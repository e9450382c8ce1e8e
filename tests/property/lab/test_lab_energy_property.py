"""Whatever happens to the machines of a rack, its watts and joules add up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuage.lab.description import DEFAULT_DESCRIPTION, load_description
from nuage.lab.rig import PDU_SELF_WATTS, Rig
from nuage.units import JOULES_PER_KWH

LAB = load_description(DEFAULT_DESCRIPTION.with_name("duo.toml"))
PDU = "marne-r1-pdu"
NODES = [node.name for node in LAB.nodes() if node.site == "marne"]

_events = st.lists(
    st.tuples(
        st.sampled_from(["on", "off", "shutdown", "restart", "outlet-off", "outlet-on", "cycle"]),
        st.integers(0, len(NODES)),
        st.floats(0.0, 30.0),
        st.floats(0.0, 60.0),
    ),
    max_size=40,
)


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def now_s(self) -> float:
        return self.now

    def monotonic_s(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        self.now += delay_s


@given(_events)
def test_the_mains_deliver_what_the_outlets_take(
    events: list[tuple[str, int, float, float]],
) -> None:
    clock, cpu = _Clock(), dict.fromkeys(NODES, 0.0)
    rig = Rig(
        LAB, clock, cpu_seconds=lambda node: cpu.get(node, 0.0),
        perform=lambda _node, _effects: None,
    )  # fmt: skip
    last_kwh = 0.0
    for order, index, elapsed_s, used_s in events:
        clock.now += elapsed_s
        outlet = rig.outlets[PDU][index]
        if index < len(NODES):
            node = NODES[index]
            cpu[node] += used_s
            machine = rig.machine(node)
            match order:
                case "on":
                    rig.act(node, machine.power_on(clock.now))
                case "off":
                    rig.act(node, machine.force_off(clock.now))
                case "shutdown":
                    rig.act(node, machine.shut_down(clock.now))
                case "restart":
                    rig.act(node, machine.force_restart(clock.now))
                case _:
                    pass
        redfish = {"outlet-off": "Off", "outlet-on": "On", "cycle": "PowerCycle"}.get(order)
        if redfish:
            rig.switch_outlet(PDU, outlet, redfish)
        rig.advance()
        outlets = rig.outlets[PDU]
        watts = sum(rig.outlet_watts(PDU, each) for each in outlets)
        assert rig.pdu_watts(PDU) == pytest.approx(watts + PDU_SELF_WATTS)
        assert all(rig.outlet_watts(PDU, each) == 0.0 for each in outlets if not each.on)
        own_kwh = PDU_SELF_WATTS * clock.now / JOULES_PER_KWH
        parts_kwh = sum(rig.outlet_kwh(PDU, each) for each in outlets) + own_kwh
        assert rig.pdu_kwh(PDU) == pytest.approx(parts_kwh)
        assert rig.pdu_kwh(PDU) >= last_kwh
        last_kwh = rig.pdu_kwh(PDU)
        for machine in rig.machines.values():
            assert 0.0 <= machine.dc_watts <= machine.hardware.peak_watts
