"""The lab on real namespaces: hardware that behaves, and nothing left when it is gone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.system.lab.able import require_lab

from nuage.clock import SystemClock
from nuage.errors import Conflict, InvalidRequest, NotFound, Unavailable
from nuage.lab import kernel
from nuage.lab.cgroup import Cgroup
from nuage.lab.control import NodeStatus, Service
from nuage.lab.description import DEFAULT_DESCRIPTION
from nuage.lab.lab import Lab
from nuage.lab.state import read_pid
from nuage.units import JOULES_PER_KWH

pytestmark = pytest.mark.system

DUO = DEFAULT_DESCRIPTION.with_name("duo.toml")


require_lab()


def _name(suffix: str) -> str:
    return f"t{os.getpid()}{suffix}"


def _new_lab(suffix: str, where: Path) -> Lab:
    return Lab.open(DUO, where / suffix, name=_name(suffix))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = _new_lab("a", tmp_path_factory.mktemp("lab"))
    made.create_hardware()
    try:
        made.power_on_all()
        yield made
    finally:
        made.destroy()


def _run(lab: Lab, node: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        lab.command(node, argv), capture_output=True, text=True, check=False, timeout=30
    )


def _pings(lab: Lab, node: str, address: str) -> bool:
    return _run(lab, node, "ping", "-c1", "-W1", address).returncode == 0


def _until(holds: Callable[[], bool], *, within_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline_s:
            pytest.fail("it never came true")
        time.sleep(0.05)  # noqa: TID251 - real processes


def _status(lab: Lab, node: str) -> NodeStatus:
    return next(each for each in lab.status().nodes if each.name == node)


def test_sites_reach_each_other_and_each_its_own_bmcs(lab: Lab) -> None:
    assert _pings(lab, "marne-v1", lab.address("lyon-v1"))
    assert _pings(lab, "lyon-c1", lab.address("marne-io1"))
    # A cable just plugged in carries once the kernel has told its carrier, a second later at worst.
    _until(lambda: _pings(lab, "marne-c1", lab.bmc_url("marne-v1").removeprefix("https://")))
    assert not _pings(lab, "lyon-c1", lab.bmc_url("marne-v1").removeprefix("https://"))


def test_a_site_is_cut_off_silently_and_healed(lab: Lab) -> None:
    lab.cut("lyon")
    assert not _pings(lab, "marne-v1", lab.address("lyon-v1"))
    assert _pings(lab, "lyon-v1", lab.address("lyon-io1")), "a cut site works inside"
    assert "swallowing" in lab.status().sites[1].cuts[0]
    lab.heal("lyon")
    assert _pings(lab, "marne-v1", lab.address("lyon-v1"))


def test_the_other_provider_takes_over_a_dead_line(lab: Lab) -> None:
    try:
        lab.cut("lyon", provider="isp1", how="carrier")
        assert "NO-CARRIER" in _run(lab, "lyon-edge1", "ip", "link", "show", "wan1").stdout
        assert _pings(lab, "marne-v1", lab.address("lyon-v1"))
        lab.cut("lyon", provider="isp2", how="carrier")
        assert not _pings(lab, "marne-v1", lab.address("lyon-v1"))
    finally:
        lab.heal("lyon")
    assert _pings(lab, "marne-v1", lab.address("lyon-v1"))


def test_each_line_of_an_edge_works_by_itself(lab: Lab) -> None:
    near, far = lab.wan_addresses("marne"), lab.wan_addresses("lyon")
    try:
        lab.cut("lyon", provider="isp1")
        assert not _pings(lab, "marne-edge1", far[0])
        assert _run(
            lab, "marne-edge1", "ping", "-c1", "-W1", "-I", near[1], far[1]
        ).returncode == 0  # fmt: skip
    finally:
        lab.heal("lyon")


def test_two_sites_are_cut_from_each_other_only_where_it_makes_sense(lab: Lab) -> None:
    with pytest.raises(InvalidRequest) as caught:
        lab.cut("lyon", "marne", how="carrier")
    assert caught.value.field == "how"
    lab.cut("lyon", "marne")
    assert not _pings(lab, "marne-v1", lab.address("lyon-v1"))
    lab.heal("marne", "lyon")
    assert _pings(lab, "marne-v1", lab.address("lyon-v1"))


def test_a_dead_line_stays_dead_when_the_edge_restarts(lab: Lab) -> None:
    try:
        lab.cut("lyon", provider="isp1", how="carrier")
        lab.power_cycle("lyon-edge1")
        assert "NO-CARRIER" in _run(lab, "lyon-edge1", "ip", "link", "show", "wan1").stdout
        assert _pings(lab, "marne-v1", lab.address("lyon-v1"))
    finally:
        lab.heal("lyon")
    assert "NO-CARRIER" not in _run(lab, "lyon-edge1", "ip", "link", "show", "wan1").stdout


def test_losing_power_ends_every_process_at_once(lab: Lab) -> None:
    script = "trap '' TERM; setsid sleep 1001 & sleep 1002"
    lab.set_services("marne-v1", [Service("stubborn", ("/bin/sh", "-c", script))])
    cgroup = Cgroup.of_lab(lab.description.name).child("marne-v1")
    _until(lambda: len(cgroup.pids()) == 3)
    pids = cgroup.pids()
    lab.kill("marne-v1")
    assert not any(kernel.process_start(pid) for pid in pids)
    assert _status(lab, "marne-v1").state == "off"
    assert not _pings(lab, "marne-io1", lab.address("marne-v1"))
    with pytest.raises(NotFound, match="running node"):
        lab.command("marne-v1", ["true"])
    lab.power_on("marne-v1")
    _until(lambda: len(cgroup.pids()) == 3)
    lab.kill("marne-v1")
    lab.set_services("marne-v1", [])
    lab.power_on("marne-v1")


def test_a_node_gets_its_power_back_though_something_still_holds_its_network(lab: Lab) -> None:
    """The kernel takes a deleted namespace's cables away when it comes to it: later, under load."""
    held = [
        os.open(kernel.NETNS_DIR / lab.namespace(node), os.O_RDONLY)
        for node in ("marne-v1", "lyon-edge1")
    ]
    try:
        for node in ("marne-v1", "lyon-edge1"):
            lab.kill(node)
            lab.power_on(node)
        _until(lambda: _pings(lab, "marne-v1", lab.address("lyon-v1")))
    finally:
        for handle in held:
            os.close(handle)


def test_an_order_that_a_node_could_not_follow_says_so(lab: Lab) -> None:
    switch = f"nuage.{lab.description.name}.marne-switch"
    lab.kill("marne-v1")
    port = ["ip", "-n", switch, "link", "add", "p20", "type", "bridge"]
    subprocess.run(port, check=True)
    with pytest.raises(Unavailable, match=r"marne-v1 is not as it should be: build: .*File exists"):
        lab.order_all(["marne-v1", "lyon-v1"], "on")
    subprocess.run(["ip", "-n", switch, "link", "delete", "p20"], check=True)
    lab.power_cycle("marne-v1")
    _until(lambda: _pings(lab, "marne-v1", lab.address("lyon-v1")))


def test_a_shutdown_asks_first(lab: Lab) -> None:
    mark = lab.state.path / "asked"
    script = f"trap 'touch {mark}; exit 0' TERM; while :; do sleep 0.05; done"
    lab.set_services("marne-io1", [Service("polite", ("/bin/sh", "-c", script))])
    _until(lambda: _status(lab, "marne-io1").services[0].pid > 0)
    time.sleep(0.3)  # noqa: TID251 - the shell sets its trap
    lab.power_off("marne-io1")
    assert mark.exists()
    lab.set_services("marne-io1", [])
    lab.power_on("marne-io1")


def test_init_restarts_a_daemon_that_exits_and_keeps_its_output(lab: Lab) -> None:
    service = Service(
        "brief", ("/bin/sh", "-c", "echo $COLOUR $(hostname); exit 3"), {"COLOUR": "red"}
    )
    lab.set_services("lyon-v1", [service])
    _until(lambda: _status(lab, "lyon-v1").services[0].starts >= 3)
    assert _status(lab, "lyon-v1").services[0].last_exit == 3
    assert lab.log("lyon-v1", "brief").read_text().startswith("red lyon-v1\n")
    lab.set_services("lyon-v1", [])
    assert not _status(lab, "lyon-v1").services


def test_watts_follow_a_busy_loop(lab: Lab) -> None:
    """A CPU second costs what the curve says, however slowly the machine grants it."""

    def is_idle() -> bool:
        return all(_status(lab, node).utilisation < 0.005 for node in ("lyon-io1", "lyon-edge1"))

    def more_joules() -> float:
        """Return what the busy node has drawn beyond an idle one of its kind."""
        nodes = {node.name: node for node in lab.status().nodes}
        return (nodes["lyon-io1"].kwh - nodes["lyon-edge1"].kwh) * JOULES_PER_KWH

    _until(is_idle)
    idle_watts, before_joules = _status(lab, "lyon-io1").watts, more_joules()
    loop = ("/bin/sh", "-c", "ulimit -t 1; while :; do :; done")  # killed after a CPU second
    with subprocess.Popen(lab.command("lyon-io1", loop)) as busy:
        _until(lambda: _status(lab, "lyon-io1").watts > idle_watts * 1.02, within_s=60.0)
        assert busy.wait(timeout=60.0) != 0
    _until(is_idle)
    hardware = lab.description.hardware["node"]
    full_watts = (hardware.peak_watts - hardware.idle_watts) / hardware.psu_efficiency
    expected_joules = full_watts / hardware.cpu_count
    assert more_joules() - before_joules == pytest.approx(expected_joules, rel=0.15)
    assert _status(lab, "lyon-io1").watts < idle_watts * 1.01


def test_a_bmc_answers_over_tls_by_its_pinned_certificate(lab: Lab) -> None:
    answer = _run(
        lab, "marne-c1", "curl", "-sSv", "-m10", "--cacert", str(lab.certificate), "-u",
        "operator:nuage-lab", lab.bmc_url("marne-v1") + "/redfish/v1/Systems/1",
    )  # fmt: skip
    assert '"PowerState": "On"' in answer.stdout, answer.stderr
    refused = _run(
        lab, "marne-c1", "curl", "-sSv", "-m10", lab.bmc_url("marne-v1") + "/redfish/v1/"
    )
    assert refused.returncode != 0


def test_an_outlet_switched_off_by_redfish_takes_its_node_down(lab: Lab) -> None:
    outlet = lab.pdu_url("marne-r1-pdu") + "/redfish/v1/PowerEquipment/RackPDUs/1/Outlets/2"
    call = ["curl", "-sSv", "-m10", "--cacert", str(lab.certificate), "-u", "operator:nuage-lab"]

    def switch(order: str) -> None:
        body = f'{{"PowerState": "{order}"}}'
        outcome = _run(
            lab, "marne-c1", *call, "-H", "Content-Type: application/json", "-d", body,
            outlet + "/Actions/Outlet.PowerControl",
        )  # fmt: skip
        assert outcome.returncode == 0, outcome.stderr

    switch("Off")
    assert _status(lab, "marne-io1").state == "dark"
    assert lab.status().pdus[0].outlets_off == ("marne-io1",)
    switch("On")
    _until(lambda: _status(lab, "marne-io1").state == "on")


def test_pinned_programs_outlive_their_daemon_and_not_the_power(lab: Lab) -> None:
    pinned = lab.state.bpf("lyon-v1") / "pinned"
    assert _run(lab, "lyon-v1", "mkdir", "/sys/fs/bpf/pinned").returncode == 0
    assert pinned.is_dir()
    assert _run(lab, "lyon-v1", "test", "-d", "/sys/fs/bpf/pinned").returncode == 0
    assert _run(lab, "marne-v1", "test", "-d", "/sys/fs/bpf/pinned").returncode == 1
    lab.power_cycle("lyon-v1")
    assert not pinned.exists()


def test_the_hardware_process_may_crash_and_nodes_run_on(lab: Lab) -> None:
    lab.set_services("lyon-v1", [Service("steady", ("sleep", "1003"))])
    _until(lambda: _status(lab, "lyon-v1").services[0].pid > 0)
    pid = _status(lab, "lyon-v1").services[0].pid
    hardware = lab.status().hardware_pid
    os.kill(hardware, signal.SIGKILL)
    _until(lambda: read_pid(lab.state.pidfile) is None)
    with pytest.raises(Unavailable):
        lab.status()
    lab.create_hardware()
    assert _status(lab, "lyon-v1").services[0].pid == pid
    os.kill(pid, signal.SIGKILL)
    _until(lambda: _status(lab, "lyon-v1").services[0].pid not in (0, pid))
    lab.set_services("lyon-v1", [])


def test_up_twice_changes_nothing_and_another_description_is_a_conflict(lab: Lab) -> None:
    hardware = lab.status().hardware_pid
    lab.create_hardware()
    assert lab.status().hardware_pid == hardware
    other = Lab.open(DEFAULT_DESCRIPTION, lab.state.path, name=lab.description.name)
    with pytest.raises(Conflict):
        other.create_hardware()


def test_two_labs_live_side_by_side_and_go_without_a_trace(lab: Lab, tmp_path: Path) -> None:
    second = _new_lab("b", tmp_path)
    second.create_hardware()
    second.power_on_all()
    second.set_services("marne-v1", [Service("sleeper", ("sleep", "1004"))])
    _until(lambda: _status(second, "marne-v1").services[0].pid > 0)
    assert second.address("marne-v1") == lab.address("marne-v1"), "same addresses, apart"
    second.kill("lyon-v1")
    assert _pings(lab, "marne-v1", lab.address("lyon-v1"))
    stray = subprocess.Popen(second.command("lyon-c1", ["sleep", "1005"]))
    hardware = second.status().hardware_pid
    second.destroy()
    stray.wait(timeout=5)
    assert kernel.process_start(hardware) is None
    assert not kernel.namespaces(f"nuage.{second.description.name}.")
    assert not Cgroup.of_lab(second.description.name).path.exists()
    assert not second.state.path.exists()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert second.description.name not in Lab.names()
    assert _pings(lab, "marne-v1", lab.address("lyon-v1"))


def test_after_a_reboot_of_the_machine_up_brings_back_disks_services_and_cuts(
    tmp_path: Path,
) -> None:
    lab = _new_lab("d", tmp_path)
    lab.create_hardware()
    try:
        lab.power_on("marne-v1")
        lab.set_services("marne-v1", [Service("steady", ("sleep", "1006"))])
        (lab.disk("marne-v1", "d0") / "data").write_text("kept")
        lab.cut("lyon")
        os.kill(lab.status().hardware_pid, signal.SIGKILL)
        Cgroup.of_lab(lab.description.name).remove()
        kernel.unmount_below(lab.state.path)
        kernel.delete_namespaces(kernel.namespaces(f"nuage.{lab.description.name}."))
        lab.create_hardware()
        lab.power_on_all()
        _until(lambda: _status(lab, "marne-v1").services[0].pid > 0)
        assert (lab.disk("marne-v1", "d0") / "data").read_text() == "kept"
        assert not _pings(lab, "marne-v1", lab.address("lyon-v1"))
        lab.heal("lyon")
        assert _pings(lab, "marne-v1", lab.address("lyon-v1"))
    finally:
        lab.destroy()


def test_down_cleans_up_when_the_state_is_lost(tmp_path: Path) -> None:
    lost = _new_lab("c", tmp_path)
    lost.create_hardware()
    lost.power_on("marne-v1")
    hardware = lost.status().hardware_pid
    for name in ("description.json", "hardware.pid", "built"):
        (lost.state.path / name).unlink()
    found = Lab.open(DEFAULT_DESCRIPTION, lost.state.path, name=lost.description.name)
    found.destroy()
    _until(lambda: kernel.process_start(hardware) is None)
    assert not kernel.namespaces(f"nuage.{lost.description.name}.")
    assert not Cgroup.of_lab(lost.description.name).path.exists()


def _nuage_lab(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from nuage.lab.commands import lab_group; lab_group()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "NUAGE_LAB": lab.description.name,
             "NUAGE_LAB_STATE": str(lab.state.path),
             "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip


def test_the_command_line_says_what_is_wrong(lab: Lab) -> None:
    assert "marne-v1" in _nuage_lab(lab, "status").stdout
    assert _nuage_lab(lab, "weather", "lyon", "-3.5").returncode == 0
    assert lab.status().sites[1].outside_celsius == -3.5
    assert "no site 'paris'" in _nuage_lab(lab, "cut", "paris").stderr
    assert "hello" in _nuage_lab(lab, "exec", "marne-v1", "--", "echo", "hello").stdout
    assert "paris" in _nuage_lab(lab, "kill", "paris").stderr
    assert SystemClock().now_s() > 0


def test_a_site_and_a_whole_federation_lose_and_get_their_power_by_one_order(lab: Lab) -> None:
    steady = {"marne-v1": ("sleep", "1007"), "lyon-v1": ("sleep", "1008")}
    for node, argv in steady.items():
        lab.set_services(node, [Service("steady", argv)])

    def states(site: str = "") -> set[str]:
        return {node.state for node in lab.status().nodes if site in ("", node.site)}

    def run() -> bool:
        return all(_status(lab, node).services[0].pid > 0 for node in steady)

    lab.power_on_all()
    _until(run, within_s=60.0)
    before = {node: _status(lab, node).services[0].pid for node in steady}
    assert _nuage_lab(lab, "kill", "lyon").returncode == 0
    assert states("lyon") == {"off"}
    assert states("marne") == {"on"}
    assert "nuage lab power all on" in _nuage_lab(lab, "kill", "all").stdout
    assert states() == {"off"}
    assert not any(kernel.process_start(pid) for pid in before.values())
    assert _nuage_lab(lab, "power", "all", "on").returncode == 0
    assert states() == {"on"}
    _until(run, within_s=60.0)
    _until(lambda: _pings(lab, "marne-v1", lab.address("lyon-v1")), within_s=60.0)
    for node in steady:
        lab.set_services(node, [])
