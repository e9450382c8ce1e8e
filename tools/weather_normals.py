"""Make python/nuage/energy/data/rt2012.json from BuildSysPro's RT2012 weather files.

Usage: python tools/weather_normals.py FOLDER_WITH_H1a.txt…  > python/nuage/energy/data/rt2012.json

Each file holds 8,760 rows of a typical year (NF EN ISO 15927-4): time in seconds (solar), …,
dry bulb and dew point in °C, …, latitude, longitude. Kept of them: how many hours lie in each
square of 1 K × 1 K, and the mean dry bulb by month and hour.
"""

import json
import sys
from collections import Counter
from math import floor
from pathlib import Path

ZONES = ("H1a", "H1b", "H1c", "H2a", "H2b", "H2c", "H2d", "H3")
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
MONTH_OF_DAY = [month for month, days in enumerate(MONTH_DAYS) for _ in range(days)]


def normals(text: str) -> dict[str, object]:
    rows = [line.split() for line in text.splitlines()[2:] if line.strip()]
    if len(rows) != 8760:
        raise SystemExit(f"expected 8760 hours, found {len(rows)}")
    squares: Counter[tuple[int, int]] = Counter()
    sums = [[0.0] * 24 for _ in range(12)]
    for index, row in enumerate(rows):
        dry_bulb_c, dew_point_c = float(row[3]), float(row[4])
        squares[floor(dry_bulb_c), floor(min(dew_point_c, dry_bulb_c))] += 1
        sums[MONTH_OF_DAY[index // 24]][index % 24] += dry_bulb_c
    means = [
        [round(total / days, 1) for total in month]
        for month, days in zip(sums, MONTH_DAYS, strict=True)
    ]
    hours = [[t, d, count] for (t, d), count in sorted(squares.items())]
    return {
        "latitude_deg": float(rows[0][10]),
        "longitude_deg": float(rows[0][11]),
        "hours": hours,
        "mean_dry_bulb_c": means,
    }


def main() -> None:
    folder = Path(sys.argv[1])
    zones = {zone: normals((folder / f"{zone}.txt").read_text()) for zone in ZONES}
    json.dump(zones, sys.stdout, separators=(",", ":"))


if __name__ == "__main__":
    main()
