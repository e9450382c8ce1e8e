"""What we put on the wire is what the reviewed captures hold, byte for byte."""

from pathlib import Path

import pytest
from tests.data.network.golden_frames import HERE, captures, write_pcap


@pytest.mark.parametrize("name", sorted(captures()))
def test_the_encoders_still_write_the_golden_capture(name: str, tmp_path: Path) -> None:
    again = tmp_path / name
    write_pcap(again, captures()[name])
    assert again.read_bytes() == (HERE / name).read_bytes()
