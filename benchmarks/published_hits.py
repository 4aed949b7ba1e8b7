"""The published top 20 judged again by today's hull, in water and by DFT: what is left of the hits?

    python -m benchmarks.published_hits

Energies are single points of SevenNet 7net-l3i5 at the published geometries, so E_hull changes with the hull
alone. ΔG_H by the potential is the published one, ΔG_H by DFT that of dft_single_points.csv.
Writes results/published/top20_rejudged.csv.
"""

import argparse
from pathlib import Path

from models.crystals.thresholds import ACTIVE, CORRECTION
from models.evaluation.settings import Settings
from models.infra.files import ROOT, read_rows, write_rows
from models.infra.runs import run_script

PUBLISHED = ROOT / "results" / "published"
COLUMNS = (
    "material_id",
    "e_hull_published_eV_per_atom",
    "e_hull_eV_per_atom",
    "hull_compounds",
    "stable",
    "aqueous",
    "delta_g_h_oracle_eV",
    "delta_g_h_dft_eV",
    "published_hit",
    "hit",
)


def judged(row: dict[str, str], hull, calculator, dft: dict[str, float]) -> dict:
    """A published layer by today's rules.

    Args:
        row: of top20.csv.
        hull: models.physics.hull.Hull of the calculator's potential.
        dft: material_id -> ΔE_H by DFT, eV.
    """
    from ase.io import read

    from models.physics.potentials import single_point
    from models.physics.pourbaix import Pourbaix, aqueous_columns

    name = row["material_id"]
    atoms = read(PUBLISHED / "top20" / f"{name}.cif")
    atoms.pbc = (True, True, False)
    energy, formula = single_point(atoms, calculator), atoms.get_chemical_formula()
    place = hull.stability(formula, energy)
    water = aqueous_columns(Pourbaix(hull), formula, energy, Settings().max_pourbaix)
    oracle = float(row["delta_g_h_oracle_eV"])
    active = abs(oracle) <= ACTIVE and row["h_carries_off"] != "True"
    return {
        "material_id": name,
        "e_hull_published_eV_per_atom": round(float(row["e_hull_eV_per_atom"]), 3),
        "e_hull_eV_per_atom": round(place.e_hull, 3),
        "hull_compounds": place.phases,
        "stable": place.stable,
        "aqueous": "" if water["aqueous"] is None else water["aqueous"],
        "delta_g_h_oracle_eV": round(oracle, 2),
        "delta_g_h_dft_eV": round(dft[name] + CORRECTION, 2) if name in dft else "",
        "published_hit": active,
        "hit": active and place.stable and water["aqueous"] is not False,
    }


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=PUBLISHED / "top20_rejudged.csv", help="CSV to write")
    return parser


def main() -> None:
    """Judges the published layers and writes the table."""
    args = build_parser().parse_args()
    from models.physics.hull import Hull  # late: it takes seconds, and wrong flags none
    from models.physics.potentials import load_potential

    potential = load_potential("sevennet")
    hull = Hull.read()
    dft = {row["layer"]: float(row["dft_eV"]) for row in read_rows(PUBLISHED / "dft_single_points.csv")}
    rows = [
        judged(row, hull, potential.calculator, dft) for row in read_rows(PUBLISHED / "top20" / "top20.csv")
    ]
    write_rows(args.out, rows, list(COLUMNS))
    for row in rows:
        print(*row.values())


if __name__ == "__main__":
    run_script(main)
