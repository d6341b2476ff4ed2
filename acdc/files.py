"""Files that appear whole or not at all, and that one process at a time works on."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_LOCKED_BYTE = 2**30  # Windows locks bytes, and others cannot read a locked one: this one lies behind every content


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file beside its place, then rename it there."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A file's name may hold bytes that are no text, as Python has them: halves of characters, written as \\ud83d.
        content = content.encode(errors="backslashreplace") if isinstance(content, str) else content
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON that every reader takes: numbers that are not finite are a ValueError."""
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under the keys that any of them has, in the order in which they come up; None is an empty cell."""
    text = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def lock(file: IO[bytes]) -> None:
    """Lock an open file for this process. The system gives the lock up when the file is closed or the process ends.

    Parameters
    ----------
    file : IO[bytes]
        Stays readable for everyone.

    Raises
    ------
    BlockingIOError
        Another process has locked the file.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
        finally:
            file.seek(0, os.SEEK_END)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
