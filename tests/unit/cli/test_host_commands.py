"""What a host outside is told of its volume."""

import pytest

from nuage.cli.hosts import tell_access
from nuage.cli.showing import Row

ACCESS: Row = {
    "iqn": "iqn.t:v", "initiator": "iqn.x:host", "user": "vol-1.host-1", "secret": "5" * 32,
    "target_user": "", "target_secret": "",
    "paths": [
        {"portal": portal, "node": node, "site": "marne", "group": group, "state": state}
        for portal, node, group, state in (
            ("10.0.0.1:21000", "io1", 7, "active/optimized"),
            ("10.0.0.2:21000", "io2", 9, "standby"),
        )
    ],
}  # fmt: skip


def test_a_host_is_told_its_login_and_what_to_paste_for_every_portal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell_access(ACCESS)
    told = capsys.readouterr().out
    assert "echo InitiatorName=iqn.x:host > /etc/iscsi/initiatorname.iscsi" in told
    for line in (
        "iscsiadm -m node -T iqn.t:v -p 10.0.0.1:21000,7 -o new",
        "iscsiadm -m node -T iqn.t:v -p 10.0.0.2:21000,9 -o new",
        "iscsiadm -m node -T iqn.t:v -o update -n node.session.auth.username -v vol-1.host-1",
        "iscsiadm -m node -T iqn.t:v --login",
    ):
        assert line in told.splitlines()
    assert 'prio "alua"' in told
    assert "target user" not in told
    assert "_in -v" not in told


def test_a_host_that_shall_see_the_targets_proof_is_told_by_what(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell_access(ACCESS | {"target_user": "target.vol-1.host-1", "target_secret": "7" * 32})
    told = capsys.readouterr().out.splitlines()
    update = "iscsiadm -m node -T iqn.t:v -o update -n node.session.auth"
    proof = [
        f"{update}.username_in -v target.vol-1.host-1",
        f"{update}.password_in -v {'7' * 32}",
    ]
    assert [line for line in told if "_in -v" in line] == proof
    assert told.index(proof[1]) < told.index("iscsiadm -m node -T iqn.t:v --login")
