"""A small writer of ISO 9660 images (ECMA-119) with Rock Ridge names, for config drives.

Pure: files in, bytes out, the same bytes for the same files, so that both ends of a live
migration present the same drive. No multi-extent files, no Joliet, depth as given.

Layout, in sectors of 2048 bytes::

    0..15   unused        16  primary volume descriptor     17  terminator
    18      path table (little-endian)     19  path table (big-endian)
    20..    one directory after the other, then one file after the other
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nuage.errors import InvalidRequest

SECTOR_BYTES: Final = 2048
FIRST_FREE_SECTOR: Final = 20
VOLUME_LABEL_CHARS_MAX: Final = 32  # ECMA-119 §8.4.7
NAMES_BYTES_MAX: Final = 200  # ECMA-119 §9.1.1: a record has 255 bytes, 33 of them its head
_DATE: Final = bytes((100, 1, 1, 0, 0, 0, 0))  # 2000-01-01, so that images are reproducible
_DATE_LONG: Final = b"2000010100000000\0"
_SP: Final = b"SP\x07\x01\xbe\xef\x00"  # SUSP §5.3: system use fields are present


@dataclass(slots=True)
class _Folder:
    name: str
    parent: "_Folder | None"
    folders: dict[str, "_Folder"] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    sector: int = 0
    number: int = 0


def build_iso(label: str, files: Mapping[str, bytes]) -> bytes:
    """Return an image labelled `label` that holds `files` (``openstack/latest/user_data``).

    Raises:
        InvalidRequest: the label is too long.
    """
    if not 1 <= len(label) <= VOLUME_LABEL_CHARS_MAX or not label.isascii():
        raise InvalidRequest(f"{label!r} is no volume label", field="label")
    root, folders = _tree(files)
    sector = FIRST_FREE_SECTOR
    for folder in folders:
        folder.sector = sector
        sector += len(_directory(folder, {})) // SECTOR_BYTES
    places: dict[tuple[int, str], int] = {}
    contents: list[bytes] = []
    for folder in folders:
        for name, data in sorted(folder.files.items()):
            places[folder.number, name] = sector
            contents.append(_padded(data))
            sector += len(contents[-1]) // SECTOR_BYTES
    tables = [_path_table(folders, order) for order in ("<", ">")]
    return b"".join(
        (
            bytes(16 * SECTOR_BYTES),
            _volume_descriptor(label, root, total_sectors=sector, table_bytes=len(tables[0])),
            _padded(b"\xffCD001\x01"),
            *(_padded(table) for table in tables),
            *(_directory(folder, places) for folder in folders),
            *contents,
        )
    )


def _tree(files: Mapping[str, bytes]) -> tuple[_Folder, list[_Folder]]:
    """Return the root and all folders, parents first, numbered from 1."""
    root = _Folder("", None)
    root.parent = root
    for path, data in sorted(files.items()):
        *parents, name = path.split("/")
        folder = root
        for parent in parents:
            folder = folder.folders.setdefault(parent, _Folder(parent, folder))
        folder.files[name] = data
    folders = [root]
    for folder in folders:  # grows while it runs: breadth first
        folders.extend(child for _, child in sorted(folder.folders.items()))
    for number, folder in enumerate(folders, start=1):
        folder.number = number
    return root, folders


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % SECTOR_BYTES)


def _both(value: int) -> bytes:
    """Return a 32-bit number in both byte orders (ECMA-119 §7.3.3)."""
    return struct.pack("<I", value) + struct.pack(">I", value)


def _both_short(value: int) -> bytes:
    return struct.pack("<H", value) + struct.pack(">H", value)


def _record(  # ECMA-119 §9.1
    identifier: bytes,
    *,
    sector: int,
    size_bytes: int,
    folder: bool,
    name: str = "",
    use: bytes = b"",
) -> bytes:
    if name:
        encoded = name.encode()
        if len(encoded) + len(identifier) > NAMES_BYTES_MAX:
            raise InvalidRequest(f"the name {name!r} is too long for a config drive", field="name")
        use += b"NM" + bytes((5 + len(encoded), 1, 0)) + encoded
    body = (
        b"\0" + _both(sector) + _both(size_bytes) + _DATE + bytes((2 if folder else 0, 0, 0))
        + _both_short(1) + bytes((len(identifier),)) + identifier
    )  # fmt: skip
    if len(body) % 2 == 0:
        body += b"\0"  # the identifier is padded so that what follows begins on an even byte
    body += use
    if len(body) % 2 == 0:
        body += b"\0"
    return bytes((len(body) + 1,)) + body


def _short_name(name: str, *, folder: bool) -> bytes:
    upper = "".join(c if c.isalnum() or c in "-_." else "_" for c in name.upper())
    return upper.encode() if folder else (upper if "." in upper else upper + ".").encode() + b";1"


def _directory(folder: _Folder, places: Mapping[tuple[int, str], int]) -> bytes:
    """Return a directory's sectors; sizes do not depend on `places`."""
    parent = folder.parent or folder
    entries = [
        (child.name, child.sector, SECTOR_BYTES, True) for child in folder.folders.values()
    ] + [
        (name, places.get((folder.number, name), 0), len(data), False)
        for name, data in folder.files.items()
    ]
    records = [
        _record(b"\0", sector=folder.sector, size_bytes=SECTOR_BYTES, folder=True,
                use=_SP if folder is parent else b""),
        _record(b"\1", sector=parent.sector, size_bytes=SECTOR_BYTES, folder=True),
    ]  # fmt: skip
    for name, sector, size_bytes, is_folder in sorted(entries):
        records.append(
            _record(_short_name(name, folder=is_folder), sector=sector, size_bytes=size_bytes,
                    folder=is_folder, name=name)
        )  # fmt: skip
    data = b"".join(records)
    if len(data) > SECTOR_BYTES:
        raise InvalidRequest("a config drive's folder holds too many files", field="files")
    return _padded(data)


def _path_table(folders: list[_Folder], order: str) -> bytes:
    table = b""  # ECMA-119 §9.4
    for folder in folders:
        name = _short_name(folder.name, folder=True) or b"\0"
        parent = folder.parent or folder
        table += struct.pack(f"{order}BBIH", len(name), 0, folder.sector, parent.number)
        table += name + bytes(len(name) % 2)
    return table


def _volume_descriptor(label: str, root: _Folder, *, total_sectors: int, table_bytes: int) -> bytes:
    def text(value: str, width: int) -> bytes:
        return value.encode().ljust(width)

    descriptor = b"".join(  # ECMA-119 §8.4
        (
            b"\x01CD001\x01\0", text("", 32), text(label, 32), bytes(8), _both(total_sectors),
            bytes(32), _both_short(1), _both_short(1), _both_short(SECTOR_BYTES),
            _both(table_bytes), struct.pack("<II", 18, 0), struct.pack(">II", 19, 0),
            _record(b"\0", sector=root.sector, size_bytes=SECTOR_BYTES, folder=True),
            text("", 128), text("", 128), text("", 128), text("NUAGE", 128),
            text("", 37), text("", 37), text("", 37),
            _DATE_LONG, _DATE_LONG, b"0" * 16 + b"\0", _DATE_LONG, b"\x01\0",
        )
    )  # fmt: skip
    return _padded(descriptor)
