"""Tables: the schema's dtypes from values and from text, the file's format, joining, docs/outputs.md."""

import csv

import pandas as pd
import pytest

from models.evaluation.dictionary import document
from models.evaluation.metrics import aggregate
from models.evaluation.rows import is_true, join, numbers, read_table, records, table, write_table
from models.evaluation.schema import COLUMNS, COMPARISON, DTYPES, GENERATED, METRICS, SHORTLIST_COLUMNS
from models.infra.files import ROOT

FILLED = {
    "material_id": "007",
    "formula": "NaN",  # sodium nitride
    "n_atoms": 2,
    "two_d": True,
    "valid": False,
    "e_hull_eV_per_atom": 0.1 + 0.2,
    "components": 1,
    "periodic_directions": 2,
    "converged": True,
    "h_flags": "adsorbed:1",
    "unique": True,
}


def test_a_table_read_back_is_the_table(tmp_path):
    """Dtypes, missing values, leading zeros, the formula NaN and the last digit survive."""
    rows = table([FILLED, {"material_id": "b", "error": 'says "no", twice; and ü'}])
    write_table(tmp_path / "metrics.csv", rows)
    again = read_table(tmp_path / "metrics.csv")
    pd.testing.assert_frame_equal(rows, again)
    assert {column.name: str(again[column.name].dtype) for column in METRICS} == {
        column.name: DTYPES[column.kind] for column in METRICS
    }
    assert again["material_id"][0] == "007" and again["formula"][0] == "NaN" and again["phonons"][1] == ""
    assert aggregate(rows) == aggregate(again)


def test_the_file_is_what_the_csv_module_writes(tmp_path):
    """Byte for byte what earlier versions wrote: header, order, True/False, empty cells, line ends."""
    rows = table([FILLED, {"material_id": "b", "error": "a, b"}])
    write_table(tmp_path / "new.csv", rows)
    with (tmp_path / "old.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(
            {name: "" if value is None else value for name, value in row.items()} for row in records(rows)
        )
    assert (tmp_path / "new.csv").read_bytes() == (tmp_path / "old.csv").read_bytes()


def test_a_file_of_an_older_version_is_read(tmp_path):
    (tmp_path / "old.csv").write_text(
        "material_id,two_d,e_hull_eV_per_atom,template\na,True,0.5,MoS2\nb,,,\n"
    )
    rows = read_table(tmp_path / "old.csv")
    assert list(rows.columns) == [*COLUMNS, "template"] and list(rows["template"]) == ["MoS2", ""]
    assert is_true(rows["two_d"]).tolist() == [True, False] and rows["novel"].isna().all()
    assert numbers(rows["e_hull_eV_per_atom"])[0] == 0.5


@pytest.mark.parametrize(
    "column, text", [("two_d", "yes"), ("n_atoms", "3.5"), ("e_hull_eV_per_atom", "low")]
)
def test_a_value_of_the_wrong_type_is_named(tmp_path, column, text):
    path = tmp_path / "metrics.csv"
    path.write_text(f"material_id,{column}\na,{text}\n")
    with pytest.raises(ValueError, match=f"metrics.csv.*{column}.*{text}"):
        read_table(path)


def test_join_fills_what_is_given_and_appends_errors():
    rows = join(
        table([{"material_id": "a", "p_synth": 0.5}, {"material_id": "b"}]), {"b": {"rank": 2, "error": "x"}}
    )
    rows = join(rows, {"b": {"p_synth": None, "error": "y"}, "a": {"error": None, "unique": True}})
    assert records(rows, ["p_synth", "rank", "unique", "error"]) == [
        {"p_synth": 0.5, "rank": None, "unique": True, "error": ""},
        {"p_synth": None, "rank": 2, "unique": None, "error": "x; y"},
    ]
    assert rows.dtypes.equals(table().dtypes)
    with pytest.raises(KeyError):
        join(rows, {"c": {"rank": 1}})


def test_the_dictionary_of_outputs_is_that_of_the_schema():
    """After a change of the schema: python -m models.evaluation.dictionary > docs/outputs.md."""
    assert (ROOT / "docs/outputs.md").read_text() == document()
    for column in (*METRICS, *COMPARISON, *GENERATED):
        assert f"| `{column.name}` |" in document() and column.meaning and column.kind in DTYPES
    assert set(SHORTLIST_COLUMNS) <= set(COLUMNS) and len(set(COLUMNS)) == len(COLUMNS)
