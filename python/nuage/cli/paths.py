"""What commands take as paths: a file that is read, one that is written, a folder."""

from pathlib import Path
from typing import Final

import click

FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False)
NEW_FILE: Final = click.Path(path_type=Path, dir_okay=False)
FOLDER: Final = click.Path(path_type=Path, exists=True, file_okay=False)
NEW_FOLDER: Final = click.Path(path_type=Path, file_okay=False)
