"""A node's key, certificate and revocations, copied for a process that is not root.

Its user is a number that no account has; all such processes of a node share a group.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

GROUP: Final = 519_999  # of the node's daemons; their users have numbers of their own


@dataclass(slots=True)
class TrustCopies:
    """Copies of root's files in a directory of the daemon's user, kept as the files are."""

    directory: Path
    files: tuple[Path, ...]  # the key before its certificate, as they are renewed
    user: int

    def path(self, file: Path) -> Path:
        """Return where the copy of `file` is."""
        return self.directory / file.name

    def refresh(self) -> None:
        """Copy what is newer than its copy."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(self.directory, self.user, GROUP)
        for file in self.files:
            copy = self.path(file)
            if not file.exists() or (copy.exists() and _stamp(copy) == _stamp(file)):
                continue
            fresh = copy.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            fresh.touch(mode=0o600)
            shutil.copyfile(file, fresh)
            shutil.copystat(file, fresh)
            fresh.chmod(0o600)
            os.chown(fresh, self.user, GROUP)
            fresh.replace(copy)


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size
