"""Append-only JSON lines: what long jobs write as they go and continue from."""

import json
from hashlib import blake2b, sha256
from pathlib import Path

from ase import Atoms


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


def digest(text: str) -> str:
    """16 hex digits that depend on the text alone."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


def file_hash(path: Path) -> str:
    """First 12 hex digits of a file's SHA-256."""
    return sha256(Path(path).read_bytes()).hexdigest()[:12]


def pack_atoms(atoms: Atoms | None) -> dict | None:
    """JSON of numbers [N], positions [N, 3] Å, cell [3, 3] Å and pbc, to 1e-5 Å."""
    if atoms is None:
        return None
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.round(5).tolist(),
        "cell": atoms.cell.array.round(5).tolist(),
        "pbc": atoms.pbc.tolist(),
    }


def unpack_atoms(packed: dict | None) -> Atoms | None:
    """Inverse of pack_atoms."""
    return None if packed is None else Atoms(**packed)
