"""Small secrets at rest."""

from pathlib import Path

import pytest

from nuage.errors import CorruptData, Forbidden, InvalidRequest, NotFound
from nuage.trust.sealing import Sealer, open_sealer, rotate_key


def test_a_sealed_secret_opens_for_its_purpose_only(tmp_path: Path) -> None:
    sealer = open_sealer(tmp_path / "seal.key")
    sealed = sealer.seal(b"chap secret", purpose="volume-1/chap")
    assert "chap" not in sealed
    assert sealer.unseal(sealed, purpose="volume-1/chap") == b"chap secret"
    with pytest.raises(CorruptData, match="does not open"):
        sealer.unseal(sealed, purpose="volume-2/chap")


def test_changing_a_sealed_secret_is_noticed(tmp_path: Path) -> None:
    sealer = open_sealer(tmp_path / "seal.key")
    sealed = sealer.seal(b"s", purpose="p")
    changed = sealed[:-3] + ("A" if sealed[-3] != "A" else "B") + sealed[-2:]
    for text in (changed, sealed[:-2], "", "x.y.z", sealed + "."):
        with pytest.raises(CorruptData):
            sealer.unseal(text, purpose="p")


def test_the_key_file_is_its_owners_alone_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "seal.key"
    sealed = open_sealer(path).seal(b"s", purpose="p")
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_sealer(path).unseal(sealed, purpose="p") == b"s"
    path.chmod(0o640)
    with pytest.raises(Forbidden, match="read by others"):
        open_sealer(path)


def test_a_new_key_seals_and_the_old_one_still_opens(tmp_path: Path) -> None:
    path = tmp_path / "seal.key"
    old = open_sealer(path).seal(b"s", purpose="p")
    sealer = rotate_key(path)
    new = sealer.seal(b"s", purpose="p")
    assert (sealer.is_newest(old), sealer.is_newest(new)) == (False, True)
    assert open_sealer(path).unseal(old, purpose="p") == b"s"
    with pytest.raises(NotFound, match="sealing key"):
        Sealer((b"k" * 32,)).unseal(new, purpose="p")


def test_what_is_not_a_small_secret_or_a_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        Sealer((b"short",))
    with pytest.raises(InvalidRequest, match="too long"):
        Sealer((b"k" * 32,)).seal(b"x" * 100_000, purpose="p")
    path = tmp_path / "seal.key"
    path.write_text("not base64!\n")
    path.chmod(0o600)
    with pytest.raises(CorruptData):
        open_sealer(path)
