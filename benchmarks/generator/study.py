"""The benchmark of the generator: guesses at held-out formulas, and sets judged by the evaluator."""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from tqdm import tqdm

from benchmarks.generator import QUICK_FORMULAS, RELAXED
from models.crystals.layer import pack_atoms, unpack_atoms
from models.crystals.matching import MATCHER, Fingerprint, layer_group
from models.crystals.orbits import Orbits
from models.crystals.split import split_of
from models.crystals.templates import Templates, spread
from models.evaluation.metrics import flat, interval, markdown
from models.evaluation.ranking import by_energy, relaxations
from models.evaluation.rows import read_table, write_table
from models.evaluation.schema import GENERATED
from models.evaluation.settings import Settings
from models.infra.files import ROOT, file_hash, read_json, write_text
from models.infra.shards import Shard
from models.networks.proposals import Start, drawn, head_properties, with_formula
from models.networks.sampler import Sampler, load_generator
from models.networks.settings import MISSION, GeneratorSettings

UNGUIDED = ["--gradient-scale", 0, "--cfg-scale", 0, "--proposals", 1, "--best-of", 1, "--elements", "any"]
SETS = {
    "template start": [],
    "pure noise, orbits drawn": ["--noise-level", 1, "--orbits", "drawn"],
    "pure noise, no symmetry": ["--noise-level", 1, "--noise-scale", 1, "--symmetry", "none"],
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
UNKNOWN = ("p1", "?")  # layer groups that are no symmetry


@dataclass(frozen=True)
class Way:
    """A way of guessing the structure of a formula.

    Attributes:
        noise_level, noise_scale, symmetry: as in GeneratorSettings.
        start: the formula in its nearest "prototypes", one after the other; the "truth", whose orbits are
            given then (from pure noise nothing else of it is); or a layer group and orbits "drawn".
        diffused: whether the model has a part in it.
        quick: whether --quick asks for it.
    """

    noise_level: float = 0.5
    symmetry: str = "template"
    noise_scale: float = 0.0
    start: str = "prototypes"
    diffused: bool = True
    quick: bool = False


WAYS = {
    "template start": Way(quick=True),
    "template start, no symmetry": Way(symmetry="none"),
    "t0 = 0.7": Way(0.7),
    "t0 = 0.7, no symmetry": Way(0.7, "none"),
    "pure noise, truth orbits": Way(1.0, start="truth", quick=True),
    "pure noise, orbits drawn": Way(1.0, start="drawn", quick=True),
    "pure noise, orbits of prototypes": Way(1.0),
    "pure noise, no symmetry": Way(1.0, "none", 1.0, start="truth"),
    "substitution": Way(diffused=False, quick=True),
}


# --- sets, judged by the evaluator


def judged(name: str, flags: list, args: argparse.Namespace) -> dict:
    """Metrics of one set, drawn and judged by the project's own scripts."""
    folder = args.out / name.replace(" ", "_").replace(",", "")
    generate = ["--db", args.db, "--checkpoint", args.checkpoint, "--num", args.num, "--seed", args.seed]
    script_run("structure_generator.py", *generate, "--resume", "--out", folder / "cifs", *UNGUIDED, *flags)
    judge = ["--cifs", folder / "cifs", "--out", folder, "--novelty-db", args.db, "--jobs", args.jobs]
    without = ["--oracle", "none", "--second-potential", "none", "--shortlist", 0, "--phonons", 0]
    script_run("evaluate_external.py", *judge, "--resume", "--compare", *without)
    metrics = read_json(folder / "metrics.json")["metrics"]
    rows = read_table(folder / "metrics.csv")
    found = {"rmsd_median_A": median(rows["rmsd_relaxed_A"].dropna().to_numpy(), args.seed)}
    found |= {metric: metrics[metric] for metric in METRICS}
    return found | prototypes(rows, read_table(folder / "cifs/generated.csv", GENERATED), args.seed)


def script_run(script: str, *flags) -> None:
    """A script of the project with these flags, to its end."""
    subprocess.run([sys.executable, ROOT / script, *map(str, flags)], check=True, cwd=ROOT)


def prototypes(judged_rows, drawn_rows, seed: int) -> dict:
    """Shares of structures whose layer group and orbits no layer of the database has, and of stable ones.

    Args:
        judged_rows, drawn_rows: metrics.csv and generated.csv of a set.
    """
    both = judged_rows.merge(drawn_rows[["material_id", "prototype_known"]], on="material_id")
    new = (~both["prototype_known"].astype("boolean")).fillna(False)
    stable = both["stable"].astype("boolean").fillna(False)
    rate = lambda column: interval(column.to_numpy(float), seed, rate=True)
    return {"new prototypes": rate(new), "new prototypes, stable": rate(new & stable)}


def median(sample: np.ndarray, seed: int, draws: int = 2000) -> dict:
    """Median with its bootstrap interval."""
    chosen = np.random.default_rng(seed).integers(len(sample), size=(draws, len(sample)))
    low, high = np.percentile(np.median(sample[chosen], axis=1), [2.5, 97.5])
    return {"value": float(np.median(sample)), "ci95": [float(low), float(high)], "n": len(sample)}


# --- the structure of a formula


def targets(templates: Templates, args: argparse.Namespace) -> dict[str, Atoms]:
    """Formula -> the stablest layer of it, of random formulas of the test split."""
    found = {}
    for (_, atoms), composition in zip(templates.structures, templates.compositions):  # the stablest first
        formula = composition.reduced_formula
        if split_of(formula) == "test":
            found.setdefault(formula, atoms)
    chosen = np.random.default_rng(args.seed).permutation(sorted(found))[: args.formulas]
    return {str(formula): found[formula] for formula in chosen}


class Starts:
    """What the guesses at each formula start from.

    Args:
        templates: the database.
        wanted: formula -> the layer that is to be found.
        tries: guesses a formula.
    """

    def __init__(self, templates: Templates, wanted: dict[str, Atoms], tries: int, seed: int):
        self.templates, self.wanted, self.tries, self.seed = templates, wanted, tries, seed

    def of(self, kind: str) -> dict[str, list[Start]]:
        """Formula -> `tries` starts of a kind (Way.start); none where the database has no such amounts, which
        is a miss.
        """
        if kind == "truth":
            return {formula: [("", truth)] * self.tries for formula, truth in self.wanted.items()}
        make = self._nearest if kind == "prototypes" else self._drawing()
        found = {}
        for formula in tqdm(self.wanted, desc=f"starts, {kind}", mininterval=2):
            try:
                found[formula] = make(formula)
            except ValueError:
                found[formula] = []
        return found

    def _nearest(self, formula: str) -> list[Start]:
        return spread(self.templates, formula, self.tries)

    def _drawing(self):
        """Draws orbits for a formula from a database without any layer of the formulas that are asked for."""
        others = []
        for pair, composition in zip(self.templates.structures, self.templates.compositions):
            if composition.reduced_formula not in self.wanted:
                others.append(pair)
        unseen, orbits = Templates(others), Orbits(others)
        rng = np.random.default_rng(self.seed)

        def draw(formula: str) -> list[Start]:
            hosts, starts = unseen.select(formula).structures, []
            for _ in range(self.tries):
                name, atoms = orbits.draw(hosts, rng)
                starts.append((name, with_formula(atoms, formula, rng)))
            return starts

        return draw


def guesses(way: Way, starts: list[Start], trained: tuple, seed: int) -> list[Atoms | None]:
    """A layer from each start (with the elements of its formula); None where it failed.

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
    batches = range(0, len(starts), settings.batch_size)
    for first in tqdm(batches, desc="batches", mininterval=2, leave=False):
        sampler = Sampler(*trained, settings, torch.Generator().manual_seed(seed * 1_000_003 + first))
        found += [one.atoms for one in drawn(starts[first : first + settings.batch_size], sampler)]
    return found


def matching(layer: Atoms | None, truth: Atoms) -> float | None:
    """Normalised RMS distance of a layer that matches the truth; None where it does not."""
    if layer is None:
        return None
    distance = MATCHER.get_rms_dist(Fingerprint(layer).structure, Fingerprint(truth).structure)
    return None if distance is None else round(distance[0], 4)


def verdict(truth: Atoms, starts: list[Start], found: list[Atoms | None], model, database: Templates) -> dict:
    """What became of the guesses at one formula: which match the truth and how closely, their layer groups
    beside those of their starts, which are of a new prototype, and which one the E_hull head ranks first.
    """
    distances = [matching(layer, truth) for layer in found]
    drawn_ones = [k for k, layer in enumerate(found) if layer is not None]
    first = 0
    if drawn_ones:
        heads = head_properties(model, [found[k] for k in drawn_ones])
        first = drawn_ones[int(heads[:, 1].argmin())]
    return {
        "rms": distances,
        "groups": ["?" if layer is None else layer_group(layer) for layer in found],
        "start_groups": [layer_group(layer) for _, layer in starts],
        "new": [not database.holds_prototype(found[k]) for k in drawn_ones],
        "first": first,
    }


MISS = {"rms": [None], "groups": [], "start_groups": [], "new": [], "first": 0}


def by_potential(truth: Atoms, found: list[Atoms | None], args: argparse.Namespace, shard: Shard) -> dict:
    """The guesses at one formula relaxed by the potential: whether the lowest is the truth, how far the first
    is from where it relaxes (Å), and the core-seconds of it.
    """
    layers = {f"{k}": layer for k, layer in enumerate(found) if layer is not None}
    relaxed, _ = relaxations(layers, Settings(jobs=args.jobs), shard)
    order = by_energy(relaxed)
    return {
        "lowest": bool(order) and matching(relaxed[order[0]].atoms, truth) is not None,
        "rmsd": relaxed["0"].rmsd if "0" in relaxed else None,
        "seconds": sum(one.seconds for one in relaxed.values()),
    }


def matches(args: argparse.Namespace) -> dict:
    """For each way: how often the stablest layer of a test formula is the first guess, one of all, or the one
    that the E_hull head or the potential ranks first; how much symmetry is left, and what it costs.
    """
    trained, templates = load_generator(args.checkpoint), Templates.read(args.db, max_e_hull=args.max_e_hull)
    wanted, shard, tables = targets(templates, args), Shard(args.out / "matches.jsonl", True), {}
    relaxed = Shard(args.out / "relaxed.jsonl", True)
    starts, begun = Starts(templates, wanted, args.tries, args.seed), {}
    identity = [file_hash(args.checkpoint), file_hash(args.db), args.seed, args.tries, args.formulas]
    for name, way in WAYS.items():
        if args.quick and not way.quick:
            continue
        key = " ".join(map(str, [*identity, way]))
        if key not in shard.rows:
            if way.start not in begun:
                begun[way.start] = starts.of(way.start)
            begin, before = begun[way.start], time.process_time()
            found = guesses(way, [start for own in begin.values() for start in own], trained, args.seed)
            seconds, rows = time.process_time() - before, []
            for formula, own in tqdm(begin.items(), desc=name, mininterval=2):
                mine, found = found[: len(own)], found[len(own) :]
                row = verdict(wanted[formula], own, mine, trained[0], templates) if own else dict(MISS)
                rows.append(row | {"guesses": [pack_atoms(layer) for layer in mine]})
            shard.append(key, {"rows": rows, "seconds": seconds})
        done = shard.rows[key]
        judged_rows = []
        for truth, row in list(zip(wanted.values(), done["rows"]))[: args.relax]:
            if row["guesses"]:
                mine = [unpack_atoms(packed) for packed in row["guesses"]]
                judged_rows.append(by_potential(truth, mine, args, relaxed))
        tables[name] = summarised(done, args) | relaxed_summary(judged_rows, args)
    return tables


def summarised(done: dict, args: argparse.Namespace) -> dict:
    """Rates over the formulas; what is a share of guesses is averaged within each formula first, as guesses
    at one formula are alike.
    """
    rows = done["rows"]
    rate = lambda sample: interval(np.array(sample, float), args.seed, rate=True)
    kept, beyond, new, guessed = [], [], [], 0
    for row in rows:
        guessed += len(row["groups"])
        pairs = zip(row["groups"], row["start_groups"])
        add_mean(kept, [own == start for own, start in pairs if start not in UNKNOWN])
        add_mean(beyond, [group not in UNKNOWN for group in row["groups"]])
        add_mean(new, row["new"])
    found = {
        "match@1": rate([row["rms"][0] is not None for row in rows]),
        f"match@{args.tries}": rate([any(x is not None for x in row["rms"]) for row in rows]),
        "match@1, ranked by the E_hull head": rate([row["rms"][row["first"]] is not None for row in rows]),
        "symmetry beyond p1": rate(beyond),
        "layer group of its start": rate(kept),
        "new prototypes": rate(new),
        "core-seconds a guess": {
            "value": done["seconds"] / max(1, guessed),
            "ci95": [None, None],
            "n": guessed,
        },
    }
    first = [row["rms"][0] for row in rows if row["rms"][0] is not None]
    if first:
        found["normalised RMS of the first guess, median"] = median(np.array(first), args.seed)
    return found


def add_mean(means: list[float], sample: list) -> None:
    """Appends the mean of a sample that is not empty."""
    if sample:
        means.append(float(np.mean(sample)))


def relaxed_summary(rows: list[dict], args: argparse.Namespace) -> dict:
    """Figures of the formulas whose guesses were relaxed."""
    if not rows:
        return {}
    lowest = np.array([row["lowest"] for row in rows], float)
    seconds = np.array([row["seconds"] for row in rows])
    found = {
        "match@1, relaxed and ranked by the potential": interval(lowest, args.seed, rate=True),
        "core-seconds of that a formula": interval(seconds, args.seed),
    }
    rmsd = np.array([row["rmsd"] for row in rows if row["rmsd"] is not None])
    if len(rmsd):
        found["RMSD to relaxed of the first guess, median (Å)"] = median(rmsd, args.seed)
        found["RMSD to relaxed of the first guess, mean (Å)"] = interval(rmsd, args.seed)
    return found


def run(args: argparse.Namespace) -> None:
    """Fills the table and writes it."""
    args.db, args.checkpoint, args.out = (path.resolve() for path in (args.db, args.checkpoint, args.out))
    args.out.mkdir(parents=True, exist_ok=True)
    if args.relax is None:
        args.relax = 0 if args.quick else RELAXED
    if args.quick:
        args.formulas = min(args.formulas, QUICK_FORMULAS)
    torch.set_num_threads(1)
    sets = matches(args)
    for name, flags in () if args.only_formulas or args.quick else SETS.items():
        sets[name] = judged(name, flags, args) | sets.get(name, {})
    write_text(args.out / "table.md", markdown(sets) + "\n")
    write_table(args.out / "table.csv", flat(sets), ["set", "metric", "value", "low95", "high95", "n"])
    print(markdown(sets))
