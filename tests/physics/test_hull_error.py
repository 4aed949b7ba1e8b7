"""The spread that a row's E_hull carries: by kind of compound, and whether DFT's hull knows the formula."""

import pytest
from pymatgen.core import Composition

from models.infra.files import read_rows
from models.physics.hull import Hull
from models.physics.hull_error import ERRORS, kind_of, read_errors, spread

NAME = "SevenNet 7net-l3i5"


@pytest.mark.parametrize(
    "formula, kind",
    [
        ("Ca2Pt", "intermetallic"),
        ("AlNi", "intermetallic"),
        ("Pt", "other"),  # an element has nothing to mix with
        ("MoS2", "other"),
        ("MoO3", "plus U"),
        ("NiF2", "plus U"),
        ("TiO2", "other"),  # no U for Ti
        ("CrOCl", "plus U"),
        ("CrCl3", "other"),
    ],
)
def test_kinds_of_compounds(formula, kind):
    assert kind_of(Composition(formula)) == kind


def test_the_spread_depends_on_what_is_known_of_the_formula():
    """A point of DFT's hull at the formula makes E_hull surer; another potential has no measured error."""
    hull = Hull([("Mo", -10.0), ("S", -4.0), ("Ca", -2.0), ("Pt", -6.0)], NAME)
    before = {formula: spread(hull, formula) for formula in ("MoS2", "Ca2Pt")}
    hull.add_points({"MoS2": -0.9, "Ca2Pt": -0.6})
    after = {formula: spread(hull, formula) for formula in before}
    assert hull.knows("MoS2") and not hull.knows("Mo3S4")
    for formula in before:
        assert 0 < after[formula] < before[formula] < 0.4, formula
    assert spread(hull, "Mo2S4") == after["MoS2"]
    assert spread(Hull([("Mo", -10.0)], "another"), "MoS2") is None
    with pytest.raises(FileNotFoundError, match="validate_hull"):
        read_errors(ERRORS.with_name("none.csv"))


def test_the_shipped_table_has_every_kind_twice():
    rows = read_rows(ERRORS)
    assert len(rows) == 6 and {row["potential"] for row in rows} == {NAME}
    assert all(int(row["rows"]) >= 20 for row in rows)
