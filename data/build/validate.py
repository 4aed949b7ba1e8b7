"""Measures the potential's hydrogen against DFT: python -m data.build.validate

Hydrogen on single-atom catalysts (geometries given), on metal surfaces, and the literature's ΔG_H, by the
potential alone and with its correction to DFT; formation energies and the hull are measured by
data.build.validate_hull. Writes data/validation.json and data/validation.png; what of
the reference data is missing is left out, and said.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from ase.io import read
from scipy.stats import norm
from tqdm import tqdm

from data.build import dft_labels
from data.build.dft.records import done
from models.crystals.layer import unpack_atoms
from models.crystals.split import ADSORBATE
from models.datasets.adsorption import adsorption_graph
from models.datasets.lmdb_data import LmdbDataset
from models.evaluation.figures import parity
from models.infra.files import ROOT, read_json, read_rows, write_json
from models.infra.shards import Shard
from models.networks.delta_g import predict_delta_g
from models.networks.dimenet import load_dimenet, predict
from models.physics.dft import Settings
from models.physics.dft_correction import DftCorrection
from models.physics.hydrogen import CORRECTION, hydrogen_energy
from models.physics.potentials import load_potential, single_point

HERE = ROOT / "data"
WEIGHTS = ROOT / "models" / "weights" / "dft_correction.json"
REFERENCE = Path(os.environ.get("HER2D_REFERENCE_DATA", HERE.parent / "../shared/data"))
SURFACES = {
    "(111)": "fcc111",
    "(0001)": "hcp0001",
    "(110)": "bcc110",
    "(001)": "fcc100",
}  # of the literature -> of data/items.py
LAYERS = {
    "MoS2 basal plane": "MoS2-2H:Mo-S",
    "graphene": "honeycomb-A:C",
    "Mo2CO2 (Mo2CTx)": "MXene-M2XT2:Mo-C-O",
    "Ti2CO2 (Ti2CTx)": "MXene-M2XT2:Ti-C-O",
}
ONE_SIGMA, TWO_SIGMA = 0.6827, 0.9545  # of a normal distribution
DFT_SHARD = HERE / "shards" / "dft.jsonl"
FACETS = {"fcc100": "001", "fcc111": "111", "bcc100": "001", "bcc110": "011", "hcp0001": "0001"}


def errors(predicted, true) -> dict:
    """n, bias, MAE, median |error|, RMSE, Pearson r and slope of predicted on true."""
    predicted, true = np.array(predicted), np.array(true)
    error = predicted - true
    return {
        "n": len(true),
        "bias": error.mean(),
        "mae": abs(error).mean(),
        "median": np.median(abs(error)),
        "rmse": np.sqrt((error**2).mean()),
        "r": np.corrcoef(predicted, true)[0, 1],
        "slope": np.polyfit(true, predicted, 1)[0],
    }


def cover(error: np.ndarray, std: np.ndarray, share: float) -> float:
    """Share of the errors within the central interval that should hold `share` of them."""
    return float((abs(error) <= norm.ppf(0.5 + share / 2) * std).mean())


def corrected_on_halves(predicted, true, seed: int = 0) -> dict:
    """Errors on one half of the pairs of a straight line fitted to the other, both ways round."""
    predicted, true = np.array(predicted), np.array(true)
    order = np.random.default_rng(seed).permutation(len(true))
    halves = order[::2], order[1::2]
    found = np.zeros(len(true))
    for fit, test in (halves, halves[::-1]):
        found[test] = np.polyval(np.polyfit(predicted[fit], true[fit], 1), predicted[test])
    return errors(found, true)


def against_sac(calculator, dimenet: Path) -> tuple[dict, dict]:
    """ΔE_H of metal@N-graphene at DFT's geometries: by single points of slab and slab + H, corrected to DFT
    (metals and semimetals: no gap), and by DimeNet++, which has seen no such host, from the geometry with H
    (its own use is a starting pose).
    """
    frames = read(REFERENCE / "sac_her" / "sac_her_dft.extxyz", ":")
    pairs = list(zip(frames[::2], frames[1::2]))
    predicted = single_points(pairs, calculator, "single-atom catalysts")
    correction = DftCorrection.load(WEIGHTS)
    second = single_points(pairs, load_potential(correction.second).calculator, "the same, second potential")
    none = np.zeros(len(pairs))
    corrected, spread = correction.delta_e(predicted, second, none, none)
    true = np.array([slab_h.info["dE_H_dft_eV"] for _, slab_h in pairs])
    model = load_dimenet(dimenet)
    tags = [np.where(slab_h.numbers == 1, ADSORBATE, 1) for _, slab_h in pairs]
    guessed = predict(
        model, [adsorption_graph(slab_h, tag, model.cutoff) for (_, slab_h), tag in zip(pairs, tags)]
    )
    summary = {
        "as it is": errors(predicted, true),
        "corrected to DFT": errors(corrected, true) | covers(corrected - true, spread),
        "line fitted on the other half": corrected_on_halves(predicted, true),
        "DimeNet++": errors(guessed, true),
        "always the mean": {"mae": np.abs(true - np.mean(true)).mean()},
    }
    return summary, {
        "ΔE_H, single-atom catalysts (eV)": (true, predicted, "eV"),
        "ΔE_H, single-atom catalysts, corrected (eV)": (true, corrected, "eV"),
        "ΔE_H, single-atom catalysts, DimeNet++ (eV)": (true, guessed, "eV"),
    }


def single_points(pairs: list[tuple], calculator, title: str) -> np.ndarray:
    """[n] eV, ΔE_H of (slab, slab + H) as they stand."""
    half_h2, found = hydrogen_energy(calculator), []
    for slab, slab_h in tqdm(pairs, desc=title, mininterval=5):
        found.append(single_point(slab_h, calculator) - single_point(slab, calculator) - half_h2)
    return np.array(found)


def covers(error: np.ndarray, spread: np.ndarray) -> dict:
    """Shares of the errors within one and two standard deviations."""
    return {"within 1 std": cover(error, spread, ONE_SIGMA), "within 2 std": cover(error, spread, TWO_SIGMA)}


def against_layers(dimenet: Path) -> tuple[dict, dict]:
    """ΔE_H of monolayers of val and test formulas, where DFT has it at the best pose of the potential: by the
    potential there, and by DimeNet++, which is given the bare layer and takes the best of its starting poses.
    """
    records = [
        row for row in done(Shard(DFT_SHARD), Settings()) if row["rank"] == "best" and row["relax"] == "none"
    ]
    held_out = [row for row in records if row["split"] != "train"]
    layers = [(row["key"], unpack_atoms(row["host"])) for row in held_out]
    found = dict(predict_delta_g(load_dimenet(dimenet), layers, correction=0.0))
    held_out = [row for row in held_out if "error" not in found[row["key"]]]
    true = np.array([row["delta_e_dft"] for row in held_out])
    potential = np.array([row["delta_e_sevennet"] for row in held_out])
    guessed = np.array([found[row["key"]]["delta_g_h"] for row in held_out])
    mean = np.mean([row["delta_e_dft"] for row in records if row["split"] == "train"])
    test = np.array([row["split"] == "test" for row in held_out])
    summary = {
        "as it is": errors(potential, true),
        "DimeNet++": errors(guessed, true),
        "DimeNet++, test alone": errors(guessed[test], true[test]),
        "always the mean": {"mae": np.abs(true - mean).mean()},
    }
    return summary, {"ΔE_H, layers, DimeNet++ (eV)": (true, guessed, "eV")}


def against_metals(folder: Path) -> tuple[dict, dict]:
    """ΔE_H at the best site of close-packed and open metal surfaces against published PBE (Allés et al.,
    J. Phys. Chem. C 2024), by the embedded set's rigid slabs and by their labels at the level of DFT.
    """
    published = {}
    for row in read_rows(REFERENCE / "metals_h" / "h_on_metals_pbe.csv"):
        key = row["metal"], row["miller"]
        published[key] = min(float(row["delta_e_h_eV"]), published.get(key, np.inf))
    facets = {}
    dataset = LmdbDataset(sorted(folder.glob("her2d_h_t*.lmdb")) + [folder / "her2d_h_val.lmdb"])
    for index in range(len(dataset)):
        record = dataset[index]
        facet, _, metal = record.host_uid.partition(":")
        key = metal, FACETS.get(facet)
        if key in published:
            facets.setdefault(key, []).append(record)
    records = [record for found in facets.values() for record in found]
    shard = Shard(dft_labels.SHARD)
    dft_labels.weigh(records, shard, DftCorrection.load(WEIGHTS).second, 1.0)
    dft_labels.label(records, shard)
    true = np.array([published[key] for key in facets])
    best = [min(found, key=lambda record: record.y_dft) for found in facets.values()]
    potential = np.array([min(record.y_relaxed for record in found) for found in facets.values()])
    corrected, spread = np.array([[record.y_dft, record.y_dft_std] for record in best]).T
    summary = {
        "as it is": errors(potential, true),
        "corrected to DFT": errors(corrected, true) | covers(corrected - true, spread),
        "always the mean": {"mae": np.abs(true - true.mean()).mean()},
        "pairs": [
            {"facet": " ".join(key), "published": float(a), "potential": float(b), "corrected": float(c)}
            for key, a, b, c in zip(facets, true, potential, corrected)
        ],
    }
    return summary, {
        "ΔE_H, metal surfaces (eV)": (true, potential, "eV"),
        "ΔE_H, metal surfaces, corrected (eV)": (true, corrected, "eV"),
    }


def against_literature(shard: Path) -> tuple[dict, dict]:
    """ΔG_H of the best rigid site of the builder's hosts that the literature table knows."""
    rows, pairs = Shard(shard).rows, []
    for entry in read_rows(HERE / "literature_delta_g_h.csv"):
        surface = f"{SURFACES.get(entry['surface'])}:{entry['host_formula']}"
        key = surface if entry["kind"] == "metal_surface" else LAYERS.get(entry["system"])
        good = [
            site["delta_e"]
            for site in rows.get(key, {}).get("sites", [])
            if site["converged"] and not site["flag"]
        ]
        if good:
            pairs.append(
                (entry["system"], entry["functional"], float(entry["delta_g_h_eV"]), min(good) + CORRECTION)
            )
    predicted, true = [p[3] for p in pairs], [p[2] for p in pairs]
    summary = {
        "all": errors(predicted, true),
        "line fitted on the other half": corrected_on_halves(predicted, true),
        "pairs": [dict(zip(("system", "functional", "literature", "oracle"), pair)) for pair in pairs],
    }
    return summary, {"ΔG_H, literature (eV)": (true, predicted, "eV")}


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--potential", default="sevennet", help="the potential that made the data")
    parser.add_argument(
        "--dimenet",
        type=Path,
        default=HERE.parent / "models" / "weights" / "dimenet.pt",
        help="checkpoint of stage 1",
    )
    parser.add_argument(
        "--out", type=Path, default=HERE / "validation.json", help="the figure lands beside it"
    )
    return parser


def main():
    args = build_parser().parse_args()
    potential = load_potential(args.potential)
    tasks = {
        "layers": lambda: against_layers(args.dimenet),
        "single-atom catalysts": lambda: against_sac(potential.calculator, args.dimenet),
        "metal surfaces": lambda: against_metals(HERE),
        "literature": lambda: against_literature(HERE / "shards" / "adsorption.jsonl"),
    }
    summary, panels = {"potential": potential.name}, {}
    for name, task in tasks.items():
        try:
            summary[name], drawn = task()
            panels |= drawn
        except FileNotFoundError as error:
            print(f"{name}: left out, {error.filename} is missing (HER2D_REFERENCE_DATA names its folder)")
    write_json(args.out, summary)
    parity(panels, "DFT", "predicted", args.out.with_suffix(".png"))
    brief = lambda value: (
        {k: brief(v) for k, v in value.items() if k != "pairs"} if isinstance(value, dict) else value
    )
    print(json.dumps(brief(read_json(args.out)), indent=1))


if __name__ == "__main__":
    main()
