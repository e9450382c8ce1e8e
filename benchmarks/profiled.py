"""Run one of the product's commands under cProfile, by the main thread's own CPU time.

``python benchmarks/profiled.py OUT.prof controller --config …``; the figures are written at the end.
"""

import cProfile
import sys
import time


def main() -> None:
    out, sys.argv = sys.argv[1], ["nuage", *sys.argv[2:]]
    profile = cProfile.Profile(time.thread_time)
    from nuage.cli.main import main as nuage

    profile.enable()
    try:
        nuage()
    finally:
        profile.disable()
        profile.dump_stats(out)


if __name__ == "__main__":
    main()
