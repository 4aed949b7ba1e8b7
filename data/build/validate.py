"""Measures the potential's hydrogen against DFT: python -m data.build.validate

Hydrogen on single-atom catalysts (geometries given) and the literature's ΔG_H; formation energies and the
hull are measured by data.build.validate_hull. Writes data/validation.json and data/validation.png; what of
the reference data is missing is left out, and said.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from ase.io import read
from tqdm import tqdm

from models.crystals.split import ADSORBATE
from models.datasets.adsorption import adsorption_graph
from models.evaluation.figures import parity
from models.infra.files import ROOT, read_json, read_rows, write_json
from models.infra.shards import Shard
from models.networks.dimenet import load_dimenet, predict
from models.physics.hydrogen import CORRECTION, hydrogen_energy
from models.physics.potentials import load_potential, single_point

HERE = ROOT / "data"
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
    """ΔE_H of metal@N-graphene at DFT's geometries: by single points of slab and slab + H, and by DimeNet++,
    which has seen no such host, from the geometry with H (its own use is a starting pose)."""
    frames = read(REFERENCE / "sac_her" / "sac_her_dft.extxyz", ":")
    half_h2 = hydrogen_energy(calculator)
    model, graphs, predicted, true = load_dimenet(dimenet), [], [], []
    for slab, slab_h in tqdm(
        list(zip(frames[::2], frames[1::2])), desc="single-atom catalysts", mininterval=5
    ):
        predicted.append(single_point(slab_h, calculator) - single_point(slab, calculator) - half_h2)
        true.append(slab_h.info["dE_H_dft_eV"])
        graphs.append(adsorption_graph(slab_h, np.where(slab_h.numbers == 1, ADSORBATE, 1), model.cutoff))
    guessed = predict(model, graphs)
    summary = {
        "as it is": errors(predicted, true),
        "line fitted on the other half": corrected_on_halves(predicted, true),
        "DimeNet++": errors(guessed, true),
        "always the mean": {"mae": np.abs(true - np.mean(true)).mean()},
    }
    return summary, {
        "ΔE_H, single-atom catalysts (eV)": (true, predicted, "eV"),
        "the same by DimeNet++ (eV)": (true, guessed, "eV"),
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
        "single-atom catalysts": lambda: against_sac(potential.calculator, args.dimenet),
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
