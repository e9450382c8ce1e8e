"""A facility's paths of power and cooling as a file, from which its tier is checked.

::

    [[subsystems]]
    name = "power"
    active_paths = 2                          # that carry load at all times
    [[subsystems.paths]]                      # one table a path; a path is stages in series
    stages = [
      { needed = 1, components = [{ name = "UPS", mtbf_h = 250000, mttr_h = 8, count = 2 }] },
      { components = [{ name = "switchboard", mtbf_h = 1500000, mttr_h = 24 }] },
    ]
"""

import tomllib
from pathlib import Path

import msgspec

from nuage.energy.tier import Component, Subsystem, TierCheck, check_tier
from nuage.errors import InvalidRequest


class _Component(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    mtbf_h: float
    mttr_h: float
    count: int = 1


class _Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    components: tuple[_Component, ...]
    needed: int = 1


class _Path(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    stages: tuple[_Stage, ...]


class _Subsystem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    paths: tuple[_Path, ...]
    active_paths: int = 1


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    subsystems: tuple[_Subsystem, ...]


def check_facility(path: Path, claimed_tier: int) -> TierCheck:
    """Return what the facility of a file supports, against the tier that it claims.

    Raises:
        InvalidRequest: there is no such file, or it is not as the module says.
    """
    try:
        document = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidRequest(f"facility {path}: {error}", field="facility_file") from error
    if not document.subsystems:
        raise InvalidRequest(f"facility {path} has no subsystem", field="facility_file")
    return check_tier(claimed_tier, [_subsystem(each) for each in document.subsystems])


def _subsystem(told: _Subsystem) -> Subsystem:
    if not told.paths or not all(path.stages for path in told.paths):
        raise InvalidRequest(f"{told.name} has a path, and a path has stages", field=told.name)
    return Subsystem(
        name=told.name,
        active_paths=told.active_paths,
        paths=tuple(
            tuple((_components(stage, told.name), stage.needed) for stage in path.stages)
            for path in told.paths
        ),
    )


def _components(stage: _Stage, where: str) -> tuple[Component, ...]:
    found = tuple(
        Component(each.name, each.mtbf_h, each.mttr_h)
        for each in stage.components
        for _ in range(each.count)
    )
    if not 1 <= stage.needed <= len(found):
        raise InvalidRequest(
            f"a stage of {where} needs {stage.needed} of {len(found)} components", field=where
        )
    return found
