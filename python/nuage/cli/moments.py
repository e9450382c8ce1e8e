"""How a moment of a volume's past is written on the command line."""

import time
from datetime import datetime, timedelta
from typing import Final

from nuage.cli.energy import seconds
from nuage.errors import InvalidRequest

FORMS: Final = "#NUMBER of a write, @MARK, HH:MM:SS, 2026-12-01T18:00, or '15min ago'"


def read_moment(text: str) -> dict[str, object]:
    """Return the fields of a moment.

    A time of day is the last one that has been; times are local.

    Raises:
        InvalidRequest: it is nothing of the kind.
    """
    try:
        return _moment(text.strip())
    except (ValueError, InvalidRequest):
        raise InvalidRequest(
            f"{text!r} is not a moment", field="moment", hint=f"write {FORMS}"
        ) from None


def _moment(text: str) -> dict[str, object]:
    if text.startswith("@") and len(text) > 1:
        return {"mark": text[1:]}
    if text.startswith("#"):
        return {"sequence": int(text[1:])}
    if text.endswith(" ago"):
        return {"time_s": time.time() - seconds(text.removesuffix(" ago"))}
    if "-" in text:
        return {"time_s": datetime.fromisoformat(text).astimezone().timestamp()}
    if ":" in text:
        now = datetime.now().astimezone()
        today = datetime.fromisoformat(f"{now:%Y-%m-%d} {text}").astimezone()
        return {"time_s": (today if today <= now else today - timedelta(days=1)).timestamp()}
    return {"time_s": float(text)}
