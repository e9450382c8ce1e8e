"""The target as a host's kernel sees it: open-iscsi, dm-multipath, ext4, sg3-utils in a guest.

The guest has Debian's kernel and runs without KVM, so a boot takes half a minute. Its dm-multipath
has no handler for ALUA (the kernel is built without): paths are grouped by a table, as multipathd
would write it, and the access states are read by `sg_rtpg`.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.system.storage_front.host_paths import IQN as PATHS_IQN
from tests.system.storage_front.host_paths import SECRETS, SIZE_BYTES, Controller, IoNode
from tests.system.storage_front.storage_front_daemon import IQN, MIB, SECRET, Daemon
from tests.torture.kernel_initiator import HOST, Failed, Initiator, initiator_image

from nuage.iaas.hosts import paths_of
from nuage.iaas.wishes import host_login
from nuage.model.volume import OutsideHost

OWN_SECRET = "the-target-s-own-secret-"
SIZE_MIB = 96
CHAP = {
    "chap": [{"name": "host", "secret": SECRET}],
    "chap_own": {"name": "disk", "secret": OWN_SECRET},
}
LOGIN_SETTINGS = {
    "node.session.auth.authmethod": "CHAP",
    "node.session.auth.username": "host",
    "node.session.auth.password": SECRET,
    "node.session.auth.username_in": "disk",
    "node.session.auth.password_in": OWN_SECRET,
    "node.conn[0].iscsi.HeaderDigest": "CRC32C",
    "node.conn[0].iscsi.DataDigest": "CRC32C",
    "node.session.timeo.replacement_timeout": "3",
    "node.conn[0].timeo.noop_out_interval": "1",
    "node.conn[0].timeo.noop_out_timeout": "2",
}
# A refused login is told at once, but repeated by default for minutes.
ONE_TRY = {"node.session.initial_login_retry_max": "1"}
# An attachment without --mutual: the target asks who comes, and is not asked.
ONE_SIDED = {"node.session.auth.username_in": "", "node.session.auth.password_in": ""}


@pytest.fixture(scope="module")
def image() -> Path:
    return initiator_image()


@pytest.fixture
def guest(image: Path, tmp_path: Path) -> Iterator[Initiator]:
    made = Initiator(image, tmp_path)
    yield made
    made.end()


def for_guest(daemon: Daemon) -> Daemon:
    """Let discovery name portals that the guest reaches."""
    daemon.stop()
    daemon.host = HOST
    daemon.start()
    return daemon


def serve(daemon: Daemon, **words: object) -> None:
    daemon.ask("create_volume", volume="v", size_bytes=SIZE_MIB * MIB, logical_block_bytes=512)
    daemon.ask("open_head", volume="v", epoch=1, iqn=IQN, ack="memory", **words)


def discover(guest: Initiator, port: int) -> str:
    return guest.run(f"iscsiadm -m discovery -t sendtargets -p {HOST}:{port}")


def log_in(guest: Initiator, iqn: str = IQN, **changed: str) -> None:
    settings = LOGIN_SETTINGS | ONE_TRY | changed
    words = " ".join(f"-n '{name}' -v '{value}'" for name, value in settings.items() if value)
    guest.run(f"iscsiadm -m node -T {iqn} -o update {words}")
    guest.run(f"iscsiadm -m node -T {iqn} --login")


def disks(guest: Initiator, count: int) -> list[str]:
    """Return the disks of all sessions, as `sda`, by their sessions' order."""
    guest.wait_for(f"[ $(ls -d /sys/block/sd* | wc -l) -ge {count} ]")
    found = guest.run("ls -d /sys/block/sd*").split()
    return [Path(path).name for path in found]


def multipath(guest: Initiator, paths: list[str], size_bytes: int = SIZE_MIB * MIB) -> None:
    """Join paths, a group each: the first is used until it fails."""
    numbers = [guest.run(f"cat /sys/block/{path}/dev") for path in paths]
    groups = " ".join(f"service-time 0 1 1 {number} 1" for number in numbers)
    sectors = size_bytes // 512
    table = f"0 {sectors} multipath 1 queue_if_no_path 0 {len(paths)} 1 {groups}"
    guest.run(f"echo '{table}' | dmsetup --noudevsync --noudevrules create mp")
    guest.wait_for("[ -b /dev/dm-0 ]")


def test_a_host_discovers_logs_in_with_mutual_chap_and_digests_and_keeps_a_file_system(
    daemons: Callable[[str], Daemon], guest: Initiator
) -> None:
    daemon = for_guest(daemons("one"))
    serve(daemon, **CHAP)
    told = discover(guest, daemon.iscsi[0])
    assert {f"{HOST}:{port},1 {IQN}" for port in daemon.iscsi} <= set(told.splitlines())
    # Neither side takes the other with a wrong secret.
    for key in ("node.session.auth.password", "node.session.auth.password_in"):
        with pytest.raises(Failed, match="Could not log into all portals"):
            log_in(guest, **{key: "not-the-secret-at-all"})
    assert "iscsi_login_refused" in daemon.log
    assert SECRET not in daemon.log
    log_in(guest)
    sessions = guest.run("iscsiadm -m session -P 2")
    assert sessions.count("HeaderDigest: CRC32C") == 2
    assert sessions.count("DataDigest: CRC32C") == 2
    paths = disks(guest, 2)
    names = {guest.run(f"sg_vpd --page=di /dev/{path}") for path in paths}
    assert all("naa" in name.lower() and f"{IQN},t,0x0001" in name for name in names), names
    for command in ("sg_vpd --page=bl", "sg_vpd --page=lbpv", "sg_vpd --page=sn", "sg_inq"):
        assert guest.run(f"{command} /dev/{paths[0]}") == guest.run(f"{command} /dev/{paths[1]}")
    thin = guest.run(f"sg_vpd --page=lbpv /dev/{paths[0]}")
    assert "Provisioning type: 2 (thin provisioned)" in thin
    assert "read zeros (LBPRZ): 1" in thin
    multipath(guest, paths)
    guest.run("/sbin/mke2fs -q -t ext4 -E nodiscard /dev/dm-0 && mount -t ext4 /dev/dm-0 /mnt")
    guest.run("dd if=/dev/urandom of=/mnt/data bs=1M count=8 2>/dev/null; sync")
    sums = guest.run("md5sum /mnt/data")
    guest.run("umount /mnt; echo 3 >/proc/sys/vm/drop_caches; /sbin/e2fsck -fn /dev/dm-0")
    guest.run("mount -t ext4 -o ro /dev/dm-0 /mnt")
    assert guest.run("md5sum /mnt/data") == sums
    guest.run("umount /mnt; dmsetup remove mp")
    guest.run("iscsiadm -m node --logout")


def test_a_hosts_reservation_outlives_the_daemon_and_is_preempted_by_another_path(
    daemons: Callable[[str], Daemon], guest: Initiator
) -> None:
    daemon = for_guest(daemons("one"))
    serve(daemon, **CHAP)
    discover(guest, daemon.iscsi[0])
    log_in(guest)
    one, two = (f"/dev/{path}" for path in disks(guest, 2))
    for path, key in ((one, "0x1"), (two, "0x2")):
        guest.run(f"sg_persist -o -G --param-sark={key} -Z {path}")
    guest.run(f"sg_persist -o -R --param-rk=0x1 --prout-type=5 {one}")
    assert "Write Exclusive, registrants only" in guest.run(f"sg_persist -i -r {two}")
    daemon.kill()
    daemon.start()
    daemon.ask("open_head", volume="v", epoch=2, iqn=IQN, ack="memory", **CHAP)
    keys = guest.wait_for(f"sg_persist -i -k {two}")
    assert "0x1" in keys
    assert "0x2" in keys
    assert "Key=0x1" in guest.wait_for(f"sg_persist -i -r {one}")  # after an attention
    guest.run(f"sg_persist -o -P --param-rk=0x2 --param-sark=0x1 --prout-type=5 {two}")
    assert "Key=0x2" in guest.run(f"sg_persist -i -r {two}")
    with pytest.raises(Failed):
        guest.run(f"dd if=/dev/zero of={one} bs=4k count=1 oflag=direct")
    guest.run(f"dd if=/dev/zero of={two} bs=4k count=1 oflag=direct")


async def test_a_host_goes_on_writing_by_its_other_path_when_the_heads_node_dies(
    three_sites: list[Daemon], guest: Initiator
) -> None:
    """Three IO-nodes, one head: ALUA says which path serves; a killed head costs no write.

    Targets, log-in and states are what a controller wishes and agents do.
    """
    name = guest.run("cat /etc/iscsi/initiatorname.iscsi").partition("=")[2]
    host = OutsideHost(initiator=name, login="host-1")
    for site in three_sites:
        site.host = HOST
    controller = Controller([IoNode(site) for site in three_sites], host)
    try:
        await controller.until("active/optimized", "standby", "standby")
        await a_killed_head_costs_no_write(three_sites, guest, controller)
    finally:
        await controller.close()


async def a_killed_head_costs_no_write(
    sites: list[Daemon], guest: Initiator, controller: Controller
) -> None:
    login = host_login(SECRETS, controller.volume)
    for site in sites:
        discover(guest, site.iscsi[0])
    chap = {"node.session.auth.username": login.user, "node.session.auth.password": login.secret}
    log_in(guest, PATHS_IQN, **chap, **ONE_SIDED)
    tags = [path.group for path in paths_of(controller.index, controller.volume)]
    by_tag = {group_of(guest, path): path for path in disks(guest, len(sites))}
    paths = [by_tag[tag] for tag in tags]
    for path in paths:
        states = guest.run(f"sg_rtpg -d /dev/{path}")
        assert states.count("active/optimized") == 1, states
        assert states.count("standby") == 2, states
    for path in paths[1:]:
        with pytest.raises(Failed):
            guest.run(f"dd if=/dev/{path} of=/dev/null bs=4k count=1 iflag=direct")
    multipath(guest, paths, SIZE_BYTES)
    guest.run("/sbin/mke2fs -q -t ext4 -E nodiscard /dev/dm-0 && mount -t ext4 /dev/dm-0 /mnt")
    write = (
        "i=0; while [ $i -lt 60 ]; do dd if=/dev/urandom of=/mnt/$i bs=64k count=1 conv=fsync "
        "2>/dev/null || exit 1; md5sum /mnt/$i >>/run/sums; i=$((i+1)); usleep 100000; done"
    )
    guest.run(f"({write}; echo $? >/run/written) >/dev/null 2>&1 &")
    guest.wait_for("[ $(cat /run/sums | wc -l) -ge 5 ]")
    lost = controller.volume.head
    assert lost is not None
    await controller.lose(lost)
    await controller.until("active/optimized", "standby")
    serving = by_tag[paths_of(controller.index, controller.volume)[0].group]
    # What multipathd's checker does: a path that serves again is used again.
    number = guest.run(f"cat /sys/block/{serving}/dev")
    guest.wait_for(f"sg_turs /dev/{serving} && dmsetup message mp 0 reinstate_path {number}")
    deadline_s = time.monotonic() + 180
    while not guest.run("cat /run/written 2>/dev/null || true"):
        guest.run(f"dmsetup message mp 0 reinstate_path {number}")
        assert time.monotonic() < deadline_s, guest.run("dmsetup status; dmesg | tail -20")
    assert guest.run("cat /run/written") == "0"
    guest.run("umount /mnt; echo 3 >/proc/sys/vm/drop_caches; /sbin/e2fsck -fn /dev/dm-0")
    guest.run("mount -t ext4 -o ro /dev/dm-0 /mnt && md5sum -c /run/sums && umount /mnt")
    assert "active/optimized" in guest.run(f"sg_rtpg -d /dev/{serving}")


def group_of(guest: Initiator, path: str) -> int:
    """Return the target port group through which a path goes."""
    told = guest.run(f"sg_vpd --page=di /dev/{path}")
    (line,) = [line for line in told.splitlines() if "Target port group:" in line]
    return int(line.split(":")[1], 16)
