"""tshark, which we did not write, reads all that we send and finds nothing to complain about."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.data.network.golden_frames import HERE, captures, write_pcap

from nuage.network.campus import random_campus
from nuage.network.forwarding import Label, PortNumber

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed"),
]
DISSECTOR = Path(__file__).parents[3] / "tools/dissectors/nuage_trill.lua"
CHECKS = ("ip.check_checksum", "udp.check_checksum")
COMPLAINTS = re.compile(r"malformed|unknown|incorrect|\bbad\b|lua error|lengths contradict", re.I)
# What tshark 4.0 does not know by itself and our dissector reads; nothing else may stand there.
GAPS = re.compile(
    r"PDU Type: Unknown \((23|28)\)|Unknown ISIS packet type|Unknown SubTlv: Type: 15"
    r"|Type: Unknown \(0x(893b|8946)\)|Type: Unknown \(5\)|Unknown LISP Control Packet \(5\)",
    re.I,
)


def dissect(capture: Path, *more: str) -> str:
    preferences = [word for name in CHECKS for word in ("-o", f"{name}:TRUE")]
    done = subprocess.run(
        ["tshark", "-r", str(capture), "-X", f"lua_script:{DISSECTOR}", *preferences, *more],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def complaints(text: str) -> list[str]:
    return [
        line.strip()
        for line in text.splitlines()
        if COMPLAINTS.search(line) and not GAPS.search(line)
    ]


@pytest.mark.parametrize("name", sorted(captures()))
def test_tshark_reads_the_golden_capture_without_complaint(name: str) -> None:
    text = dissect(HERE / name, "-V")
    assert complaints(text) == []
    assert text.count("Frame ") >= len(captures()[name])


@pytest.mark.parametrize("name", ["trill-plain.pcap", "trill-signed.pcap"])
def test_there_is_no_gap_in_what_tshark_knows_of_isis(name: str) -> None:
    assert not GAPS.search(dissect(HERE / name, "-V"))
    verdicts = dissect(HERE / name, "-T", "fields", "-e", "isis.lsp.checksum.status")
    assert set(verdicts.split()) <= {"1", "3", "Good", "Not present"}  # a purge has none


def test_our_dissector_reads_what_tshark_cannot() -> None:
    fields = (
        "nuage_fgl.label", "nuage_channel.protocol", "bfd.sta", "nuage_more.mtu.type",
        "nuage_more.labels.first", "nuage_more.labels.last",
    )  # fmt: skip
    asked = [word for field in fields for word in ("-e", field)]
    text = dissect(HERE / "trill-gaps.pcap", "-T", "fields", "-E", "separator=;", *asked)
    assert text.splitlines() == [
        ";;;23;;",
        ";;;28;;",
        ";;;;0x000001,0xabcdef;0x000002,0xabcdef",
        "0xabcdef;;;;;",
        "0xabcdef;;;;;",
        ";0x0002;0x03;;;",
    ]


def test_tshark_reads_all_that_a_living_campus_says(tmp_path: Path) -> None:
    """Adjacencies, flooding, probes, BFD and tenants' frames of six RBridges, a link lost."""
    frames: list[bytes] = []
    campus = random_campus(3, 6, 4)
    campus.tap = lambda _number, _port, frame: frames.append(frame)
    ports = [campus.attach(number, Label(0x10000 + number % 2)) for number in range(6)]
    campus.run_until(4.0)
    for number, port in enumerate(ports):
        guest = bytes((6, 0, 0, 0, 0, number))
        campus.from_guest(number, PortNumber(port), b"\xff" * 6 + guest + b"\x88\xb5" + b"." * 46)
    campus.cut(campus.cables[0])
    campus.run_for(1.0)
    write_pcap(tmp_path / "campus.pcap", frames[:3000] + frames[-1500:])
    assert complaints(dissect(tmp_path / "campus.pcap", "-V")) == []
