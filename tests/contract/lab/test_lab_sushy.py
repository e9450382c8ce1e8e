"""A foreign client finds its way: sushy, which bare-metal services drive real servers with."""

import asyncio

import sushy
from tests.contract.facility.facility_bench import LOGIN, NODE, Bench, running_bench


def _drive(bench: Bench) -> tuple[str, str, str]:
    root = sushy.Sushy(
        bench.node_url,
        auth=sushy.auth.SessionOrBasicAuth(LOGIN.user, LOGIN.password),
    )
    system = root.get_system_collection().get_members()[0]
    before = str(system.power_state.value)
    system.set_system_boot_options(
        target=sushy.BootSource.PXE, enabled=sushy.BootSourceOverrideEnabled.ONCE
    )
    system.reset_system(sushy.ResetType.ON)
    bench.clock.now += 5.0
    system.refresh(force=True)
    model = root.get_chassis_collection().get_members()[0].model
    root.close() if hasattr(root, "close") else None
    return before, str(system.power_state.value), str(model)


async def test_sushy_drives_a_machine() -> None:
    async with running_bench() as bench:
        before, after, model = await asyncio.to_thread(_drive, bench)
        assert (before, after, model) == ("Off", "On", "Lab node")
        assert bench.rig.machines[NODE].boots == 1
