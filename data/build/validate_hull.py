"""How wrong is E_hull? Leave-one-formula-out on C2DB, and 2DMatPedia: python -m data.build.validate_hull

Each layer is weighed by the potential at DFT's geometry. Its E_hull counts the hull without the points and
the embedded layers of its own formula (bulk prototypes stay: they are made for any formula), as for a formula
that nobody has calculated. 2DMatPedia's decomposition energies have nothing to do with C2DB: there the hull
is whole, and rows with a formula of C2DB are told apart. Writes data/hull_validation.json.
"""

import argparse
import json
from pathlib import Path

import ase.db
import numpy as np
from pymatgen.core import Composition
from tqdm import tqdm

from data.build.competitors import metallic_systems
from data.build.validate import HERE, REFERENCE, errors
from models.crystals.thresholds import STABLE
from models.infra.files import write_json
from models.infra.shards import Shard
from models.physics.competitors import systems_of
from models.physics.hull import MAX_ENERGY, Hull, read_points
from models.physics.potentials import load_potential, single_point

MAX_ATOMS = 20
ANION_CLASSES = {
    "oxides and hydroxides": "O",
    "halides": "F Cl Br I",
    "chalcogenides": "S Se Te",
    "pnictides": "N P As Sb Bi",
    "with hydrogen": "H",
}


def classes_of(formula: str) -> list[str]:
    """Chemical classes that a formula counts in: number of elements, and the kinds of anions."""
    symbols = set(Composition(formula).as_dict())
    found = [f"{len(symbols)} elements"]
    found += [name for name, members in ANION_CLASSES.items() if symbols & set(members.split())]
    if len(symbols) > 1 and metallic_systems(formula) == systems_of(formula):
        found.append("intermetallic")
    return found


def c2db_rows(count: int, seed: int = 0) -> list:
    """Random rows of C2DB with at most MAX_ATOMS atoms, and all intermetallic ones after them."""
    database = ase.db.connect(REFERENCE / "c2db" / "c2db.db")
    rows = [row for row in database.select(f"natoms<={MAX_ATOMS}") if "hform" in row and "ehull" in row]
    chosen = [rows[k] for k in np.random.default_rng(seed).permutation(len(rows))[:count]]
    return chosen + [row for row in rows if "intermetallic" in classes_of(row.formula)]


def matpedia_rows(count: int, seed: int = 0) -> list:
    """Random rows of 2DMatPedia's sample with at most 24 atoms and a decomposition energy."""
    rows = list(ase.db.connect(REFERENCE / "2dmatpedia" / "sample.db").select("natoms<=24"))
    return [rows[k] for k in np.random.default_rng(seed).permutation(len(rows))[:count]]


def weigh(rows: list, prefix: str, energies: Shard, potential: str, label: str) -> list[tuple]:
    """(row, eV) of the rows by the potential, those with a hole in it left out; kept in `energies`."""
    calculator, found = None, []
    for row in tqdm(rows, desc=label, mininterval=5):
        key = f"{prefix}:{row.get('uid', row.id)}"
        if key not in energies.rows:
            calculator = calculator or load_potential(potential).calculator
            energies.append(key, {"energy": single_point(row.toatoms(), calculator)})
        energy = energies.rows[key]["energy"]
        if energy is not None and abs(energy) < MAX_ENERGY * row.natoms:
            found.append((row, energy))
    return found


def called_stable(predicted, true) -> dict:
    """Precision and recall of E_hull < STABLE, with the shares of both."""
    called, right = np.array(predicted) < STABLE, np.array(true) < STABLE
    both = (called & right).sum()
    return {
        "precision": both / max(called.sum(), 1),
        "recall": both / max(right.sum(), 1),
        "share called": called.mean(),
        "share true": right.mean(),
    }


def judged(pairs: list[tuple[str, float, float]]) -> dict:
    """Errors and calls of (formula, E_hull predicted, E_hull by DFT), all and by class of 10 and more."""
    groups = {"all": pairs}
    for pair in pairs:
        for name in classes_of(pair[0]):
            groups.setdefault(name, []).append(pair)
    summary = {}
    for name, members in groups.items():
        if len(members) >= 10:
            predicted, true = [m[1] for m in members], [m[2] for m in members]
            summary[name] = errors(predicted, true) | called_stable(predicted, true)
    return summary


def leave_one_out(weighed: list[tuple], hull: Hull, whole: bool = False) -> tuple[list, dict]:
    """(formula, E_hull, DFT's) of C2DB rows, and how many were skipped and why.

    Args:
        whole: True leaves nothing out.
    """
    pairs, skipped = [], {}
    for row, energy in tqdm(weighed, desc="hulls", mininterval=5):
        without = None if whole else Composition(row.formula).reduced_formula
        try:
            found = hull.stability(row.formula, energy, without=without)
        except ValueError as error:
            skipped[str(error)] = skipped.get(str(error), 0) + 1
            continue
        pairs.append((row.formula, found.e_hull, row.ehull))
    return pairs, skipped


def against_matpedia(weighed: list[tuple], hull: Hull) -> dict:
    """E_hull with the whole hull against decomposition energies; formulas of C2DB and others apart."""
    points, pairs = set(read_points()), []
    for row, energy in weighed:
        decomposition = row.data.get("decomposition_energy")
        if len(set(row.symbols)) > 1 and decomposition is not None:
            try:
                e_hull = hull.stability(row.formula, energy).e_hull
            except ValueError:
                continue
            pairs.append((row.formula, e_hull, decomposition))
    in_c2db = [pair for pair in pairs if Composition(pair[0]).reduced_formula in points]
    others = [pair for pair in pairs if pair not in in_c2db]
    far = sorted(pairs, key=lambda pair: pair[1] - pair[2])
    return {
        "all": judged(pairs),
        "formulas of C2DB": judged(in_c2db)["all"],
        "other formulas": judged(others)["all"],
        "lowest against DFT": far[:10],
    }


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--potential", default="sevennet", help="the potential that made the hull")
    parser.add_argument("--rows", type=int, default=600, help="random rows of C2DB")
    parser.add_argument("--matpedia-rows", type=int, default=220, help="random rows of 2DMatPedia")
    parser.add_argument("--energies", type=Path, required=True, help="JSON lines of single points, resumable")
    parser.add_argument("--out", type=Path, default=HERE / "hull_validation.json")
    return parser


def main():
    args = build_parser().parse_args()
    energies = Shard(args.energies)
    rows = weigh(c2db_rows(args.rows), "c2db", energies, args.potential, "C2DB")
    random, metals = rows[: args.rows], [r for r in rows if "intermetallic" in classes_of(r[0].formula)]
    metals = list({row.uid: (row, energy) for row, energy in metals}.values())
    summary, hull = {"potential": args.potential}, Hull.read()
    plain = Hull.read(points=None)
    for name, some in (("random rows", random), ("intermetallic rows", metals)):
        pairs, skipped = leave_one_out(some, hull)
        summary[f"C2DB, {name}, leave one formula out"] = judged(pairs) | {"skipped": skipped}
        summary[f"C2DB, {name}, without points"] = judged(leave_one_out(some, plain)[0])["all"]
        summary[f"C2DB, {name}, nothing left out"] = judged(leave_one_out(some, hull, whole=True)[0])["all"]
    weighed = weigh(matpedia_rows(args.matpedia_rows), "mp", energies, args.potential, "2DMatPedia")
    summary["2DMatPedia"] = against_matpedia(weighed, hull)
    summary["2DMatPedia, without points"] = against_matpedia(weighed, plain)
    write_json(args.out, summary)
    print(json.dumps(json.loads(args.out.read_text()), indent=1))


if __name__ == "__main__":
    main()
