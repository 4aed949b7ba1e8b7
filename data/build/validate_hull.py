"""How wrong is E_hull? C2DB's val and test formulas, and 2DMatPedia: python -m data.build.validate_hull

Each layer is weighed by the potential at DFT's geometry. Its E_hull counts the hull without the points and
the embedded layers of its own formula (bulk prototypes stay: they are made for any formula), as for a formula
that nobody has calculated; "nothing left out" is what a formula of C2DB gets. The energies an element
(data/build/offsets.py) were fitted on training formulas, so that the headline is that of val and test
formulas. 2DMatPedia's decomposition energies have nothing to do with C2DB: there the hull is whole, and rows
with a formula of C2DB are told apart. Writes data/hull_validation.json and .png, and data/hull_errors.csv,
the spread that a row of an evaluation carries (models/physics/hull_error.py).
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import ase.db
import numpy as np
from pymatgen.core import Composition
from tqdm import tqdm

from data.build.validate import HERE, REFERENCE, errors
from models.crystals.split import split_of
from models.crystals.thresholds import STABLE
from models.evaluation.figures import parity
from models.infra.files import write_json, write_rows
from models.infra.shards import Shard
from models.physics.hull import MAX_ENERGY, Hull, read_points
from models.physics.hull_error import COLUMNS, INSIDE, kind_of
from models.physics.potentials import load_potential, single_point

RANDOM_ROWS = 1800  # single points: 0.15 s of a core each
RESAMPLES = 1000
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
    return [*found, kind_of(Composition(formula))]


def c2db_rows(count: int, seed: int = 0) -> list:
    """Random rows of C2DB with at most MAX_ATOMS atoms, and after them the intermetallic ones not drawn."""
    database = ase.db.connect(REFERENCE / "c2db" / "c2db.db")
    rows = [row for row in database.select(f"natoms<={MAX_ATOMS}") if "hform" in row and "ehull" in row]
    order = np.random.default_rng(seed).permutation(len(rows))
    others = [rows[k] for k in sorted(order[count:])]
    metals = [row for row in others if kind_of(Composition(row.formula)) == "intermetallic"]
    return [rows[k] for k in order[:count]] + metals


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


def called_stable(predicted: np.ndarray, true: np.ndarray) -> dict:
    """Precision and recall of E_hull < STABLE, with the shares of both."""
    called, right = predicted < STABLE, true < STABLE
    both = (called & right).sum()
    return {
        "precision": both / max(called.sum(), 1),
        "recall": both / max(right.sum(), 1),
        "share called": called.mean(),
        "share true": right.mean(),
    }


def intervals(predicted: np.ndarray, true: np.ndarray, seed: int = 0) -> dict:
    """95 % intervals of bias, MAE, precision and recall, by bootstrap over the rows."""
    rng, drawn = np.random.default_rng(seed), {}
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, len(true), len(true))
        error, calls = predicted[chosen] - true[chosen], called_stable(predicted[chosen], true[chosen])
        values = {"bias": error.mean(), "mae": abs(error).mean()}
        for name, value in (values | calls).items():
            drawn.setdefault(name, []).append(value)
    names = ("bias", "mae", "precision", "recall")
    return {f"{name}_ci95": np.percentile(drawn[name], [2.5, 97.5]).tolist() for name in names}


def absolute_errors(pairs: list[tuple[str, float, float]]) -> np.ndarray:
    """[N] |E_hull − DFT's|, eV/atom."""
    return np.array([abs(predicted - true) for _, predicted, true in pairs])


def gain(pairs: list[tuple], others: list[tuple], seed: int = 0) -> dict:
    """By how much |E_hull − DFT's| of the first is smaller than of the others, mean and 95 % interval of the
    same rows, eV/atom.
    """
    smaller, rng = absolute_errors(others) - absolute_errors(pairs), np.random.default_rng(seed)
    means = [rng.choice(smaller, len(smaller)).mean() for _ in range(RESAMPLES)]
    return {"value": smaller.mean(), "ci95": np.percentile(means, [2.5, 97.5]).tolist()}


def judged(pairs: list[tuple[str, float, float]]) -> dict:
    """Errors and calls of (formula, E_hull predicted, E_hull by DFT), all and by class of 10 and more."""
    groups = {"all": pairs}
    for pair in pairs:
        for name in classes_of(pair[0]):
            groups.setdefault(name, []).append(pair)
    summary = {}
    for name, members in groups.items():
        if len(members) >= 10:
            predicted, true = (np.array([member[k] for member in members]) for k in (1, 2))
            summary[name] = errors(predicted, true) | called_stable(predicted, true)
            summary[name] |= intervals(predicted, true)
    return summary


def e_hull_of(weighed: list[tuple], hull: Hull, whole: bool = False) -> tuple[list, dict]:
    """(formula, E_hull, DFT's) of C2DB rows, and how many were skipped and why.

    Args:
        whole: True leaves nothing out, False the layers and points of a row's own formula.
    """
    pairs, skipped = [], Counter()
    for row, energy in tqdm(weighed, desc="hulls", mininterval=5):
        without = None if whole else Composition(row.formula).reduced_formula
        try:
            found = hull.stability(row.formula, energy, without=without)
        except ValueError as error:
            skipped[str(error)] += 1
            continue
        pairs.append((row.formula, found.e_hull, row.ehull))
    return pairs, dict(skipped)


def e_form_of(weighed: list[tuple], hull: Hull) -> tuple[list[float], list[float]]:
    """E_form of C2DB rows by the hull and by DFT, eV/atom; elements of no reference phase are passed over."""
    found, true = [], []
    for row, energy in weighed:
        composition = Composition(row.formula)
        try:
            found.append(hull.formation_energy(composition, energy) / composition.num_atoms)
            true.append(row.hform)
        except ValueError:
            continue
    return found, true


def against_c2db(weighed: list[tuple], hulls: dict[str, Hull]) -> tuple[dict, dict]:
    """E_form and E_hull of rows of formulas that no fit has seen.

    Args:
        hulls: "as shipped", and others to compare it with.

    Returns:
        summary; panel of the figure -> (true, predicted, unit).
    """
    summary, pairs = {}, {}
    for name, hull in hulls.items():
        pairs[name], skipped = e_hull_of(weighed, hull)
        summary[f"E_hull, own formula left out, {name}"] = judged(pairs[name])
        found, true = e_form_of(weighed, hull)
        summary[f"E_form, {name}"] = errors(found, true)
    summary["MAE of E_hull, what the offsets gain"] = gain(pairs["as shipped"], pairs["without offsets"])
    hull = hulls["as shipped"]
    whole, _ = e_hull_of(weighed, hull, whole=True)
    summary["E_hull, nothing left out"] = judged(whole)
    summary["skipped"] = skipped
    e_form, hform = e_form_of(weighed, hull)
    e_hull, ehull = zip(*[pair[1:] for pair in pairs["as shipped"]])
    panels = {
        "E_form (eV/atom)": (hform, e_form, "eV/atom"),
        "E_hull, own formula left out (eV/atom)": (ehull, e_hull, "eV/atom"),
    }
    return summary, panels


def spreads(potential: str, pairs: dict[bool, list]) -> list[dict]:
    """Rows of hull_errors.csv, of formula known -> (formula, E_hull, DFT's)."""
    rows = []
    for known, members in pairs.items():
        groups = {}
        for formula, predicted, true in members:
            groups.setdefault(kind_of(Composition(formula)), []).append(predicted - true)
        for kind, error in sorted(groups.items()):
            width = np.percentile(np.abs(error), INSIDE)
            values = (potential, known, kind, len(error), round(np.mean(error), 3), round(width, 3))
            rows.append(dict(zip(COLUMNS, values)))
    return rows


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
    parser.add_argument(
        "--rows", type=int, default=RANDOM_ROWS, help="random rows of C2DB, beside all intermetallic ones"
    )
    parser.add_argument("--matpedia-rows", type=int, default=220, help="random rows of 2DMatPedia")
    parser.add_argument("--energies", type=Path, required=True, help="JSON lines of single points, resumable")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the three files")
    return parser


def main():
    args = build_parser().parse_args()
    energies = Shard(args.energies)
    rows = c2db_rows(args.rows)
    random = {row.uid for row in rows[: args.rows]}
    weighed = weigh(rows, "c2db", energies, args.potential, "C2DB")
    unseen = [pair for pair in weighed if split_of(pair[0].formula) != "train"]
    hull, plain = Hull.read(), Hull.read(points=None, offsets=None)
    hulls = {"as shipped": hull, "without offsets": Hull.read(offsets=None), "without both": plain}
    summary, panels = against_c2db([pair for pair in unseen if pair[0].uid in random], hulls)
    metals = [pair for pair in weighed if kind_of(Composition(pair[0].formula)) == "intermetallic"]
    unseen_metals = [pair for pair in metals if pair in unseen]
    found = {
        "potential": hull.potential,
        "C2DB, random rows of val and test formulas": summary,
        "C2DB, intermetallic rows of val and test formulas": against_c2db(unseen_metals, hulls)[0],
        "C2DB, all intermetallic rows, own formula left out": judged(e_hull_of(metals, hull)[0]),
    }
    pairs = {known: e_hull_of(unseen, hull, whole=known)[0] for known in (False, True)}
    matpedia = weigh(matpedia_rows(args.matpedia_rows), "mp", energies, args.potential, "2DMatPedia")
    found["2DMatPedia"] = against_matpedia(matpedia, hull)
    found["2DMatPedia, without points and offsets"] = against_matpedia(matpedia, plain)
    write_json(args.out / "hull_validation.json", found)
    parity(panels, "DFT", "predicted", args.out / "hull_validation.png")
    write_rows(args.out / "hull_errors.csv", spreads(hull.potential, pairs), COLUMNS)
    print(json.dumps(found, indent=1, default=float))


if __name__ == "__main__":
    main()
