"""Rows of ASE databases (SQLite) that may come from anybody: a bad row costs one row, a bad file one line.

Nothing is written: an ASE connection makes its tables in any empty file that it is given, so the file is
looked at through a read-only connection first.
"""

import math
import os
import sqlite3
from collections import Counter
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ase.db
import numpy as np
from ase import Atoms
from ase.db.row import AtomsRow

from models.crystals.thresholds import HEAVIEST, TOO_HEAVY
from models.infra.files import bounded_memory, file_text

ROW_MEMORY = 256 << 20  # bytes that decoding one row may take; C2DB's largest take some MB
WAIT = 2.0  # s for a writer that holds the file


class DatabaseError(ValueError):
    """A file is no ASE database with rows; the message names it and the flag that another is given with."""


def row_ids(path: str | Path, flag: str = "--db") -> list[int]:
    """Ids of all rows, in order.

    Raises:
        FileNotFoundError: there is no such file.
        DatabaseError: it is a folder, no ASE database, truncated, locked, or holds no row.
    """
    name, instead = file_text(path), f"give an ASE database of SQLite with {flag}"
    if Path(path).is_dir():
        raise DatabaseError(f"{name} is a folder: {instead}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name} does not exist: {instead}")
    if str(path).endswith(".aselmdb"):
        raise DatabaseError(f"{name} is an LMDB of ASE rows, which is not read here: {instead}")
    try:
        tables = sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro", uri=True, timeout=WAIT)
        try:
            found = tables.execute("SELECT id FROM systems ORDER BY id").fetchall()
            tables.execute("SELECT numbers, positions, cell, pbc, key_value_pairs FROM systems LIMIT 1")
        finally:
            tables.close()
    except sqlite3.Error as error:
        reason = (
            "locked by a program that writes it" if "locked" in str(error) else f"no ASE database ({error})"
        )
        raise DatabaseError(f"{name} is {reason}: {instead}") from None
    if not found:
        raise DatabaseError(f"{name} holds no row: {instead}")
    return [identity for (identity,) in found if isinstance(identity, int)]


def metadata(path: str | Path, flag: str = "--db") -> dict[str, Any]:
    """Metadata of a database; empty where it has none.

    Raises:
        FileNotFoundError, DatabaseError: as row_ids.
    """
    row_ids(path, flag)
    try:
        found = ase.db.connect(path, type="db").metadata
    except Exception as error:  # whatever a foreign file makes ASE stumble over
        raise DatabaseError(f"{file_text(path)} has unreadable metadata ({error}): {flag}") from None
    return found if isinstance(found, dict) else {}


def readable_rows(
    path: str | Path, dropped: Counter, flag: str = "--db", limit: int = 0
) -> list[tuple[AtomsRow, Atoms]]:
    """Rows that can be decoded, with their atoms (no calculator, no constraints).

    Args:
        dropped: counts the other rows by reason.
        flag: that the database is given with, for messages.
        limit: only the first so many rows, 0 for all.

    Raises:
        FileNotFoundError, DatabaseError: as row_ids.
    """
    rows = []
    ids = row_ids(path, flag)[: limit or None]
    with ase.db.connect(path, type="db") as database:
        for identity in ids:
            try:
                with bounded_memory(ROW_MEMORY):
                    row = database.get(identity)
                    atoms = _atoms(row)
            except Exception as error:  # one bad row costs one row
                dropped[f"unreadable row ({type(error).__name__})"] += 1
                continue
            if atoms.numbers.max() > HEAVIEST:
                dropped[TOO_HEAVY] += 1
            else:
                rows.append((row, atoms))
    return rows


def _atoms(row: AtomsRow) -> Atoms:
    """Atoms of a row.

    Raises:
        ValueError: arrays disagree or are not finite.
    """
    numbers, positions, cell = np.asarray(row.numbers), np.asarray(row.positions), np.asarray(row.cell)
    if len(numbers) == 0 or positions.shape != (len(numbers), 3) or cell.shape != (3, 3):
        raise ValueError("arrays of different length")
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        raise ValueError("numbers that are not finite")
    if numbers.min() < 1 or numbers.max() > 118:
        raise ValueError("no element")
    return Atoms(numbers, positions, cell=cell, pbc=row.get("pbc", True))


def number(row: AtomsRow, key: str) -> float | None:
    """A number of a row; None where it has none, or text, or what is not finite."""
    value = row.get(key)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def uid_of(row: AtomsRow) -> str:
    """C2DB's uid of a row as text, else its number in the database."""
    return str(row.get("uid", row.id))
