"""Where DFT's convex hull lies at the compositions of a C2DB file: python -m data.build.dft_hull --db c2db.db

C2DB's `hform - ehull` is the formation energy (PBE) of the hull of its reference crystals at a layer's
composition, or the layer itself where it lies below. Writes data/hull_points.csv, formula and eV/atom.

Source of the shipped file: C2DB, Haastrup et al., 2D Mater. 5, 042002 (2018), Gjerding et al., 2D Mater. 8,
044002 (2021), CC-BY 4.0.
"""

import argparse
from pathlib import Path

import ase.db
from pymatgen.core import Composition

from models.infra.files import write_rows
from models.physics.hull import POINTS


def hull_points(path: Path) -> dict[str, float]:
    """Reduced formula -> formation energy of the hull, eV/atom; the lowest where rows disagree."""
    points = {}
    for row in ase.db.connect(path).select():
        if "hform" in row and "ehull" in row:
            formula = Composition(row.formula).reduced_formula
            e_stable = min(row.hform, row.hform - row.ehull)
            points[formula] = min(points.get(formula, e_stable), e_stable)
    return points


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--db", type=Path, required=True, help="C2DB's ASE database, with hform and ehull")
    parser.add_argument("--out", type=Path, default=POINTS)
    return parser


def main():
    args = build_parser().parse_args()
    points = sorted(hull_points(args.db).items())
    rows = [{"formula": formula, "e_stable_eV_per_atom": round(e, 4)} for formula, e in points]
    write_rows(args.out, rows, ["formula", "e_stable_eV_per_atom"])
    print(f"{len(rows)} compositions in {args.out}")


if __name__ == "__main__":
    main()
