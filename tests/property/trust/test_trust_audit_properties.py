"""Whatever is done to a signed file, the verifier tells."""

import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.trust.full_disk import no_file_longer_than

from nuage.errors import CorruptData, Unavailable
from nuage.ids import SiteId
from nuage.trust.audit import AuditEntry, AuditLog
from nuage.trust.book import key_id_of, raw_key
from nuage.trust.verify import SiteKey, audit_segments, verify_audit

MARNE = SiteId("marne")
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
KEYS = {key_id_of(KEY.public_key()): SiteKey(MARNE, raw_key(KEY.public_key()))}


def ticking() -> Iterator[float]:
    return (1_800_000_000.0 + n for n in count())


def open_log(directory: Path, segment_bytes: int = 1 << 20) -> AuditLog:
    times = ticking()
    return AuditLog(
        directory,
        site_id=MARNE,
        key=lambda: KEY,
        now_s=lambda: next(times),
        segment_bytes=segment_bytes,
    )


@cache
def sealed_log() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        log = open_log(Path(name))
        for n in range(4):
            log.append(AuditEntry(who=f"ada é {n}", action="vm.create", target=f"vm-{n}"))
            log.sync()
        log.close()
        (segment,) = audit_segments(Path(name))
        return segment.read_bytes()


def is_sound(data: bytes, head: tuple[int, str] | None = None) -> bool:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "audit-000001.log").write_bytes(data)
        return verify_audit(Path(name), KEYS, head=head).is_sound


def test_the_untouched_log_is_sound() -> None:
    assert is_sound(sealed_log())


@given(st.data())
@settings(deadline=None)
def test_changing_any_byte_is_detected(data: st.DataObject) -> None:
    log = bytearray(sealed_log())
    position = data.draw(st.integers(0, len(log) - 1))
    log[position] ^= data.draw(st.integers(1, 255))
    assert not is_sound(bytes(log))


@given(st.data())
@settings(deadline=None)
def test_removing_any_stretch_is_detected_with_a_head_that_was_kept(data: st.DataObject) -> None:
    log = sealed_log()
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "audit-000001.log").write_bytes(log)
        report = verify_audit(Path(name), KEYS)
    head = (report.head_sequence, report.head_hash)
    start = data.draw(st.integers(0, len(log) - 1))
    end = data.draw(st.integers(start + 1, len(log)))
    assert not is_sound(log[:start] + log[end:], head)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_log_torn_anywhere_after_the_last_sync_opens_again(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        log = open_log(directory)
        log.append(AuditEntry(who="ada", action="vm.create", target="vm-1"))
        log.seal()
        (segment,) = audit_segments(directory)
        durable_bytes = segment.stat().st_size
        for n in range(3):
            log.append(AuditEntry(who="ada", action="vm.delete", target=f"vm-{n}"))
        written = segment.read_bytes()
        keep = data.draw(st.integers(durable_bytes, len(written)))
        garbage = data.draw(st.binary(max_size=40))
        segment.write_bytes(written[:keep] + garbage)
        again = open_log(directory)
        again.append(AuditEntry(who="ada", action="vm.create", target="vm-9"))
        again.close()
        report = verify_audit(directory, KEYS)
        assert report.problems == []
        torn = not (written[:keep] + garbage).endswith(b"\n") or bool(garbage)
        assert bool(report.repairs) == torn
        assert len(list(directory.glob("*.torn-*"))) == int(torn)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_nobody_appends_to_a_log_changed_before_its_last_seal(data: st.DataObject) -> None:
    log = bytearray(sealed_log())
    seal_start = bytes(log[:-1]).rindex(b"\n") + 1
    position = data.draw(st.integers(0, seal_start - 1))
    log[position] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "audit-000001.log").write_bytes(bytes(log))
        try:
            open_log(Path(name))
        except CorruptData:
            return
    raise AssertionError("opened")


def test_a_log_goes_on_over_many_files(tmp_path: Path) -> None:
    log = open_log(tmp_path, segment_bytes=2000)
    for n in range(40):
        log.append(AuditEntry(who="ada", action="vm.create", target=f"vm-{n}"))
        log.sync()
    head = log.seal()
    log.close()
    assert len(audit_segments(tmp_path)) > 3
    report = verify_audit(tmp_path, KEYS, head=(head.sequence, head.digest))
    assert (report.problems, report.entry_count, report.unsigned_tail_count) == ([], 40, 0)
    audit_segments(tmp_path)[1].unlink()
    assert not verify_audit(tmp_path, KEYS).is_sound


def test_the_key_of_another_site_seals_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.close()
    (key_id,) = KEYS
    foreign = {key_id: SiteKey("lyon", KEYS[key_id].public_key)}
    assert "not marne's" in verify_audit(tmp_path, foreign).problems[0]


def test_a_disk_that_is_full_for_a_while_tears_no_record(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    entry = AuditEntry(who="ada", action="vm.create", target="vm-1")
    log.append(entry)
    log.sync()
    (segment,) = audit_segments(tmp_path)
    with no_file_longer_than(segment.stat().st_size + 10), pytest.raises(Unavailable):
        log.append(entry)
    log.append(entry)
    log.close()
    open_log(tmp_path).close()
    report = verify_audit(tmp_path, KEYS)
    assert (report.problems, report.entry_count) == ([], 2)
