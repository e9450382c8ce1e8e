from pathlib import Path

import pytest

from nuage.energy.facility_file import check_facility
from nuage.errors import InvalidRequest

ONE_PATH = """
[[subsystems]]
name = "power"
[[subsystems.paths]]
stages = [
  { needed = 1, components = [{ name = "UPS", mtbf_h = 250000, mttr_h = 8, count = 2 }] },
  { components = [{ name = "board", mtbf_h = 1500000, mttr_h = 24, count = 2 }] },
]
"""
SECOND_PATH = """
[[subsystems.paths]]
stages = [{ components = [{ name = "generator", mtbf_h = 20000, mttr_h = 12 }] }]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "facility.toml"
    path.write_text(text)
    return path


def test_a_tier_is_what_the_paths_support_not_what_is_claimed(tmp_path: Path) -> None:
    check = check_facility(write(tmp_path, ONE_PATH), 3)
    assert (check.claimed, check.supported, check.holds) == (3, 2, False)
    assert check.findings == ("tier 3: power has one path only",)
    more = check_facility(write(tmp_path, ONE_PATH + SECOND_PATH), 3)
    assert (more.supported, more.holds) == (3, True)
    assert more.availability > check.availability


@pytest.mark.parametrize(
    "text",
    [
        "",
        "subsystems = []",
        "subsystems = 3",
        '[[subsystems]]\nname = "power"\npaths = []',
        ONE_PATH.replace("needed = 1", "needed = 3"),
        ONE_PATH.replace("mtbf_h = 250000", "mtbf_h = 0"),
        ONE_PATH.replace("mttr_h", "mttr"),
    ],
)
def test_a_file_that_models_no_facility_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequest):
        check_facility(write(tmp_path, text), 2)
