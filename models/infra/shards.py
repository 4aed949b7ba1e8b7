"""Append-only JSON lines: what long jobs write as they go and continue from."""

import json
from pathlib import Path


class Shard:
    """Rows by key; a line cut short by a kill is dropped on opening.

    Args:
        path: the file, made if it is missing.
        resume: False starts it anew.
    """

    def __init__(self, path: Path, resume: bool = True):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        raw = self.path.read_bytes() if resume and self.path.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        if whole != raw or not resume:
            self.path.write_bytes(whole)
        self.rows = {row["key"]: row for row in map(json.loads, whole.splitlines())}

    def append(self, key: str, row: dict) -> dict:
        """Writes a row at once and returns it with its key."""
        row = {"key": key, **row}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows[key] = row
        return row

    def sorted_rows(self) -> list[dict]:
        """Rows by key, so that what is made of them does not depend on the order of work."""
        return [self.rows[key] for key in sorted(self.rows)]
