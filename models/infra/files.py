"""Files that appear by rename or not at all: JSON, CSV, checkpoints; and their hashes."""

import csv
import json
import os
from hashlib import blake2b, sha256
from pathlib import Path

import torch

ROOT = (
    Path(__file__).resolve().parents[2]
)  # of the repository: weights and embedded data are found from any folder


def plain(values: dict) -> dict:
    """The arguments as plain types, for checkpoints and JSON."""
    convert = lambda v: (
        str(v) if isinstance(v, Path) else [convert(x) for x in v] if isinstance(v, (list, tuple)) else v
    )
    return {key: convert(value) for key, value in values.items()}


def write_json(path: Path, content) -> None:
    """Writes JSON by rename; NaN becomes null."""
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(content, default=float)
    content = json.loads(
        text, parse_constant=lambda name: None if name == "NaN" else float(name)
    )  # "NaN" is also sodium nitride
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def read_rows(path: Path) -> list[dict]:
    """Rows of a CSV, as text."""
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict], columns: list[str]):
    """A CSV of some columns of the rows, by rename."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def save_checkpoint(path: Path, content: dict) -> None:
    """torch.save by rename; plain types and tensors only, to be read with weights_only=True."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def digest(text: str) -> str:
    """16 hex digits that depend on the text alone."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


def file_hash(path: Path) -> str:
    """First 12 hex digits of a file's SHA-256."""
    return sha256(Path(path).read_bytes()).hexdigest()[:12]
