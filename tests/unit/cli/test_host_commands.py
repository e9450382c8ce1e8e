"""What a host outside is told of its volume."""

import pytest

from nuage.cli.hosts import tell_access


def test_a_host_is_told_its_login_and_what_to_paste_for_every_portal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell_access(
        {
            "iqn": "iqn.t:v", "initiator": "iqn.x:host", "user": "vol-1.host-1", "secret": "5" * 32,
            "paths": [
                {
                    "portal": portal, "node": node, "site": "marne", "group": group,
                    "state": state,
                }
                for portal, node, group, state in (
                    ("10.0.0.1:21000", "io1", 7, "active/optimized"),
                    ("10.0.0.2:21000", "io2", 9, "standby"),
                )
            ],
        }
    )  # fmt: skip
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
