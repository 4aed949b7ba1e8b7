"""Trains and judges the model of band gaps (python -m data.build.gap)."""

from pathlib import Path

import ase.db
import numpy as np
from tqdm import tqdm

from models.crystals.layer import NotALayer, extract_layer, reduced_formula, unpack_atoms
from models.crystals.split import split_of
from models.infra.files import ROOT, digest, write_json
from models.infra.shards import Shard
from models.networks.gap import CAP, expected_gap, fit_gap, gap_features, predict_gap, save_gap

FOLDS = 8
MAX_ATOMS = 24  # a cell; larger ones are few
SHARDS = ROOT / "data" / "shards"


def read_gaps(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(features [n, F], gaps [n] eV, reduced formulas) of the layers of a database that have a gap."""
    x, gaps, formulas = [], [], []
    for row in tqdm(ase.db.connect(path).select(), desc="layers with a gap", mininterval=5):
        gap = row.get("gap")
        if gap is None or row.natoms > MAX_ATOMS:
            continue
        try:
            layer = extract_layer(row.toatoms()).atoms
        except NotALayer:
            continue
        x.append(gap_features([layer])[0])
        gaps.append(gap)
        formulas.append(reduced_formula(layer))
    return np.array(x), np.array(gaps), formulas


def fold_of(formula: str) -> int:
    """The fold that a formula is left out with."""
    return int(digest(formula)[:6], 16) % FOLDS


def gaps_of_hosts(x: np.ndarray, gaps: np.ndarray, formulas: list[str], hosts: dict) -> dict[str, dict]:
    """Expected gap of each host by trees that saw no layer of its formula.

    Args:
        x, gaps, formulas: of the database.
        hosts: key -> layer.

    Returns:
        key -> {"gap", "std"} in eV.
    """
    folds, found = np.array([fold_of(formula) for formula in formulas]), {}
    for fold in range(FOLDS):
        layers = {key: atoms for key, atoms in hosts.items() if fold_of(reduced_formula(atoms)) == fold}
        if not layers:
            continue
        forest = fit_gap(x[folds != fold], gaps[folds != fold])
        for key, mean, std in zip(layers, *predict_gap(forest, list(layers.values()))):
            found[key] = {"gap": round(float(mean), 4), "std": round(float(std), 4)}
    return found


def run(path: Path, out: Path) -> None:
    """Trains, judges on held-out formulas, and writes."""
    x, gaps, formulas = read_gaps(path)
    split = np.array([split_of(formula) for formula in formulas])
    forest, report = fit_gap(x[split != "test"], gaps[split != "test"]), {"layers": len(gaps)}
    judged = {"test": forest, "val": fit_gap(x[split == "train"], gaps[split == "train"])}
    for name, model in judged.items():
        here = split == name
        said, _ = expected_gap(model, x[here])
        true = np.minimum(gaps[here], CAP)
        median = np.median(np.minimum(gaps[split == "train"], CAP))
        report[name] = {
            "n": int(here.sum()),
            "mae_eV": round(float(abs(said - true).mean()), 3),
            "mae_of_the_median_eV": round(float(abs(median - true).mean()), 3),
            "r": round(float(np.corrcoef(said, true)[0, 1]), 3),
        }
    save_gap(out, forest, report=report)
    hosts = {}
    for row in Shard(SHARDS / "dft.jsonl").sorted_rows():
        if row.get("host"):
            hosts[row["key"]] = unpack_atoms(row["host"])
    write_json(SHARDS / "dft_gaps.json", gaps_of_hosts(x, gaps, formulas, hosts))
    print(report)
