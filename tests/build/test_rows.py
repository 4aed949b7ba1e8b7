"""Broken shards: refused in one line that names file, row and field, before any work."""

import json
import subprocess
import sys
from pathlib import Path

import ase.db
import pytest
from layers import known

from data.build.dft.records import records
from data.build.rows import FIELDS, checked
from models.crystals.layer import pack_atoms
from models.infra.files import ROOT, UnreadableFile

ATOMS = pack_atoms(known("graphene"))
SITE = {"kind": "ontop", "flag": "", "converged": True, "face": 1, "delta_e": 0.1}
SITE |= {"start": [0.0, 0.0, 1.0], "end": [0.0, 0.0, 1.1], "slab": ATOMS}
GOOD = {
    "atoms": ATOMS,
    "host": ATOMS,
    "slab": ATOMS,
    "energy": -1.5,
    "prototype": "graphene",
    "sites": [SITE],
    "variants": [{"kind": "rattled", "energy": -1.0, **ATOMS}],
    "phases": [{"name": "B2", "energy": -1.0, "atoms": ATOMS}],
    "budget": 6,
}
WRONG = {
    "atoms": (
        None,
        {},
        "C2",
        ATOMS | {"numbers": [6, 700]},
        ATOMS | {"positions": [[0, 0, float("nan")]] * 2},
    ),
    "energy": (None, "-1.5", float("nan"), [1.0], True),
    "prototype": (None, 3),
    "sites": ({}, "none", [1], [SITE | {"delta_e": None}], [SITE | {"face": 2}], [SITE | {"start": "up"}]),
    "variants": (None, [{}], [ATOMS]),
    "phases": (None, [{}], [{"name": "B2", "energy": "low", "atoms": ATOMS}]),
    "budget": (None, "six"),
}


def write(path: Path, **row: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": "a row", "reason": "", **row}) + "\n")
    return path


@pytest.mark.parametrize("level", FIELDS)
def test_a_row_that_is_none_is_refused_by_name(tmp_path, level, record_property):
    path = tmp_path / f"{level}.jsonl"
    assert checked(write(path, **GOOD)).rows
    cases = [("reason", None)] if level != "competitors" else []
    for name in FIELDS[level]:
        cases += [(name, value) for value in WRONG.get(name, WRONG["atoms"])]
        write(path, **{field: value for field, value in GOOD.items() if field != name})
        with pytest.raises(UnreadableFile, match=f"{level}.jsonl: the row 'a row' has no '{name}'"):
            checked(path)
    record_property("cases", len(cases) + len(FIELDS[level]))
    for name, value in cases:
        write(path, **GOOD | {name: value})
        with pytest.raises(UnreadableFile, match=f"{level}.jsonl: the row 'a row' has no '{name}'"):
            checked(path)
    if level != "competitors":
        assert checked(write(path, reason="not converged")).rows  # a failure holds no more than its reason


RECORDS = {
    "no sample": {"sample": None},
    "no reason": {"sample": "random", "reason": None},
    "no energies": {"sample": "random"},
    "a reference without an energy": {"sample": "reference"},
    "out of time, and no limit": {"sample": "random", "reason": "TimeoutError: slow"},
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_dft_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(UnreadableFile, match=r"dft\.jsonl: the row 'a row' is no record of DFT"):
        records(write(tmp_path / "dft.jsonl", **RECORDS[name]))
    assert records(write(tmp_path / "dft.jsonl", sample="random", reason="too large: 40 atoms")).rows


def said(module: str, *flags: object) -> str:
    """What a builder's script says on stderr; it must fail."""
    command = [sys.executable, "-m", module, *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


def test_the_search_of_competitors_says_it_in_one_line(tmp_path):
    search = ("data.build.competitors", "--pack-only", "--out", tmp_path)
    assert "reference_phases.db is missing: make it with" in said(*search)
    with ase.db.connect(tmp_path / "reference_phases.db") as database:
        database.write(known("graphene"), energy_eV=-18.0)
        database.metadata = {"potential": "sevennet"}
    write(tmp_path / "shards" / "competitors.jsonl", budget=6)
    assert "competitors.jsonl: the row 'a row' has no 'phases'" in said(*search)


def test_dft_says_it_in_one_line(tmp_path):
    path = write(tmp_path / "dft.jsonl", sample="random")
    assert "dft.jsonl: the row 'a row' is no record of DFT" in said("data.build.dft", "--out", path)
    path.write_text("no json\n")
    assert "dft.jsonl, line 1 is no row of a shard" in said("data.build.dft", "--out", path)
