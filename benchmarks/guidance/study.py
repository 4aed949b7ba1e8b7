"""Draws and judges the arms of the study of guidance, and holds them against each other."""

import argparse
import itertools
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from ase.io import write
from pymatgen.core import Composition
from scipy.stats import binomtest

import structure_generator
from benchmarks.guidance.arms import AGAIN, ARMS, BASE, FILTER, RANDOM, SEEDS, SWEEP, SWEEP_SEED, Arm
from geo_utils import evaluate
from models.crystals.layer import unpack_atoms
from models.crystals.matching import Fingerprint
from models.crystals.split import split_of
from models.crystals.structure_files import read_structures
from models.crystals.templates import Templates, best_assignment
from models.evaluation.columns import second_delta_g
from models.evaluation.figures import COLOURS, generated_structures, save
from models.evaluation.known import unique_of
from models.evaluation.metrics import (
    aggregate,
    effective_number,
    flat,
    interval,
    markdown,
    metric_samples,
    rate_ratio,
)
from models.evaluation.rows import is_true, join, read_table, records, write_table
from models.evaluation.schema import COLUMNS, GENERATED
from models.evaluation.schema import METRICS as SCHEMA
from models.evaluation.settings import Settings, needed_files
from models.evaluation.shortlist import DIMENET, DIMENET_STD
from models.evaluation.verdicts import is_stable
from models.infra.files import (
    ROOT,
    file_hash,
    plain,
    read_rows,
    write_rows,
    write_text,
)
from models.infra.shards import Shard
from models.networks.egnn import Heads
from models.networks.proposals import HEADS
from models.networks.settings import Guide, expected_distance
from models.physics.potentials import load_potential

EXTRA = ["template", *HEADS, "nfe"]  # of generated.csv
JUDGED_SCHEMA = (*SCHEMA, *(column for column in GENERATED if column.name in EXTRA))
HITS = HIT, CLOSE = "hit_rate_0.2eV", "hit_rate_0.1eV"
JUDGED = (*HITS, "mae_delta_g_h_oracle_eV", "delta_g_h_gap_eV")  # by the oracle
METRICS = [
    *HITS,
    "stable_rate",
    "two_d_rate",
    "valid_rate",
    "unique_rate",
    "novel_rate",
    "sun_rate",
    "mae_delta_g_h_dimenet_eV",
    "mae_delta_g_h_oracle_eV",
    "delta_g_h_gap_eV",
    "rmsd_relaxed_A",
]
TOP = 20
TOP_COLUMNS = [
    "material_id",
    "formula",
    "template",
    "layer_group",
    "e_hull_eV_per_atom",
    "delta_g_h_oracle_eV",
    "h_site",
    DIMENET,
    DIMENET_STD,
    "head_delta_g_h_eV",
    "delta_g_h_second_eV",
    "h_flags",
    "second_h_flags",
    "p_synth",
    "novel",
    "nearest_known",
]


# --- drawing and judging


def unless_done(path: Path, key: str, work):
    """Does `work` unless `path` says that it was done with the same key."""
    if not path.is_file() or path.read_text(encoding="utf-8") != key:
        work()
        write_text(path, key)


def draw(name: str, arm: Arm, seed: int, args) -> Path:
    """Folder with the structures of one arm and seed."""
    folder, count = (
        args.out / name.replace(" ", "_").replace(",", "") / str(seed),
        round(arm.share * args.num),
    )
    command = [*arm.flags, "--num", str(count), "--seed", str(seed + arm.shift), "--db", str(args.db)]
    command += ["--checkpoint", str(args.checkpoint), "--out", str(folder / "cifs")]
    resolved = plain(
        vars(structure_generator.build_parser().parse_args(command))
    )  # the defaults of today among them
    key = f"{json.dumps(resolved)} {file_hash(args.checkpoint)} {file_hash(args.db)}"
    run = lambda: subprocess.run(
        [sys.executable, str(ROOT / "structure_generator.py"), *command, "--resume"],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    unless_done(folder / "drawn.txt", key, run)
    return folder


def judge(folder: Path, arm: Arm, args) -> pd.DataFrame:
    """Rows of the evaluator with what the generator says of each structure; a process that died is an error,
    not a miss.
    """
    settings = Settings(
        oracle="relaxed" if arm.oracle else "none",
        oracle_for="stable",
        second_potential="none",
        shortlist=0,
        phonons=0,
        jobs=args.jobs,
        novelty_db=args.db,
        dimenet=args.dimenet,
    )

    def run():
        drawn = read_table(folder / "cifs/generated.csv", GENERATED)
        rows = evaluate(read_structures(folder / "cifs"), settings, folder, resume=True).rows
        if rows["error"].str.contains("worker died").any():
            raise SystemExit(f"a process died while {folder} was judged: start the study again")
        rows = rows.merge(drawn[["material_id", *EXTRA]], on="material_id", how="left", validate="1:1")
        write_table(folder / "metrics.csv", rows, [*COLUMNS, *EXTRA])

    hashes = [
        file_hash(path)
        for path in (folder / "cifs/generated.jsonl", folder / "cifs/generated.csv", *needed_files(settings))
    ]
    unless_done(folder / "judged.txt", f"{settings} {hashes}", run)
    return read_table(folder / "metrics.csv", JUDGED_SCHEMA).assign(folder=str(folder))


def scored(arms: dict[str, Arm], seeds, args) -> dict[str, pd.DataFrame]:
    """Table of every arm, all seeds."""
    tasks = [(name, arm, seed) for name, arm in arms.items() for seed in seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = list(pool.map(lambda task: draw(*task, args), tasks))
    found = {name: [] for name in arms}
    for (name, arm, _), folder in zip(tasks, folders):
        found[name].append(judge(folder, arm, args))
    return {name: unique_over_seeds(pd.concat(tables, ignore_index=True)) for name, tables in found.items()}


@cache
def results(folder: str, name: str) -> dict[str, dict]:
    """What the evaluator kept of a folder, by material_id."""
    return {key.split(":")[0]: row for key, row in Shard(Path(folder) / f"{name}.jsonl").rows.items()}


def unique_over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `unique` told over several seeds: the most stable of each material of the arm."""
    relaxed = {folder: results(folder, "relaxed") for folder in rows["folder"].unique()}
    fingerprints = {}
    for k in np.flatnonzero(rows["unique"].notna()):
        folder, name = rows["folder"].iloc[k], rows["material_id"].iloc[k]
        fingerprints[int(k)] = Fingerprint(unpack_atoms(relaxed[folder][name]["relaxed"]))
    kept = unique_of(fingerprints, dict(enumerate(rows["e_hull_eV_per_atom"])))
    unique = [k in kept if k in fingerprints else None for k in range(len(rows))]
    return rows.assign(unique=pd.array(unique, dtype="boolean"))


def core_seconds(rows: pd.DataFrame) -> tuple[float, float]:
    """Seconds of one core a structure: drawing it, and judging it (of those that were timed)."""
    judged, folders = 0.0, rows["folder"].unique()
    for name in ("relaxed", "adsorbed"):
        times = []
        for folder, some in rows.groupby("folder"):
            kept = results(folder, name)
            times += [kept[key].get("seconds") for key in some["material_id"] if key in kept]
        timed = [time for time in times if time is not None]
        judged += np.mean(timed) * len(times) / len(rows) if timed else math.nan
    return sum(cost(folder)["seconds"] for folder in folders) / len(rows), judged


@cache
def cost(folder: str) -> dict[str, float]:
    """Function evaluations and seconds of one core that all that was drawn in a folder took, what was not
    kept included.
    """
    drawn = read_table(Path(folder) / "cifs/generated.csv", GENERATED)
    return {column: float(drawn[column].sum()) for column in ("nfe", "seconds")}


# --- statistics


def paired_p(own: pd.DataFrame, other: pd.DataFrame, metric: str) -> dict:
    """McNemar's exact test on structures that started from the same template with the same seed, and how many
    there are.
    """
    hits = [by_start(rows, metric) for rows in (own, other)]
    both = hits[0].keys() & hits[1].keys()
    gained = sum(hits[0][key] > hits[1][key] for key in both)
    lost = sum(hits[0][key] < hits[1][key] for key in both)
    return {
        "value": binomtest(gained, gained + lost).pvalue if gained + lost else 1.0,
        "ci95": [None, None],
        "n": len(both),
    }


def by_start(rows: pd.DataFrame, metric: str) -> dict[tuple, float]:
    """A rate's sample by what each structure started from: seed, number and template."""
    seeds = [Path(folder).name for folder in rows["folder"]]
    numbers = [name.split("_")[1] for name in rows["material_id"]]
    return dict(zip(zip(seeds, numbers, rows["template"]), metric_samples(rows)[metric]))


def power(base: float, factor: float, n: int, base_n: int, bound: float, seed: int = 0) -> float:
    """How often n structures of an arm, beside base_n unguided ones, show a ratio of at least `bound` if
    factor is the true one.
    """
    rng = np.random.default_rng(seed)
    draws = zip(rng.binomial(n, min(1.0, factor * base), 2000), rng.binomial(base_n, base, 2000))
    return float(
        np.mean([rate_ratio(np.arange(n) < a, np.arange(base_n) < b)["ci95"][0] >= bound for a, b in draws])
    )


def ranked(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The unique rows, best first: by L_target of the heads; and those that the potential calls stable by
    DimeNet++ and its spread.
    """
    unique = rows[is_true(rows["unique"])]
    stable = unique[is_stable(unique) & unique[DIMENET].notna()]
    guide = Guide()
    by_dimenet = expected_distance(*tensor(stable, [DIMENET, DIMENET_STD]).T)
    orders = {"DimeNet++": stable.iloc[by_dimenet.argsort().tolist()]}
    if unique[HEADS].notna().all(axis=None):
        losses = guide.loss(Heads(*tensor(unique, HEADS).T))
        orders["heads"] = unique.iloc[losses.argsort().tolist()]
    return orders


def tensor(rows: pd.DataFrame, columns: list[str]) -> torch.Tensor:
    """[n, columns] numbers; a spread that is missing is 0."""
    return torch.tensor(rows[columns].fillna(0.0).to_numpy("float32"))


def plain_entry(number: float | None, n: int) -> dict:
    """A number without an interval, as an entry of a table."""
    return {"value": number, "ci95": [None, None], "n": n}


def summary(name: str, rows: pd.DataFrame, arm: Arm, others: dict[str, pd.DataFrame]) -> dict:
    """Metrics of an arm: the evaluator's, distinct hits, ratios to the arms that it must beat, diversity,
    cost.
    """
    count = len(rows)
    found = {
        metric: entry
        for metric, entry in aggregate(rows).items()
        if metric in METRICS and (arm.oracle or metric not in JUDGED)
    }
    formulas, groups = rows["formula"][rows["formula"] != ""], rows["layer_group"]
    kinds = {
        "elements": [element.symbol for formula in formulas for element in Composition(formula)],
        "templates": list(rows["template"]),
        "layer groups": list(groups[groups != ""]),
    }
    found |= {
        f"effective number of {label}": plain_entry(effective_number(labels), count)
        for label, labels in kinds.items()
    }
    found["NFE a structure"] = plain_entry(
        float(sum(cost(folder)["nfe"] for folder in rows["folder"].unique())) / count, count
    )
    return found | judged_by_oracle(name, rows, arm, others) if arm.oracle else found


def judged_by_oracle(name: str, rows: pd.DataFrame, arm: Arm, others: dict[str, pd.DataFrame]) -> dict:
    """What of the summary needs the oracle."""
    samples, found = metric_samples(rows), {}
    unseen = rows[[formula != "" and split_of(formula) == "test" for formula in rows["formula"]]]
    distinct = lambda rows, metric: metric_samples(rows)[metric] * is_true(rows["unique"])
    for metric in HITS:
        found[f"distinct {metric}"] = interval(distinct(rows, metric), rate=True)
    found[f"{HIT}, formulas that no stage learned from"] = interval(metric_samples(unseen)[HIT], rate=True)
    found["delta_g_h_gap_eV, formulas that no stage learned from"] = aggregate(unseen)["delta_g_h_gap_eV"]
    if others and name not in (BASE, AGAIN):
        unguided = pd.concat([others[BASE], others[AGAIN]], ignore_index=True)
        rivals = {BASE: unguided, FILTER: others[FILTER], RANDOM: others[RANDOM]}
        for rival, metric in itertools.product([rival for rival in rivals if rival != name], HITS):
            found[f"{metric} over {rival}"] = rate_ratio(
                samples[metric], metric_samples(rivals[rival])[metric]
            )
            found[f"distinct {metric} over {rival}"] = rate_ratio(
                distinct(rows, metric), distinct(rivals[rival], metric)
            )
        if arm.paired:
            found[f"p of {HIT}, paired with {BASE}"] = paired_p(rows, others[BASE], HIT)
    for label, best in ranked(rows).items():
        oracle = abs(best[:TOP]["delta_g_h_oracle_eV"].dropna())
        found[f"mean |ΔG_H| of the top {TOP} by {label}"] = interval(oracle.to_numpy())
        found[f"hits among the top {TOP} by {label}"] = plain_entry(
            int(metric_samples(best[:TOP])[HIT].sum()), len(best[:TOP])
        )
    (drawing, judging), hits = core_seconds(rows), samples[HIT].sum()
    found["core-seconds a hit, drawing"] = plain_entry(
        drawing * len(rows) / hits if hits else None, int(hits)
    )
    found["core-seconds a hit, judging"] = plain_entry(
        judging * len(rows) / hits if hits else None, int(hits)
    )
    return found


# --- what comes out


def nearest_known(templates: Templates, formula: str) -> str:
    """The most alike layer of the database with the same amounts, and how many steps of Pettifor's scale
    away.
    """
    wanted = Composition(formula).reduced_composition
    fits = [
        (fit[0], own.reduced_formula)
        for own in templates.compositions
        if (fit := best_assignment(own, wanted))
    ]
    return "{1} ({0})".format(*min(fits)) if fits else ""


def write_top(rows: pd.DataFrame, args):
    """The best of an arm by DimeNet++: relaxed layers and poses of H as CIFs, what the oracle and a second
    potential say, a figure.
    """
    folder, best, templates = args.top, ranked(rows)["DimeNet++"][:TOP], Templates.read(args.db)
    relaxed, poses, known = {}, {}, []
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.cif"):
        stale.unlink()
    for place, row in enumerate(records(best), 1):
        name, identity = row["material_id"], f"{place:02d}_{row['formula'].replace('(', '').replace(')', '')}"
        known.append(row["known_as"] or nearest_known(templates, row["formula"]))
        relaxed[identity] = unpack_atoms(results(row["folder"], "relaxed")[name]["relaxed"])
        pose = unpack_atoms(results(row["folder"], "adsorbed")[name]["pose"])
        write(folder / f"{identity}.cif", relaxed[identity])
        if pose is not None:
            poses[identity] = pose
            write(folder / f"{identity}_H.cif", pose)
    best = best.assign(material_id=list(relaxed), nearest_known=known, rank=range(1, len(best) + 1))
    settings = Settings(shortlist=TOP, jobs=args.jobs)
    second = load_potential(settings.second_potential)
    best = join(best, second_delta_g(relaxed, second, settings, Shard(args.out / "second.jsonl")))
    write_table(folder / "top20.csv", best, TOP_COLUMNS)
    generated_structures(best, relaxed, poses, folder / "top20.png", TOP)


def rediscovered(arms: dict) -> list[dict]:
    """Which of the known active layers that no stage has learned from (rediscovery.csv) are among an arm's
    stable structures.

    Their geometry, without its elements, may be among the templates: the arm of random elements shows what
    that is worth.
    """
    wanted, found = read_rows(Path(__file__).with_name("rediscovery.csv")), []
    for name, drawn in arms.items():
        stable = records(drawn[is_stable(drawn)])
        for known in wanted:
            rows = [
                row
                for row in stable
                if row["formula"] == known["formula"] and row["layer_group"] in known["layer_groups"].split()
            ]
            found.append(
                {
                    "arm": name,
                    "formula": known["formula"],
                    "times": len(rows),
                    "of": len(drawn),
                    "source": known["source"],
                    "delta_g_h_oracle_eV": next((row["delta_g_h_oracle_eV"] for row in rows), ""),
                }
            )
    return found


def draw_figure(tables: dict, sweep: dict, path: Path):
    """Hit rates of all arms and settings, and mean |ΔG_H| by DimeNet++ and by the oracle, with their
    intervals.
    """
    figure, axes = plt.subplots(
        1, 3, figsize=(14, 0.9 + 0.38 * (len(tables) + len(sweep))), sharey=True, layout="constrained"
    )
    names = [*tables, *sweep]
    panels = [
        (
            axes[0],
            {HIT: "|ΔG_H| ≤ 0.2 eV and stable", CLOSE: "|ΔG_H| ≤ 0.1 eV and stable"},
            "hits, share of all drawn",
        ),
        (
            axes[1],
            {"stable_rate": "E_hull < 0.1 eV/atom", "unique_rate": "unique", "valid_rate": "valid"},
            "share of all drawn",
        ),
        (
            axes[2],
            {
                "mae_delta_g_h_oracle_eV": "by the oracle (stable layers)",
                "mae_delta_g_h_dimenet_eV": "by DimeNet++ (all)",
            },
            "mean |ΔG_H| (eV)",
        ),
    ]
    for axis, metrics, label in panels:
        for k, (colour, (metric, text)) in enumerate(zip(COLOURS, metrics.items())):
            drawn = [
                (row, (tables | sweep)[name][metric])
                for row, name in enumerate(names)
                if metric in (tables | sweep)[name]
            ]
            heights = [row + (k - (len(metrics) - 1) / 2) * 0.22 for row, _ in drawn]
            for height, (_, entry) in zip(heights, drawn):
                axis.plot(entry["ci95"], [height] * 2, color=colour, lw=1.5)
            axis.plot([entry["value"] for _, entry in drawn], heights, "o", color=colour, ms=5, label=text)
        axis.set(xlabel=label, xlim=(0, None))
        axis.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        for line in np.arange(0.5, len(names) - 1):
            axis.axhline(line, color="0.5" if line == len(tables) - 0.5 else "0.92", lw=1, zorder=0)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    save(figure, path)


def run(args: argparse.Namespace) -> None:
    """The study; args are the parsed flags."""
    args.db, args.checkpoint, args.dimenet, args.out = (
        p.resolve() for p in (args.db, args.checkpoint, args.dimenet, args.out)
    )
    torch.set_num_threads(1)
    chosen = {name: arm for name, arm in ARMS.items() if not args.only or name in args.only}
    sweep = scored(SWEEP, [SWEEP_SEED], args) if not args.only or "sweep" in args.only else {}
    arms = scored(chosen, SEEDS, args)
    if args.only:
        return
    tables = {name: summary(name, rows, ARMS[name], arms) for name, rows in arms.items()}
    swept = {name: summary(name, rows, SWEEP[name], {}) for name, rows in sweep.items()}
    if tables[FILTER]["NFE a structure"]["value"] < tables["default"]["NFE a structure"]["value"]:
        raise SystemExit(
            f"the arm {FILTER!r} has fewer function evaluations than the default: raise its best_of"
        )
    hits = lambda rows: [
        round(metric_samples(rows[rows["folder"].str.endswith(f"/{seed}")])[HIT].sum()) for seed in SEEDS
    ]
    lines = [f"{name}: hits seed by seed {hits(rows)}" for name, rows in arms.items()]
    n, unguided = len(arms["default"]), pd.concat([arms[BASE], arms[AGAIN]], ignore_index=True)
    base = metric_samples(unguided)[HIT].mean()
    found = {factor: power(base, factor, n, len(unguided), 3) for factor in (4, 5, 6, 8)}
    shares = ", ".join(f"{factor}, in {share:.2f}" for factor, share in found.items())
    lines.append(
        f"power: {n} beside {len(unguided)} unguided with a rate of {base:.3f} show a ratio of 3 "
        f"at its lower end, if it truly is {shares}"
    )
    write_text(args.out / "table.md", "\n".join([markdown(tables), "", markdown(swept), "", *lines]) + "\n")
    columns = ["set", "metric", "value", "low95", "high95", "n"]
    write_table(args.out / "table.csv", flat(tables | swept), columns)
    known = rediscovered(arms)
    write_rows(args.out / "rediscovered.csv", known, list(known[0]))
    draw_figure(tables, swept, args.out / "study.png")
    write_top(arms["default"], args)
    print((args.out / "table.md").read_text(encoding="utf-8"))
