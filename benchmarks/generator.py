"""What the generator draws before any filter, beside plain substitution (the null) and real held-out layers
(the ceiling).

    python -m benchmarks.generator --db c2db.db --num 256 --out results/benchmark_generator

Every set is drawn unguided by structure_generator.py and judged by evaluate_external.py, without hydrogen.
Then formulas of the test split are asked for, and it is counted how often the stablest layer of the formula
comes out. Writes OUT/table.md and OUT/table.csv; what is done is not done again.
"""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase.db
import numpy as np
import torch
from tqdm import tqdm

from models.crystals.layer import NotALayer, extract_layer, reduced_formula
from models.crystals.matching import MATCHER, Fingerprint
from models.crystals.split import split_of
from models.crystals.templates import Templates, spread
from models.evaluation.metrics import flat, interval, markdown
from models.evaluation.rows import read_table, write_table
from models.infra.files import ROOT, file_hash, read_json, write_text
from models.infra.shards import Shard
from models.networks.layers import to_atoms
from models.networks.proposals import diffuse, head_properties, presentable
from models.networks.sampler import Sampler, load_generator
from models.networks.settings import MISSION, GeneratorSettings

UNGUIDED = ["--gradient-scale", 0, "--cfg-scale", 0, "--proposals", 1, "--best-of", 1]
DE_NOVO = ["--noise-level", "1", "--noise-scale", "1"]
SETS = {
    "template start": [],
    "de novo": DE_NOVO,
    "substitution": ["--method", "substitution"],
    "held-out layers": ["--method", "held-out"],
}
METRICS = [
    "one_2d_component_rate",
    "distance_valid_rate",
    "smact_valid_rate",
    "rmsd_relaxed_A",
    "stable_rate",
    "unique_rate",
    "novel_rate",
    "sun_rate",
]
GUESSING = ("template start", "de novo", "substitution")
TRIES = 20


def judged(name: str, flags: list[str], args) -> dict:
    """Metrics of one set, drawn and judged by the project's own scripts."""
    folder = args.out / name.replace(" ", "_")
    run = lambda script, *flags: subprocess.run(
        [sys.executable, ROOT / script, *map(str, flags)], check=True, cwd=ROOT
    )
    generate = [
        "--db",
        args.db,
        "--checkpoint",
        args.checkpoint,
        "--num",
        args.num,
        "--seed",
        args.seed,
        "--resume",
    ]
    run("structure_generator.py", *generate, "--out", folder / "cifs", *UNGUIDED, *flags)
    judge = [
        "--cifs",
        folder / "cifs",
        "--out",
        folder,
        "--novelty-db",
        args.db,
        "--jobs",
        args.jobs,
        "--resume",
        "--compare",
    ]
    run(
        "evaluate_external.py",
        *judge,
        "--oracle",
        "none",
        "--second-potential",
        "none",
        "--shortlist",
        0,
        "--phonons",
        0,
    )
    metrics = read_json(folder / "metrics.json")["metrics"]
    rmsd = read_table(folder / "metrics.csv")["rmsd_relaxed_A"].dropna()
    return {
        "rmsd_median_A": median(rmsd.to_numpy(), args.seed),
        **{metric: metrics[metric] for metric in METRICS},
    }


def median(sample: np.ndarray, seed: int, draws: int = 2000) -> dict:
    """Median with its bootstrap interval."""
    medians = np.median(
        sample[np.random.default_rng(seed).integers(len(sample), size=(draws, len(sample)))], axis=1
    )
    return {
        "value": float(np.median(sample)),
        "ci95": np.percentile(medians, [2.5, 97.5]).tolist(),
        "n": len(sample),
    }


def targets(args) -> dict:
    """Formula -> the stablest layer of it, of random formulas of the test split."""
    found = {}
    rows = ase.db.connect(args.db).select(f"natoms<=20,ehull<={args.max_e_hull}")
    for row in sorted(rows, key=lambda row: row.ehull):
        formula = reduced_formula(row.toatoms())
        if split_of(formula) == "test" and formula not in found:
            try:
                found[formula] = extract_layer(row.toatoms()).atoms
            except NotALayer:
                continue
    chosen = np.random.default_rng(args.seed).permutation(sorted(found))[: args.formulas]
    return {str(formula): found[formula] for formula in chosen}


def guesses(method: str, truth, starts: list, trained: tuple, generator) -> tuple[list, list[float]]:
    """TRIES layers of the formula of `truth`, and the E_hull that the model's head gives each.

    Args:
        starts: the formula in its nearest prototypes.
        trained: model and diffusion.
    """
    settings = GeneratorSettings(formula=reduced_formula(truth), guide=MISSION)
    if method == "de novo":
        settings = replace(settings, noise_level=1.0, noise_scale=1.0)
        starts = [("", truth)] * TRIES  # of the truth its atoms are given, not their places
    if method == "substitution":
        layers = [atoms for _, atoms in starts]
    else:
        sampler = Sampler(*trained, settings, generator)
        _, drawn = diffuse([[start] for start in starts], sampler)
        layers = [presentable(atoms, settings.symprec) for atoms in to_atoms(drawn)]
    return layers, head_properties(trained[0], layers)[:, 1].tolist()


def matches(args) -> dict:
    """Share of the test formulas whose stablest layer is the first guess, one of TRIES, or the one that the
    E_hull head ranks first.
    """
    trained = load_generator(args.checkpoint)
    templates = Templates.read(args.db)
    wanted, shard = targets(args), Shard(args.out / "matches.jsonl", True)
    identity = f"{file_hash(args.checkpoint)} {args.db} {args.seed}"
    for k, (formula, truth) in enumerate(tqdm(wanted.items(), desc="formulas", mininterval=2)):
        if f"{identity} {formula}" in shard.rows:
            continue
        target, hits = Fingerprint(truth).structure, {}
        try:
            starts = spread(templates, formula, TRIES)
        except (
            ValueError
        ):  # no layer of another formula has its amounts: a miss of every method that needs one
            starts = []
        for method in GUESSING:
            generator = torch.Generator().manual_seed(args.seed * 1_000_003 + k)
            if not starts and method != "de novo":
                hits[method] = {"found": [False] * TRIES, "first": 0}
                continue
            layers, e_hull = guesses(method, truth, starts, trained, generator)
            found = [bool(MATCHER.fit(Fingerprint(layer).structure, target)) for layer in layers]
            hits[method] = {"found": found, "first": int(np.argmin(e_hull))}
        shard.append(f"{identity} {formula}", hits)
    rows = [shard.rows[f"{identity} {formula}"] for formula in wanted]
    rate = lambda test: interval(np.array([float(test(row)) for row in rows]), args.seed, rate=True)
    return {
        method: {
            "match@1": rate(lambda row: row[method]["found"][0]),
            f"match@{TRIES}": rate(lambda row: any(row[method]["found"])),
            "match@1, ranked by the E_hull head": rate(
                lambda row: row[method]["found"][row[method]["first"]]
            ),
        }
        for method in GUESSING
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--db", type=Path, default=Path("data/her2d.db"), help="templates, held-out layers, and what is novel"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("models/weights/best_diffusion_model.pth"),
        help="from stage 3",
    )
    parser.add_argument("--num", type=int, default=256, help="structures a set")
    parser.add_argument("--formulas", type=int, default=100, help="held-out formulas to ask for")
    parser.add_argument(
        "--max-e-hull", type=float, default=0.3, help="of the layers that are to be found, eV/atom"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the potential")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_generator"), help="folder")
    args = parser.parse_args()
    args.db, args.checkpoint, args.out = (path.resolve() for path in (args.db, args.checkpoint, args.out))
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = matches(args)
    sets = {name: judged(name, flags, args) | found.get(name, {}) for name, flags in SETS.items()}
    write_text(args.out / "table.md", markdown(sets) + "\n")
    write_table(args.out / "table.csv", flat(sets), ["set", "metric", "value", "low95", "high95", "n"])
    print(markdown(sets))


if __name__ == "__main__":
    main()
