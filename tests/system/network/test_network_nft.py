"""The nftables text we render is taken by nft itself."""

import shutil
import subprocess

import pytest

from nuage.network.forwarding import Direction, PortNumber
from nuage.network.security_group import ALL_OUT, SecurityRule, policy_entries, render_nft

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed"),
]


def test_nft_checks_what_we_render_without_error() -> None:
    rules = [
        ALL_OUT,
        SecurityRule(direction=Direction.INGRESS, protocol="tcp", port_first=22, port_last=23),
        SecurityRule(direction=Direction.INGRESS, protocol="udp", remote="10.0.0.0/8"),
        SecurityRule(direction=Direction.INGRESS, protocol="icmpv6", remote="2001:db8::/32"),
        SecurityRule(direction=Direction.INGRESS, protocol="icmp", port_first=8, port_last=8),
    ]
    text = render_nft("tap-12", policy_entries(PortNumber(1), rules, {}))
    if not takes("add table bridge t\nadd chain bridge t c\nadd rule bridge t c ct state new"):
        text = text.replace("ct state established,related accept\n", "accept\n")
    assert takes(text)


def takes(text: str) -> bool:
    """Let nft and the kernel judge, changing nothing. Some kernels have no nf_conntrack_bridge."""
    done = subprocess.run(
        ["nft", "-c", "-f", "-"], input=text, capture_output=True, text=True, check=False
    )
    return done.returncode == 0
