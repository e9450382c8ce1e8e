"""Where nobody has mounted the BPF file system, as in a container, a node's agent does."""

from pathlib import Path

import pytest
from tests.system.bpf.bpf_netns import Namespaces
from tests.system.bpf.node_process import NodeProcess, configured

from nuage.model.fabric import FabricReport, FabricWish

pytestmark = pytest.mark.system
# In the agent's own mount namespace: gone with it.
NOT_MOUNTED = "mount -t tmpfs none /sys/fs && mkdir /sys/fs/bpf"
NOT_TO_BE_MOUNTED = "mount -t tmpfs none /sys/fs"


def reported(net: Namespaces, folder: Path, mounts: str) -> FabricReport:
    path = configured(folder / "v1", site="marne", address="192.0.2.1", is_edge=False)
    path.write_text(path.read_text().replace('plane = "kernel"\n', ""))
    node = NodeProcess(net.add("v1"), folder, path, mounts=mounts)
    node.start()
    try:
        node.tell({"wish": FabricWish(revision=1, key="00" * 32)})
        return node.report()
    finally:
        node.kill()


def test_an_agent_mounts_the_file_system_that_it_pins_programs_in(
    net: Namespaces, tmp_path: Path
) -> None:
    report = reported(net, tmp_path, NOT_MOUNTED)
    assert report.plane == "kernel"
    assert report.news == ()


def test_where_it_cannot_the_slow_plane_is_told_with_what_to_do(
    net: Namespaces, tmp_path: Path
) -> None:
    report = reported(net, tmp_path, NOT_TO_BE_MOUNTED)
    assert report.plane == "software"
    (line,) = report.news
    assert "guests' network is slow: no BPF file system at /sys/fs/bpf" in line
    assert line.endswith("; mount -t bpf bpf /sys/fs/bpf")
