"""What controllers share: kept in a private file, one secret after another, never shown."""

from pathlib import Path

import pytest

from nuage.errors import CorruptData, Forbidden, Unavailable
from nuage.ids import IaasId
from nuage.trust.datakeys import Keyring
from nuage.trust.shared_secrets import SECRETS_MAX, SharedSecrets, read_secrets, write_secrets

OLD, NEW = b"o" * 32, b"n" * 32


def test_keys_of_a_generation_derive_from_the_last_secret_begun_by_it() -> None:
    secrets = SharedSecrets({0: OLD, 4: NEW})
    assert [secrets.of(generation) for generation in (0, 3, 4, 9)] == [OLD, OLD, NEW, NEW]
    assert secrets.newest == 4
    with pytest.raises(Unavailable, match="generation -1"):
        secrets.of(-1)
    assert "nnnn" not in repr(secrets)


def test_secrets_are_in_a_file_of_their_owner_and_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "site" / "secrets"
    assert read_secrets(path).newest == -1
    secrets = SharedSecrets({0: OLD})
    secrets.begin(7)
    write_secrets(path, secrets)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_secrets(path).held() == secrets.held()
    path.chmod(0o640)
    with pytest.raises(Forbidden, match="read by others"):
        read_secrets(path)


@pytest.mark.parametrize("text", ["x", "0 short", "zero " + "A" * 43, "0 " + "A" * 42 + "*"])
def test_a_file_of_anything_else_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secrets"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(CorruptData, match="not the controllers' secrets"):
        read_secrets(path)


def test_what_another_controller_tells_is_taken_once_and_never_against_what_is_here() -> None:
    secrets = SharedSecrets({0: OLD})
    assert secrets.take({0: OLD, 4: NEW})
    assert not secrets.take({4: NEW})
    for wrong in ({4: OLD}, {5: b"short"}, {-1: NEW}, dict.fromkeys(range(SECRETS_MAX + 1), NEW)):
        with pytest.raises(CorruptData):
            secrets.take(wrong)
    assert secrets.held() == {4: NEW, 0: OLD}


def test_data_keys_are_sealed_with_the_newest_secret_and_older_seals_still_open() -> None:
    secrets = SharedSecrets({0: OLD})
    before = Keyring(secrets).make(IaasId("iaas-1"))
    secrets.take({4: NEW})
    after = Keyring(secrets).make(IaasId("iaas-1"))
    fresh = Keyring(secrets)
    assert fresh.data_keys(before)
    fresh.forget(before.iaas_id)
    assert fresh.data_keys(after)
    revoked = Keyring(SharedSecrets({0: OLD}))
    assert revoked.data_keys(before)
    revoked.forget(before.iaas_id)
    with pytest.raises(Exception, match="sealing key"):
        revoked.data_keys(after)
