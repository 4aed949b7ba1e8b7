"""Databases of anybody: a bad row costs a row and is counted, a bad file is one line that names its flag."""

import sqlite3
import time
from collections import Counter
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase import Atoms
from layers import known

from models.crystals.ase_database import DatabaseError, metadata, number, readable_rows, row_ids
from models.crystals.layer import NotAStructure, check_geometry
from models.crystals.templates import Templates


@pytest.fixture
def path(tmp_path) -> Path:
    """Three layers in C2DB's schema."""
    with ase.db.connect(tmp_path / "x.db") as database:
        for name in ("1H-MoS2", "h-BN", "graphene"):
            database.write(known(name), uid=name, ehull=0.0, hform=-0.1)
    return tmp_path / "x.db"


def change(path: Path, column: str, value: object, row: int = 2) -> None:
    with sqlite3.connect(path) as tables:
        tables.execute(f"UPDATE systems SET {column} = ? WHERE id = ?", (value, row))
    tables.close()


NAN = np.full(6, np.nan).tobytes()
BAD_ROWS = {
    "numbers of other length": ("numbers", np.arange(1, 8, dtype=np.int32).tobytes()),
    "numbers cut": ("numbers", b"\x01\x02\x03"),
    "numbers that are none": ("numbers", "text"),
    "numbers missing": ("numbers", None),
    "numbers beyond 118": ("numbers", np.array([5, 700], np.int32).tobytes()),
    "numbers below 1": ("numbers", np.array([5, -7], np.int32).tobytes()),
    "no atoms": ("numbers", b""),
    "positions nan": ("positions", NAN),
    "positions short": ("positions", NAN[:24]),
    "positions cut": ("positions", b"abc"),
    "cell nan": ("cell", np.full(9, np.nan).tobytes()),
    "cell short": ("cell", NAN),
    "cell text": ("cell", "a cell"),
    "pairs malformed": ("key_value_pairs", "{not json"),
    "pairs cut": ("key_value_pairs", b"\x00\x00"),
    "pairs a list": ("key_value_pairs", "[1, 2]"),
    "an array of 8 TB": ("key_value_pairs", '{"a": {"__ndarray__": [[1000000, 1000000], "float64", []]}}'),
    "an object of no kind": ("key_value_pairs", '{"a": {"__ase_objtype__": "os.system", "x": "true"}}'),
    "nested without end": ("key_value_pairs", '{"a": ' * 100_000),
    "pbc text": ("pbc", "yes"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_costs_one_row_and_is_counted(path, case):
    change(path, *BAD_ROWS[case])
    dropped, begin = Counter(), time.process_time()
    rows = readable_rows(path, dropped)
    assert time.process_time() - begin < 3
    assert [row.uid for row, _ in rows] == ["1H-MoS2", "graphene"]
    assert sum(dropped.values()) == 1 and next(iter(dropped)).startswith("unreadable row (")
    assert len(Templates.read(path).structures) == 2


@pytest.mark.parametrize("number", [95, 118])
def test_an_element_beyond_plutonium_costs_one_row(path, number):
    """Its radius is 0.2 Å in ASE's table, a placeholder: no bond of it could be told."""
    change(path, "numbers", np.array([number, 7], np.int32).tobytes())
    dropped = Counter()
    assert [row.uid for row, _ in readable_rows(path, dropped)] == ["1H-MoS2", "graphene"]
    assert list(dropped.values()) == [1] and "beyond plutonium" in next(iter(dropped))
    with pytest.raises(NotAStructure, match="beyond plutonium"):
        check_geometry(Atoms(numbers=[number], cell=[3, 3, 20], pbc=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "low", True])
def test_what_is_no_number_is_none(path, value):
    with sqlite3.connect(path) as tables:
        shown = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity", "low": '"low"', "True": "true"}[
            f"{value}"
        ]
        pairs = f'{{"uid": "h-BN", "hform": -0.1, "ehull": {shown}}}'
        tables.execute("UPDATE systems SET key_value_pairs = ? WHERE id = 2", (pairs,))
    tables.close()
    rows = {row.uid: row for row, _ in readable_rows(path, Counter())}
    assert number(rows["h-BN"], "ehull") is None and number(rows["graphene"], "ehull") == 0.0
    assert number(rows["graphene"], "nothing") is None
    assert len(Templates.read(path).structures) == 2


def bad_files(folder: Path) -> dict[str, tuple[str, str]]:
    """Name of a file that is no database -> a word of what is said."""
    whole = (folder / "x.db").read_bytes()
    contents = {
        "empty.db": (b"", "no ASE database"),
        "text.db": (b"uid,ehull\nMoS2,0\n" * 100, "no ASE database"),
        "lfs.db": (b"version https://git-lfs.github.com/spec/v1\n", "no ASE database"),
        "short.db": (whole[: len(whole) // 3], "no ASE database"),
        "header.db": (whole[:100], "no ASE database"),
        "zip.db": (b"PK\x03\x04" + bytes(500), "no ASE database"),
        "rows.aselmdb": (whole, "which is not read here"),
    }
    for name, (raw, _) in contents.items():
        (folder / name).write_bytes(raw)
    with sqlite3.connect(folder / "foreign.db") as tables:
        tables.execute("CREATE TABLE phases (id INTEGER, name TEXT)")
    tables.close()
    with sqlite3.connect(folder / "alike.db") as tables:
        tables.execute("CREATE TABLE systems (id INTEGER, name TEXT)")
        tables.execute("INSERT INTO systems VALUES (1, 'x')")
    tables.close()
    with ase.db.connect(folder / "none.db") as database:
        database.write(known("h-BN"))
        del database[1]
    (folder / "folder.db").mkdir()
    said = {name: word for name, (_, word) in contents.items()}
    return said | {
        "foreign.db": "no such table",
        "alike.db": "no such column",
        "none.db": "holds no row",
        "folder.db": "is a folder",
    }


def test_a_file_that_is_no_database_is_named_with_its_flag_and_left_as_it_was(path, tmp_path):
    for name, word in bad_files(tmp_path).items():
        file = tmp_path / name
        before = file.read_bytes() if file.is_file() else b""
        with pytest.raises(DatabaseError, match=f"{name} .*{word}.*--novelty-db") as refusal:
            row_ids(file, "--novelty-db")
        assert "\n" not in str(refusal.value)
        with pytest.raises(DatabaseError):
            Templates.read(file)
        assert before == (file.read_bytes() if file.is_file() else b"")
    with pytest.raises(FileNotFoundError, match="none/x.db does not exist.*--db"):
        row_ids(tmp_path / "none" / "x.db")
    assert not list(tmp_path.glob("*.lock"))


def test_a_database_that_is_being_written_is_said_soon(path):
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    begin = time.monotonic()
    with pytest.raises(DatabaseError, match="locked by a program that writes it"):
        row_ids(path)
    assert time.monotonic() - begin < 5
    holder.close()


def test_names_that_mean_something_to_ase_are_names(path, tmp_path):
    for name in ("a@b.db", "c2db.sqlite", "postgresql.json", "x y?.db", "50%.db", "MoS₂#1.db"):
        (tmp_path / name).write_bytes(path.read_bytes())
        assert row_ids(tmp_path / name) == [1, 2, 3]
        assert len(readable_rows(tmp_path / name, Counter())) == 3


def test_metadata(path):
    assert metadata(path) == {}
    ase.db.connect(path).metadata = {"potential": "EMT"}
    assert metadata(path) == {"potential": "EMT"}
    with sqlite3.connect(path) as tables:
        tables.execute("UPDATE information SET value = '{broken' WHERE name = 'metadata'")
    tables.close()
    with pytest.raises(DatabaseError, match="unreadable metadata"):
        metadata(path)


def test_no_row_runs_anything(path, tmp_path):
    """ASE's JSON rebuilds objects by name: none of its kinds is a call."""
    trace = tmp_path / "trace"
    for kind in ("os.system", "builtins.exec", "cell", "bandstructure", "subprocess.run"):
        pairs = f'{{"a": {{"__ase_objtype__": "{kind}", "args": ["touch {trace}"]}}}}'
        for column in ("key_value_pairs", "data", "constraints", "calculator_parameters"):
            change(path, column, pairs)
            for row, _ in readable_rows(path, Counter()):
                row.get("data")
    assert not trace.exists()
