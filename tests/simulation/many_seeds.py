"""Runs of many seeds: they share nothing, so each core of the machine makes its own.

A test waits for its share of them. What broke comes back as text, with the seed.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager

import structlog

SHARE_TIMEOUT_S = (
    900  # some dozen runs of well below a second each, and a machine that stands still
)
Faults = dict[int, str]  # by seed, what was broken
Shares = dict[int, Future[Faults]]  # by their first seed


def say_nothing() -> None:
    """Thousands of lines a second that nobody reads cost more than the run."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def faults_of(run: Callable[[int], object], seeds: range) -> Faults:
    """Run some seeds; return what was broken in which."""
    faults = {}
    for seed in seeds:
        try:
            run(seed)
        except AssertionError as error:
            faults[seed] = str(error)
        except Exception:  # noqa: BLE001  a bug of ours: told with its seed, whatever it raised
            faults[seed] = traceback.format_exc()
    return faults


@contextmanager
def begun(run: Callable[[int], object], seeds: range, per_share: int) -> Iterator[Shares]:
    """Begin to run all seeds; what nobody waits for any more is not begun."""
    context = multiprocessing.get_context("spawn")
    core_count = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(core_count, mp_context=context, initializer=say_nothing) as pool:
        yield {
            seeds[at]: pool.submit(faults_of, run, seeds[at : at + per_share])
            for at in range(0, len(seeds), per_share)
        }
        pool.shutdown(cancel_futures=True)
