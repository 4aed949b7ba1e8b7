"""Append-only JSON lines: what long jobs write as they go and continue from."""

import json
import os
from pathlib import Path

from models.infra.files import UnreadableFile, file_text


class Shard:
    """Rows by key; a line cut short by a kill is dropped on opening.

    Args:
        path: the file, made with the first row.
        resume: False starts it anew.

    Raises:
        UnreadableFile: a whole line is no row of a shard; the message names the file and the line.
    """

    def __init__(self, path: str | os.PathLike, resume: bool = True):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        raw = self.path.read_bytes() if resume and self.path.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        self.rows = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            row = self._row(line, number)
            self.rows[row["key"]] = row
        if self.path.exists() and (whole != raw or not resume):
            self.path.write_bytes(whole)

    def _row(self, line: bytes, number: int) -> dict:
        try:
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row["key"], str):
                return row
        except (ValueError, KeyError, RecursionError):
            pass
        raise UnreadableFile(
            f"{file_text(self.path)}, line {number} is no row of a shard: remove the file, or start without "
            "--resume"
        )

    def append(self, key: str, row: dict) -> dict:
        """Writes a row at once and returns it with its key; if the disk is full, nothing of it stays."""
        row = {"key": key, **row}
        line = json.dumps(row).encode() + b"\n"
        with self.path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(before)  # or the next row would continue half a line
                raise
        self.rows[key] = row
        return row

    def sorted_rows(self) -> list[dict]:
        """Rows by key, so that what is made of them does not depend on the order of work."""
        return [self.rows[key] for key in sorted(self.rows)]
