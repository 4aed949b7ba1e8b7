"""How far E_hull may be off: the spread of its errors on formulas that no fit has seen
(data/hull_errors.csv).

The errors are no normal distribution: most are small, and a few are large where a prototype is missing. What
is kept is the width within which 68.3 % of them lie, a standard deviation if they were normal, apart for what
decides it: whether DFT's hull or a layer of the formula itself is part of the hull, and the kind of compound.
"""

from functools import cache
from pathlib import Path

from pymatgen.core import Composition

from models.crystals.bulk import is_ionic
from models.infra.files import ROOT, read_rows
from models.physics.hull import Hull, plus_u_metals

ERRORS = ROOT / "data" / "hull_errors.csv"
INSIDE = 68.3  # % of the errors within the spread
COLUMNS = ("potential", "formula_known", "kind", "rows", "bias_eV_per_atom", "spread_eV_per_atom")


def kind_of(composition: Composition) -> str:
    """ "intermetallic"; "plus U": an oxide or fluoride in which the Materials Project sets U, where the two
    energy scales of the potential meet; or "other".
    """
    if len(composition) > 1 and not is_ionic(composition.as_dict()):
        return "intermetallic"
    return "plus U" if plus_u_metals(composition) else "other"


@cache
def read_errors(path: Path = ERRORS) -> dict[tuple[str, bool, str], float]:
    """(potential, formula known, kind) -> spread of E_hull, eV/atom."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: make it with python -m data.build.validate_hull")
    found = {}
    for row in read_rows(path):
        key = row["potential"], row["formula_known"] == "True", row["kind"]
        found[key] = float(row["spread_eV_per_atom"])
    return found


def spread(hull: Hull, formula: str) -> float | None:
    """Width (eV/atom) within which 68.3 % of the errors of E_hull lie for a formula like this one; None for a
    potential whose errors were not measured.
    """
    composition = Composition(formula)
    known = hull.knows(composition.reduced_formula)
    return read_errors().get((hull.potential, known, kind_of(composition)))
