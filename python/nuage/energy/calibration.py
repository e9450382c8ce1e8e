"""A node's flops from a real run: solve a dense system on all cores, Linpack's way.

`2/3·n³ + 2·n²` operations over the time they took, best of several, as HPL counts them (paper
§II-E: HPL, ATLAS and Open MPI there; LAPACK under NumPy here). The answer is checked: a run
whose residual is too large measured something else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nuage.errors import CorruptData

# NumPy is taken in by who measures: an agent does once in its life, and starts without it.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

ORDER: Final = 1000  # 0.67 Gflop, 8 MB: above a core's own cache, and soon done on a slow node
RUNS: Final = 3
RESIDUAL_MAX: Final = 16.0  # HPL's own threshold for a run that passes


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured; `flops` is the best of the runs."""

    flops: float
    order: int
    runs: int
    residual: float


def operations(order: int) -> float:
    """Return the floating-point operations of one solution, as HPL counts."""
    return 2.0 / 3.0 * order**3 + 2.0 * order**2


def calibrate(
    monotonic_s: Callable[[], float], *, order: int = ORDER, runs: int = RUNS, seed: int = 1
) -> Calibration:
    """Measure this machine; takes about `runs` × operations / flops seconds, all cores.

    Raises:
        CorruptData: a solution did not verify: the machine computes wrongly.
    """
    import numpy as np  # noqa: PLC0415 - see above

    prng = np.random.default_rng(seed)
    matrix = prng.random((order, order)) - 0.5
    wanted = prng.random(order)
    best_s = float("inf")
    residual = 0.0
    for _ in range(runs):
        begin_s = monotonic_s()
        solution: Floats = np.linalg.solve(matrix, wanted).astype(np.float64)
        best_s = min(best_s, monotonic_s() - begin_s)
        residual = max(residual, _residual(matrix, solution, wanted))
    if not residual < RESIDUAL_MAX:
        raise CorruptData(
            f"the solution's residual is {residual:g}",
            where="calibration",
            hint="this machine computes wrongly: test its memory before it serves",
        )
    return Calibration(operations(order) / max(best_s, 1e-9), order, runs, residual)


def _residual(matrix: "Floats", solution: "Floats", wanted: "Floats") -> float:
    """Return HPL's scaled residual: ‖Ax-b‖ / (ε · (‖A‖·‖x‖ + ‖b‖) · n), infinity norms."""
    import numpy as np  # noqa: PLC0415 - see above

    off = float(np.abs(matrix @ solution - wanted).max())
    size = float(np.abs(matrix).sum(axis=1).max() * np.abs(solution).max() + np.abs(wanted).max())
    return off / (float(np.finfo(np.float64).eps) * size * len(wanted))
