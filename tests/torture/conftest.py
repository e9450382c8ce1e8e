"""Real storage daemons, as the system tests have them; these tests take minutes."""

from tests.system.storage_front.conftest import daemons, storaged_binary, three_sites

__all__ = ["daemons", "storaged_binary", "three_sites"]
