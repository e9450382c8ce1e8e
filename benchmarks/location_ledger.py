"""A location ledger of many receipts: to open it, to prove from it, to add to it; memory held.

    python benchmarks/location_ledger.py [--receipts 100000] [--folder DIR]

The log is written as its format has it, with one signature for all receipts: opening checks none.
CPU times, not elapsed ones, but for what is added: that waits for the disk.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.ids import NodeId, SiteId, VolumeId
from nuage.trust.book import raw_key
from nuage.trust.ledger import (
    HEAD_LEAVES,
    INDEX_FOLDER,
    LocationEvent,
    LocationLedger,
    Receipt,
    sign_receipt,
)
from nuage.trust.verify import Peaks, SiteKey, head_message, leaf_hash, ledger_line

SITE = SiteId("marne")
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
BATCH = 64  # as an IO-node hands them over
VOLUMES = 50
ADDED = 4096


def receipt(number: int) -> Receipt:
    """Return an unsigned receipt of one of `VOLUMES` volumes."""
    return Receipt(
        volume_id=VolumeId(f"vol-{number % VOLUMES:032x}"),
        segment=number // VOLUMES,
        sequence_first=100 * number,
        sequence_last=100 * number + 99,
        chain_hash=hashlib.sha256(b"%d" % number).hexdigest(),
        site_id=SITE,
        node_id=NodeId(f"io{number % 3}"),
        disk_serial="WD-1234",
        event=LocationEvent.SEAL,
        time_ms=1_800_000_000_000 + number,
    )


def write_log(path: Path, count: int) -> None:
    """Write a log of `count` receipts with a head after each `HEAD_LEAVES`."""
    peaks, signed = Peaks(), sign_receipt(receipt(0), KEY)
    with path.open("wb") as file:
        for number in range(count):
            document = receipt(number).document()
            document |= {"key_id": signed.key_id, "signature": signed.signature}
            line = ledger_line("leaf", document)
            file.write(line)
            peaks.append(leaf_hash(line[9:-1].partition(b" ")[2]))
            if peaks.size % HEAD_LEAVES == 0:
                head = {
                    "ledger": "iaas-1", "site_id": SITE, "size": peaks.size,
                    "root": peaks.root().hex(), "time_ms": document["time_ms"],
                    "key_id": signed.key_id,
                }  # fmt: skip
                head["signature"] = KEY.sign(head_message(head)).hex()
                file.write(ledger_line("head", head))


def open_ledger(path: Path) -> LocationLedger:
    """Open it as a controller does."""
    return LocationLedger(path, name="iaas-1", site_id=SITE, key=lambda: KEY, now_s=time.time)


def resident_mib() -> float:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def measured(what: str, act: Callable[[], LocationLedger]) -> LocationLedger:
    """Print CPU time and memory of an act that opens a ledger."""
    before_mib, started_s = resident_mib(), time.process_time()
    ledger = act()
    spent_s, more_mib = time.process_time() - started_s, resident_mib() - before_mib
    print(f"{what}: {spent_s:.3f} s of CPU, {more_mib:.1f} MiB")
    return ledger


def add(ledger: LocationLedger, first: int) -> float:
    """Add `ADDED` receipts in batches; return how many a second."""
    node = SiteKey(SITE, raw_key(KEY.public_key()))
    signed = [sign_receipt(receipt(first + number), KEY) for number in range(ADDED)]
    started_s = time.perf_counter()
    for number in range(0, ADDED, BATCH):
        for each in signed[number : number + BATCH]:
            if not ledger.has(each):
                ledger.append(each, node)
        ledger.sync()
    return ADDED / (time.perf_counter() - started_s)


def run(folder: Path, count: int) -> None:
    """Print all figures."""
    path = folder / "iaas-1.log"
    write_log(path, count)
    open_ledger(path).close()  # what is loaded and made once is not counted below
    ledger = measured(f"open, {count:,} receipts", lambda: open_ledger(path))
    started_s = time.process_time()
    held = ledger.indices_of(receipt(7).volume_id)
    for index in held[:1000]:
        ledger.prove(index)
    spent_ms = (time.process_time() - started_s) * 1000
    print(f"prove {len(held[:1000])} of a volume's receipts: {spent_ms:.0f} ms of CPU")
    started_s = time.process_time()
    ledger.counts()
    print(f"count them all by volume: {(time.process_time() - started_s) * 1000:.1f} ms of CPU")
    print(f"add: {add(ledger, count):.0f} receipts a second, {BATCH} at a time")
    ledger.close()
    beside = folder / INDEX_FOLDER / f"{path.stem}.db"
    print(f"index: {beside.stat().st_size / path.stat().st_size:.2f} of the log's size")
    beside.unlink()
    measured("open without an index", lambda: open_ledger(path)).close()


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--receipts", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        run(Path(name), options.receipts)


if __name__ == "__main__":
    main()
