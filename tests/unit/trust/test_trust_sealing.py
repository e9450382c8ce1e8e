"""Small secrets at rest."""

import pytest

from nuage.errors import CorruptData, InvalidRequest, NotFound
from nuage.trust.sealing import Sealer

OLD, NEW = b"o" * 32, b"n" * 32


def test_a_sealed_secret_opens_for_its_purpose_only() -> None:
    sealer = Sealer((OLD,))
    sealed = sealer.seal(b"chap secret", purpose="volume-1/chap")
    assert "chap" not in sealed
    assert sealer.unseal(sealed, purpose="volume-1/chap") == b"chap secret"
    with pytest.raises(CorruptData, match="does not open"):
        sealer.unseal(sealed, purpose="volume-2/chap")


def test_changing_a_sealed_secret_is_noticed() -> None:
    sealer = Sealer((OLD,))
    sealed = sealer.seal(b"s", purpose="p")
    changed = sealed[:-3] + ("A" if sealed[-3] != "A" else "B") + sealed[-2:]
    for text in (changed, sealed[:-2], "", "x.y.z", sealed + "."):
        with pytest.raises(CorruptData):
            sealer.unseal(text, purpose="p")


def test_the_first_key_seals_and_the_others_still_open() -> None:
    old = Sealer((OLD,)).seal(b"s", purpose="p")
    both = Sealer((NEW, OLD))
    assert both.unseal(old, purpose="p") == b"s"
    assert Sealer((NEW,)).unseal(both.seal(b"s", purpose="p"), purpose="p") == b"s"
    with pytest.raises(NotFound, match="sealing key"):
        Sealer((NEW,)).unseal(old, purpose="p")


def test_what_is_not_a_small_secret_or_a_key_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        Sealer((b"short",))
    with pytest.raises(InvalidRequest, match="too long"):
        Sealer((OLD,)).seal(b"x" * 100_000, purpose="p")
