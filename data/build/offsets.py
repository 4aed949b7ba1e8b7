"""An energy an element that brings the potential to C2DB's PBE: python -m data.build.offsets --energies FILE

E_form of the potential errs by a part that is the same wherever an element occurs: layers of some metals
are bound too strongly, halides of others too weakly. That part is fitted to C2DB's formation energies
(`hform`) on training formulas of the common split, robustly, by the potential's single points at DFT's
geometry, and written to data/energy_offsets.csv. Elements themselves are not moved, nor are the points of
DFT's hull. docs/hull.md says what it brings on val and test formulas (data.build.validate_hull).

Source of what it is fitted to: C2DB, Haastrup et al., 2D Mater. 5, 042002 (2018), Gjerding et al., 2D Mater.
8, 044002 (2021), CC-BY 4.0.
"""

import argparse
from pathlib import Path

import numpy as np
from pymatgen.core import Composition

from data.build.validate_hull import RANDOM_ROWS, c2db_rows, weigh
from models.crystals.split import split_of
from models.infra.files import write_rows
from models.infra.shards import Shard
from models.physics.hull import OFFSETS, Hull

# eV/atom, about the median error: beyond it a row pulls with a constant force, not a growing one.
HUBER = 0.05
# Strength of the pull to zero, in rows of the pure element: an element of one or two rows is hardly moved.
# 0.02 and 0.1 give the same error by cross-validation (E_form 0.061 eV/atom, 1,402 rows of training
# formulas).
RIDGE = 0.1
ROUNDS = 50  # of reweighting; the offsets move by less than 1e-4 eV after 30
COLUMNS = ("potential", "element", "offset_eV_per_atom", "training_rows")


def fit_offsets(formulas: list[str], lacking) -> dict[str, float]:
    """element -> eV per atom of it.

    Args:
        formulas: [N].
        lacking: [N] what E_form of the potential lacks to DFT's, eV/atom.
    """
    compositions = [Composition(formula) for formula in formulas]
    elements = sorted({element for composition in compositions for element in composition})
    shares = np.zeros((len(formulas), len(elements)))  # [N, E]
    for row, composition in zip(shares, compositions):
        row[:] = [composition.get_atomic_fraction(element) for element in elements]
    lacking, weights = np.asarray(lacking), np.ones(len(formulas))
    for _ in range(ROUNDS):
        weighted = shares.T * weights  # [E, N]
        offsets = np.linalg.solve(weighted @ shares + RIDGE * np.eye(len(elements)), weighted @ lacking)
        weights = HUBER / np.maximum(np.abs(lacking - shares @ offsets), HUBER)
    return {element.symbol: float(offset) for element, offset in zip(elements, offsets)}


def training_rows(weighed: list[tuple], hull: Hull) -> tuple[list[str], list[float]]:
    """Compounds of training formulas, and what their E_form lacks to C2DB's (eV/atom); a formula with an
    element of no reference phase is passed over.
    """
    formulas, lacking = [], []
    for row, energy in weighed:
        composition = Composition(row.formula)
        if len(composition) > 1 and split_of(row.formula) == "train":
            try:
                e_form = hull.formation_energy(composition, energy) / composition.num_atoms
            except ValueError:
                continue
            formulas.append(row.formula)
            lacking.append(row.hform - e_form)
    return formulas, lacking


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--potential", default="sevennet", help="the potential that made the hull")
    parser.add_argument(
        "--rows", type=int, default=RANDOM_ROWS, help="random rows of C2DB, beside all intermetallic ones"
    )
    parser.add_argument("--energies", type=Path, required=True, help="JSON lines of single points, resumable")
    parser.add_argument("--out", type=Path, default=OFFSETS)
    return parser


def main():
    args = build_parser().parse_args()
    hull = Hull.read(points=None, offsets=None)
    weighed = weigh(c2db_rows(args.rows), "c2db", Shard(args.energies), args.potential, "C2DB")
    formulas, lacking = training_rows(weighed, hull)
    compositions = [Composition(formula).as_dict() for formula in formulas]
    rows = []
    for element, offset in sorted(fit_offsets(formulas, lacking).items()):
        count = sum(element in composition for composition in compositions)
        rows.append(dict(zip(COLUMNS, (hull.potential, element, round(offset, 4), count))))
    write_rows(args.out, rows, COLUMNS)
    print(f"{len(rows)} elements from {len(formulas)} rows in {args.out}")


if __name__ == "__main__":
    main()
