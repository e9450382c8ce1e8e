"""The user that an IaaS's storage daemon runs as: its own, so that none reads another's data.

A user is a number that no account has. It owns the daemon's folders, and copies of the node's key,
certificate and revocations, which are root's: the daemon reads them anew when they are renewed.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from nuage.ionode.ports import PORT_MIN, DaemonPorts
from nuage.trust.copies import GROUP

# Free for a machine's own use: systemd gives out 61,184 to 65,519 and 524,288 on (its UIDS-GIDS
# document), and useradd gives subordinate ids from 100,000 on, 65,536 to each account.
USER_FIRST: Final = 520_000
OTHERS_ENTER: Final = 0o001


def user_of(ports: DaemonPorts) -> int:
    """Return the user of the daemon with these ports, which no other daemon of the node has."""
    return USER_FIRST + (ports.iscsi - PORT_MIN) // 2


def closed_to_others(path: Path) -> Path | None:
    """Return the first directory above `path` that only its owner may enter, if there is one."""
    above = [parent for parent in reversed(path.absolute().parents) if parent.exists()]
    return next((each for each in above if not each.stat().st_mode & OTHERS_ENTER), None)


def open_to_daemons(directory: Path) -> None:
    """Make a directory of the agent's own, and what is missing above it: daemons may pass there."""
    made = [each for each in (directory, *directory.parents) if not each.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for each in (directory, *made):
        each.chmod(each.stat().st_mode | 0o011)


def give(directories: Iterable[Path], user: int) -> None:
    """Let `user` own these directories and all that lies there, if it does not yet."""
    for top in directories:
        if top.stat().st_uid == user:
            continue
        for folder, _, names in os.walk(top, topdown=False):  # the top last: a crash begins anew
            for path in (*(Path(folder, name) for name in names), Path(folder)):
                os.chown(path, user, GROUP, follow_symlinks=False)


def let_read(image: Path) -> None:
    """Let daemons read an image, and nobody else but root."""
    os.chown(image.parent, -1, GROUP)
    image.parent.chmod(0o710)
    os.chown(image, -1, GROUP)
    image.chmod(0o640)
