"""What a restart of a site's energy must not lose: one file, replaced whole."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nuage.energy.books import BooksState
from nuage.errors import UNREADABLE, NuageError
from nuage.ids import NodeId
from nuage.model.placement import EstimationVector
from nuage.trust.files import write_atomically

STATE_FILE: Final = "energy.json"
log = structlog.get_logger("energy")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptState:
    """Accounts and counters, the vectors of nodes that sleep, the curves that were refined.

    And the figures that were posted, each with its value and its end.
    """

    books: BooksState = field(default_factory=BooksState)
    sleeping: dict[NodeId, EstimationVector] = field(default_factory=dict)
    curves: dict[NodeId, tuple[float, ...]] = field(default_factory=dict)
    events: dict[str, tuple[float, float]] = field(default_factory=dict)


def save_state(state: KeptState, path: Path) -> None:
    """Write the state; a crash leaves the one before."""
    write_atomically(path, msgspec.json.encode(state))


def load_state(path: Path) -> KeptState:
    """Read the state, an empty one where there is none or it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeptState)
    except FileNotFoundError:
        return KeptState()
    except (*UNREADABLE, NuageError) as error:
        # Counting goes on; what was counted stays beside for whoever mends it.
        aside = path.with_suffix(".unreadable")
        path.replace(aside)
        log.error("accounts unreadable, set aside", path=str(aside), error=str(error))
        return KeptState()
