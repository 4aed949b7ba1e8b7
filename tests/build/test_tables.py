"""The two literature tables in data/: they parse, name one thing once, and stay within physics."""

import csv
import re
from collections import Counter

from pymatgen.core import Composition

from models.infra.files import ROOT

DATA = ROOT / "data"
DOI = re.compile(r"10\.\d{4,9}/\S+")
FORMS = {"monolayer", "layered_parent", "mxene"}
KINDS = {"metal_surface", "basal_plane", "edge", "mxene", "other"}
PROTOTYPES = {
    "graphene",
    "BN",
    "silicene",
    "phosphorene",
    "MoS2-2H",
    "CdI2-1T",
    "WTe2-Td",
    "ReS2",
    "Janus-2H",
    "GaSe",
    "FeSe",
    "SnS",
    "BiOCl",
    "FeOCl",
    "CrI3",
    "RuCl3",
    "MXene-M2X",
    "MXene-M3X2",
    "MXene-M2XT2",
    "MXene-M3X2T2",
    "MoSi2N4",
    "PdSe2-penta",
    "CrGeTe3",
    "MPX3",
    "Bi2Te3",
    "TiS3",
    "MBene",
    "perovskite",
    "Ca2N",
    "MgOH2",
    "MoO3",
    "V2O5",
    "other",
}


def read(name: str, columns: str) -> list[dict[str, str]]:
    with open(DATA / name, newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        rows = list(reader)
    assert reader.fieldnames == columns.split()
    assert all(None not in row and None not in row.values() for row in rows), (
        "a row has too many or too few fields"
    )
    assert all(row["source"].strip() for row in rows)
    assert all(not row["doi"] or DOI.fullmatch(row["doi"]) for row in rows)
    return rows


def test_known_layers():
    rows = read("known_layers.csv", "formula prototype form year source doi")
    assert len(rows) >= 120
    for row in rows:
        assert Composition(row["formula"]).reduced_formula == row["formula"]
        assert row["form"] in FORMS
        assert row["prototype"] in PROTOTYPES
        assert 1900 <= int(row["year"]) <= 2026
        assert f"({row['year']})" in row["source"]
    counts = Counter((row["formula"], row["prototype"]) for row in rows)
    assert max(counts.values()) == 1, counts.most_common(3)


def test_literature_delta_g_h():
    rows = read(
        "literature_delta_g_h.csv",
        "system host_formula kind surface site coverage delta_g_h_eV functional source doi note",
    )
    assert len(rows) >= 25
    for row in rows:
        assert Composition(row["host_formula"]).reduced_formula == row["host_formula"]
        assert row["kind"] in KINDS
        assert -1.5 < float(row["delta_g_h_eV"]) < 3.0
        assert row["functional"]
    counts = Counter((row["system"], row["surface"], row["source"]) for row in rows)
    assert max(counts.values()) == 1, counts.most_common(3)


def test_literature_keeps_the_known_order_of_the_metals():
    """Within one source Pt binds H more strongly than Cu, and Cu more strongly than Au."""
    rows = read(
        "literature_delta_g_h.csv",
        "system host_formula kind surface site coverage delta_g_h_eV functional source doi note",
    )
    for source in {row["source"] for row in rows if row["system"] == "Au(111)"}:
        value = {row["system"]: float(row["delta_g_h_eV"]) for row in rows if row["source"] == source}
        assert value["Pt(111)"] < value["Cu(111)"] < value["Au(111)"]
