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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from tqdm import tqdm

from models.crystals.matching import MATCHER, Fingerprint, layer_group
from models.crystals.split import split_of
from models.crystals.templates import Templates, spread
from models.evaluation.metrics import flat, interval, markdown
from models.evaluation.rows import read_table, write_table
from models.infra.files import ROOT, file_hash, read_json, shipped, write_text
from models.infra.shards import Shard
from models.networks.layers import to_atoms
from models.networks.proposals import diffuse, head_properties, presentable
from models.networks.sampler import Sampler, load_generator
from models.networks.settings import MISSION, GeneratorSettings

UNGUIDED = ["--gradient-scale", 0, "--cfg-scale", 0, "--proposals", 1, "--best-of", 1, "--elements", "any"]
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


@dataclass(frozen=True)
class Way:
    """A way of guessing the structure of a formula.

    Attributes:
        noise_level, noise_scale, symmetry: as in GeneratorSettings.
        truth: start from the true layer (its orbits are given; from pure noise nothing else of it is), not
            from the formula in its nearest prototypes.
        diffused: whether the model has a part in it.
    """

    noise_level: float = 0.5
    symmetry: str = "none"
    noise_scale: float = 0.0
    truth: bool = False
    diffused: bool = True


WAYS = {
    "template start": Way(),
    "template start, symmetric": Way(symmetry="template"),
    "t0 = 0.7": Way(0.7),
    "t0 = 0.7, symmetric": Way(0.7, "template"),
    "de novo": Way(1.0, noise_scale=1.0, truth=True),
    "de novo, symmetric, orbits of a prototype": Way(1.0, "template"),
    "de novo, symmetric, orbits of the truth": Way(1.0, "template", truth=True),
    "substitution": Way(diffused=False),
}


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


def targets(templates: Templates, args) -> dict[str, Atoms]:
    """Formula -> the stablest layer of it, of random formulas of the test split."""
    found = {}
    for (_, atoms), composition in zip(templates.structures, templates.compositions):  # the stablest first
        formula = composition.reduced_formula
        if split_of(formula) == "test":
            found.setdefault(formula, atoms)
    chosen = np.random.default_rng(args.seed).permutation(sorted(found))[: args.formulas]
    return {str(formula): found[formula] for formula in chosen}


def guesses(way: Way, starts: list, trained: tuple, seed: int) -> list[Atoms]:
    """A layer from each start (name, layer with the elements of its formula).

    Args:
        trained: model and diffusion.
    """
    if not way.diffused:
        return [atoms for _, atoms in starts]
    settings = GeneratorSettings(
        formula="each start's own",
        guide=MISSION,
        noise_level=way.noise_level,
        noise_scale=way.noise_scale,
        symmetry=way.symmetry,
    )
    found = []
    for first in range(0, len(starts), settings.batch_size):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + first)
        batch = [[start] for start in starts[first : first + settings.batch_size]]
        _, drawn = diffuse(batch, Sampler(*trained, settings, generator))
        found += [presentable(atoms, settings.symprec) for atoms in to_atoms(drawn)]
    return found


def verdict(truth: Atoms, starts: list, found: list[Atoms], model) -> dict:
    """What became of the guesses at one formula: which match the truth and how closely, their layer groups
    beside those of their starts, and which one the E_hull head ranks first.
    """
    target = Fingerprint(truth).structure
    rms = [MATCHER.get_rms_dist(Fingerprint(layer).structure, target) for layer in found]
    return {
        "found": [distance is not None for distance in rms],
        "rms": [None if distance is None else round(distance[0], 4) for distance in rms],
        "groups": [layer_group(layer) for layer in found],
        "start_groups": [layer_group(layer) for _, layer in starts],
        "first": int(head_properties(model, found)[:, 1].argmin()),
    }


MISS = {"found": [False], "rms": [None], "groups": [], "start_groups": [], "first": 0}


def matches(args) -> dict:
    """For each way: how often the stablest layer of a test formula is the first guess, one of all, or the one
    that the E_hull head ranks first; and how much symmetry is left.
    """
    trained, templates = load_generator(args.checkpoint), Templates.read(args.db, max_e_hull=args.max_e_hull)
    wanted, shard, tables = targets(templates, args), Shard(args.out / "matches.jsonl", True), {}
    nearest = {}
    for formula in tqdm(wanted, desc="prototypes", mininterval=2):
        try:
            nearest[formula] = spread(templates, formula, args.tries)
        except ValueError:  # no other layer has these amounts: a miss of every way that needs a prototype
            nearest[formula] = []
    identity = f"{file_hash(args.checkpoint)} {file_hash(args.db)} {args.seed} {args.tries} {args.formulas}"
    for way, settings in tqdm(WAYS.items(), desc="ways", mininterval=2):
        if f"{identity} {settings}" not in shard.rows:
            begin = nearest
            if settings.truth:
                begin = {formula: [("", truth)] * args.tries for formula, truth in wanted.items()}
            drawn = guesses(
                settings, [start for starts in begin.values() for start in starts], trained, args.seed
            )
            rows, done = [], 0
            for formula, starts in begin.items():
                mine = drawn[done : done + len(starts)]
                done += len(starts)
                rows.append(verdict(wanted[formula], starts, mine, trained[0]) if starts else MISS)
            shard.append(f"{identity} {settings}", {"rows": rows})
        tables[way] = summarised(shard.rows[f"{identity} {settings}"]["rows"], args)
    return tables


def summarised(rows: list[dict], args) -> dict:
    """Rates over the formulas and over their guesses."""
    rate = lambda sample: interval(np.array(sample, float), args.seed, rate=True)
    first = [row["rms"][0] for row in rows if row["rms"][0] is not None]
    kept = []
    for row in rows:
        pairs = zip(row["groups"], row["start_groups"])
        kept += [own == start for own, start in pairs if start not in ("p1", "?")]
    found = {
        "match@1": rate([row["found"][0] for row in rows]),
        f"match@{args.tries}": rate([any(row["found"]) for row in rows]),
        "match@1, ranked by the E_hull head": rate([row["found"][row["first"]] for row in rows]),
        "symmetry beyond p1": rate([group not in ("p1", "?") for row in rows for group in row["groups"]]),
        "layer group of its start": rate(kept),
    }
    if first:
        found["normalised RMS of the first guess, median"] = median(np.array(first), args.seed)
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--db",
        type=Path,
        default=shipped("data/her2d.db"),
        help="templates, held-out layers, and what is novel",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=shipped("models/weights/best_diffusion_model.pth"),
        help="from stage 3",
    )
    parser.add_argument("--num", type=int, default=256, help="structures a set")
    parser.add_argument("--formulas", type=int, default=100, help="held-out formulas to ask for")
    parser.add_argument("--tries", type=int, default=20, help="guesses a formula")
    parser.add_argument("--only-formulas", action="store_true", help="judge no sets: no potential is needed")
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
    sets = matches(args)
    for name, flags in () if args.only_formulas else SETS.items():
        sets[name] = judged(name, flags, args) | sets.get(name, {})
    write_text(args.out / "table.md", markdown(sets) + "\n")
    write_table(args.out / "table.csv", flat(sets), ["set", "metric", "value", "low95", "high95", "n"])
    print(markdown(sets))


if __name__ == "__main__":
    main()
