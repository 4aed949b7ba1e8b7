"""Does guidance find active, stable layers more often than its nulls? Arms drawn by structure_generator.py, judged by the evaluator.

    python tests/benchmarks/guidance.py --out results/study

A hit is stable (E_hull < 0.1 eV/atom) and active by the oracle: H and layer relaxed with the potential. Settings of the guide are swept
first, with a seed that no arm has; every arm has three seeds. Writes OUT/table.csv, OUT/table.md, OUT/study.png, and TOP, the best of the
default by its own ranking. What is done is not done again.
"""

import argparse
import itertools
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from ase.io import write
from pymatgen.core import Composition
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import structure_generator  # noqa: E402
from geo_utils import COLUMNS, Evaluation, Settings, evaluate, read_cifs, second_into  # noqa: E402
from models.cli import read_rows, write_rows  # noqa: E402
from models.figures import COLOURS, generated_structures, save  # noqa: E402
from models.potentials import load_potential  # noqa: E402
from models.sampler import expected_distance  # noqa: E402
from models.shards import Shard, file_hash, unpack_atoms  # noqa: E402
from models.statistics import aggregate, cell, effective_number, metric_samples, rate_ratio, values  # noqa: E402
from models.templates import Templates, best_assignment  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SEEDS, SWEEP_SEED = (11, 12, 13), 10
BASE, AGAIN, FILTER, RANDOM = "unguided", "unguided, other seeds", "unguided, filtered", "random elements"


def guide(cfg_scale=0, gradient_scale=0, proposals=1, **more) -> tuple[str, ...]:
    """Flags of structure_generator.py that switch everything off but what is named."""
    named = dict(cfg_scale=cfg_scale, gradient_scale=gradient_scale, proposals=proposals, **more)
    return tuple(text for name, value in named.items() for text in (f"--{name.replace('_', '-')}", str(value)))


@dataclass(frozen=True)
class Arm:
    """Flags of structure_generator.py; structures a seed in units of --num; what is added to the seed; of how many drawn one is kept."""

    flags: tuple = ()
    share: float = 1.0
    shift: int = 0
    keep_one_of: int = 1


ARMS = {
    RANDOM: Arm(("--method", "random")),
    "substitution": Arm(("--method", "substitution")),
    BASE: Arm(guide()),
    AGAIN: Arm(guide(), shift=100),
    "gradient": Arm(guide(gradient_scale=30), 0.5),
    "CFG": Arm(guide(cfg_scale=2), 0.5),
    "gradient and CFG": Arm(guide(cfg_scale=2, gradient_scale=30), 0.5),
    FILTER: Arm(guide(), keep_one_of=5),
    "default": Arm(),
}
SWEEP = {}
EXTRA = ["template", *structure_generator.HEADS, "network_calls"]  # of generated.csv
DIMENET_COLUMNS = ("delta_g_h_dimenet_eV", "delta_g_h_dimenet_std_eV")
HIT, CLOSE = "hit_rate_0.2eV", "hit_rate_0.1eV"
METRICS = [HIT, CLOSE, "stable_rate", "two_d_rate", "valid_rate", "unique_rate", "novel_rate", "sun_rate", "mae_delta_g_h_dimenet_eV",
           "mae_delta_g_h_oracle_eV", "delta_g_h_gap_eV", "rmsd_relaxed_A"]  # fmt: skip
TOP = 20
TOP_COLUMNS = ["material_id", "formula", "template", "layer_group", "e_hull_eV_per_atom", "delta_g_h_oracle_eV", "h_site", *DIMENET_COLUMNS,
               "head_delta_g_h_eV", "delta_g_h_second_eV", "h_flags", "second_h_flags", "p_synth", "novel", "nearest_known"]  # fmt: skip


# --- drawing and judging ------------------------------------------------------------------------------------------------


def draw(name: str, arm: Arm, seed: int, args, times: Shard) -> tuple[Path, float]:
    """Folder of the structures of one arm and seed, and the seconds that they took."""
    folder, count = args.out / name.replace(" ", "_").replace(",", "") / str(seed), round(arm.share * args.num)
    command = [*arm.flags, "--num", str(count * arm.keep_one_of), "--seed", str(seed + arm.shift)]
    command += ["--keep", str(count)] if arm.keep_one_of > 1 else []
    key = f"draw {folder.parent.name} {' '.join(command)} {args.db} {file_hash(args.checkpoint)}"
    if key not in times.rows:
        start = time.time()
        base = [sys.executable, ROOT / "structure_generator.py", "--db", args.db, "--checkpoint", args.checkpoint, "--resume"]
        subprocess.run([*map(str, base), "--out", str(folder / "cifs"), *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        times.append(key, {"seconds": time.time() - start})
    return folder, times.rows[key]["seconds"]


def judge(folder: Path, args, times: Shard) -> tuple[list[dict], float]:
    """Rows of the evaluator with what the generator says of each, and the seconds that they took."""
    settings = Settings(
        oracle_for="stable", second_potential="none", shortlist=0, phonons=0, jobs=args.jobs, novelty_db=args.db, dimenet=args.dimenet
    )
    table = folder / "cifs/generated.csv"
    key = f"judge {folder.parent.name} {folder.name} {file_hash(table)} {file_hash(args.dimenet)}"
    if key not in times.rows:
        start, drawn = time.time(), {row["material_id"]: row for row in read_rows(table)}
        rows = evaluate(read_cifs(folder / "cifs"), settings, folder, resume=True).rows
        rows = [row | {column: drawn[row["material_id"]][column] for column in EXTRA} for row in rows]
        write_rows(folder / "metrics.csv", rows, [*COLUMNS, *EXTRA])
        times.append(key, {"seconds": time.time() - start})
    return read_rows(folder / "metrics.csv"), times.rows[key]["seconds"]


def scored(arms: dict[str, Arm], seeds, args, times: Shard) -> dict[str, dict]:
    """{"rows", "seconds", "hits"} of every arm: rows of all seeds, wall time, hits seed by seed."""
    tasks = [(name, arm, seed) for name, arm in arms.items() for seed in seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        drawn = list(pool.map(lambda task: draw(*task, args, times), tasks))
    found = {name: {"rows": [], "draw_seconds": 0.0, "judge_seconds": 0.0, "hits": []} for name in arms}
    for (name, _, seed), (folder, seconds) in zip(tasks, drawn):
        rows, judging = judge(folder, args, times)
        arm = found[name]
        arm["rows"] += [row | {"seed": seed} for row in rows]
        arm["draw_seconds"] += seconds
        arm["judge_seconds"] += judging
        arm["hits"].append(round(float(metric_samples(rows)[HIT].sum())))
    return found


# --- statistics ---------------------------------------------------------------------------------------------------------


def paired_p(own: list[dict], other: list[dict], metric: str) -> float:
    """McNemar's exact test on structures of the same seed and number, which started from the same template."""
    start = lambda row: (row["seed"], row["material_id"].split("_")[1])  # noqa: E731
    hits = [{start(row): hit for row, hit in zip(rows, metric_samples(rows)[metric])} for rows in (own, other)]
    both = hits[0].keys() & hits[1].keys()
    gained = sum(hits[0][key] > hits[1][key] for key in both)
    lost = sum(hits[0][key] < hits[1][key] for key in both)
    return binomtest(gained, gained + lost).pvalue if gained + lost else 1.0


def power(base: float, factor: float, n: int, bound: float, seed: int = 0) -> float:
    """How often `n` structures an arm show a ratio of at least `bound`, if the rates are base and factor · base."""
    rng = np.random.default_rng(seed)
    draws = zip(rng.binomial(n, factor * base, 2000), rng.binomial(n, base, 2000))
    return float(np.mean([rate_ratio(np.arange(n) < a, np.arange(n) < b)["ci95"][0] >= bound for a, b in draws]))


def ranked(rows: list[dict]) -> dict[str, list[dict]]:
    """The unique rows, best first by the models alone: by L_target of the heads, and the stable ones by DimeNet++ and its spread."""
    unique = [row for row in rows if row["unique"] == "True"]
    stable = [row for row, is_stable in zip(unique, metric_samples(unique)["stable_rate"]) if is_stable and row["delta_g_h_dimenet_eV"]]
    table = lambda found, columns: torch.tensor([[float(row[column]) for column in columns] for row in found])  # noqa: E731
    guide = structure_generator.guide_of(structure_generator.build_parser().parse_args([]))
    sort = lambda found, losses: [found[k] for k in losses.argsort().tolist()]  # noqa: E731
    orders = {"DimeNet++": sort(stable, expected_distance(*table(stable, DIMENET_COLUMNS).reshape(-1, 2).T))}
    if all(row[column] for row in unique for column in structure_generator.HEADS):
        orders["heads"] = sort(unique, guide.loss(table(unique, structure_generator.HEADS)))
    return orders


def summary(name: str, arm: dict, others: dict) -> dict:
    """Metrics of an arm: the evaluator's, ratios to the arms that it must beat, diversity, cost."""
    rows, samples = arm["rows"], metric_samples(arm["rows"])
    found = {metric: entry for metric, entry in aggregate(rows).items() if metric in METRICS}
    plain = lambda number: {"value": number, "ci95": [None, None], "n": len(rows)}  # noqa: E731
    if others and name not in (BASE, AGAIN):
        rivals = {BASE: others[BASE]["rows"] + others[AGAIN]["rows"], FILTER: others[FILTER]["rows"], RANDOM: others[RANDOM]["rows"]}
        for rival, metric in itertools.product(rivals, (HIT, CLOSE)):
            if rival != name:
                found[f"{metric} over {rival}"] = rate_ratio(samples[metric], metric_samples(rivals[rival])[metric])
        found[f"p of {HIT}, paired with {BASE}"] = plain(paired_p(rows, others[BASE]["rows"], HIT))
    kinds = {
        "elements": [element.symbol for row in rows for element in Composition(row["formula"])],
        "templates": [row["template"] for row in rows], "layer groups": [row["layer_group"] for row in rows if row["layer_group"]],
    }  # fmt: skip
    for label, labels in kinds.items():
        found[f"effective number of {label}"] = plain(effective_number(labels))
    calls, hits = values(rows, "network_calls"), samples[HIT].sum()
    found["network calls a structure"] = plain(float(calls.mean()) if len(calls) else 0.0)
    found["seconds a hit, drawing"] = plain(arm["draw_seconds"] / hits if hits else None)
    found["seconds a hit, judging too"] = plain((arm["draw_seconds"] + arm["judge_seconds"]) / hits if hits else None)
    for label, best in ranked(rows).items():
        oracle = abs(values(best[:TOP], "delta_g_h_oracle_eV"))
        found[f"mean |ΔG_H| of the top {TOP} by {label}"] = plain(float(oracle.mean()) if len(oracle) else None) | {"n": len(oracle)}
    return found


# --- what comes out -----------------------------------------------------------------------------------------------------


def nearest_known(templates: Templates, formula: str) -> str:
    """The most alike layer of the database with the same amounts, and how many steps of Pettifor's scale away."""
    wanted = Composition(formula).reduced_composition
    fits = [(fit[0], own.reduced_formula) for own in templates.compositions if (fit := best_assignment(own, wanted))]
    return "{1} ({0})".format(*min(fits)) if fits else ""


def write_top(arm: dict, args):
    """The best of an arm by DimeNet++: relaxed layers and poses of H as CIFs, what the oracle and a second potential say, a figure."""
    folder, best, templates = args.top, ranked(arm["rows"])["DimeNet++"][:TOP], Templates.read(args.db)
    relaxed, poses = {}, {}
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.cif"):
        stale.unlink()
    for place, row in enumerate(best, 1):
        source = args.out / "default" / str(row["seed"])
        kept = {name: {key.split(":")[0]: r for key, r in Shard(source / f"{name}.jsonl").rows.items()} for name in ("relaxed", "adsorbed")}
        name, identity = row["material_id"], f"{place:02d}_{row['formula'].replace('(', '').replace(')', '')}"
        row |= {"material_id": identity, "nearest_known": row["known_as"] or nearest_known(templates, row["formula"])}
        relaxed[identity], pose = unpack_atoms(kept["relaxed"][name]["relaxed"]), unpack_atoms(kept["adsorbed"][name]["pose"])
        write(folder / f"{identity}.cif", relaxed[identity])
        if pose is not None:
            poses[identity] = pose
            write(folder / f"{identity}_H.cif", pose)
    settings = Settings(shortlist=TOP, jobs=args.jobs)
    second_into(Evaluation(best, relaxed, poses), load_potential(settings.second_potential), settings, Shard(args.out / "second.jsonl"))
    write_rows(folder / "top20.csv", best, TOP_COLUMNS)
    generated_structures(best, relaxed, poses, folder / "top20.png")


def rediscovered(arms: dict) -> list[dict]:
    """Which of the known active layers that no stage has learned from (rediscovery.csv) are among an arm's stable structures."""
    wanted, found = read_rows(Path(__file__).with_name("rediscovery.csv")), []
    for name, arm in arms.items():
        stable = [row for row, is_stable in zip(arm["rows"], metric_samples(arm["rows"])["stable_rate"]) if is_stable]
        for known in wanted:
            rows = [row for row in stable if row["formula"] == known["formula"] and row["layer_group"] in known["layer_groups"].split()]
            found.append({"arm": name, "formula": known["formula"], "times": len(rows), "source": known["source"],
                          "delta_g_h_oracle_eV": next((row["delta_g_h_oracle_eV"] for row in rows), "")})  # fmt: skip
    return found


def draw_figure(arms: dict, tables: dict, sweep: dict, path: Path):
    """Hit rates of all arms and settings, and mean |ΔG_H| by DimeNet++ and by the oracle, with their intervals."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 0.9 + 0.38 * (len(tables) + len(sweep))), sharey=True, layout="constrained")
    names = [*tables, *sweep]
    panels = [(axes[0], {HIT: "|ΔG_H| ≤ 0.2 eV and stable", CLOSE: "|ΔG_H| ≤ 0.1 eV and stable"}, "hits, share of all drawn"),
              (axes[1], {"stable_rate": "E_hull < 0.1 eV/atom", "unique_rate": "unique", "valid_rate": "valid"}, "share of all drawn"),
              (axes[2], {"mae_delta_g_h_oracle_eV": "by the oracle (stable layers)", "mae_delta_g_h_dimenet_eV": "by DimeNet++ (all)"},
               "mean |ΔG_H| (eV)")]  # fmt: skip
    for axis, metrics, label in panels:
        for k, (colour, (metric, text)) in enumerate(zip(COLOURS, metrics.items())):
            entries = [(tables | sweep)[name][metric] for name in names]
            y = [row + (k - (len(metrics) - 1) / 2) * 0.22 for row in range(len(names))]
            for height, entry in zip(y, entries):
                axis.plot(entry["ci95"], [height] * 2, color=colour, lw=1.5)
            axis.plot([entry["value"] for entry in entries], y, "o", color=colour, ms=5, label=text)
        axis.set(xlabel=label, xlim=(0, None))
        axis.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        for line in np.arange(0.5, len(names) - 1):
            axis.axhline(line, color="0.5" if line == len(tables) - 0.5 else "0.92", lw=1, zorder=0)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    save(figure, path)


def markdown(tables: dict) -> list[str]:
    """A table with the arms as columns."""
    metrics = list(dict.fromkeys(metric for column in tables.values() for metric in column))
    lines = ["| | " + " | ".join(tables) + " |", "|---" * (len(tables) + 1) + "|"]
    return lines + [f"| {m} | " + " | ".join(cell(t[m]) if m in t else "" for t in tables.values()) + " |" for m in metrics]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--db", type=Path, default=Path("data/her2d.db"), help="templates, and what is novel")
    parser.add_argument("--checkpoint", type=Path, default=Path("models/weights/best_diffusion_model.pth"), help="from stage 3")
    parser.add_argument("--dimenet", type=Path, default=Path("models/weights/dimenet.pt"), help="from stage 1")
    parser.add_argument("--num", type=int, default=128, help="structures an arm and seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--top", type=Path, default=Path("results/top20"), help="folder of the best")
    parser.add_argument("--only", nargs="*", choices=[*ARMS, "sweep"], help="draw and judge these, and write no table")
    parser.add_argument("--out", type=Path, default=Path("results/study"), help="folder")
    args = parser.parse_args()
    args.db, args.checkpoint, args.dimenet, args.out = (p.resolve() for p in (args.db, args.checkpoint, args.dimenet, args.out))
    torch.set_num_threads(1)
    times = Shard(args.out / "times.jsonl")
    chosen = {name: arm for name, arm in ARMS.items() if not args.only or name in args.only}
    sweep = scored(SWEEP, [SWEEP_SEED], args, times) if not args.only or "sweep" in args.only else {}
    arms = scored(chosen, SEEDS, args, times)
    if args.only:
        return
    tables = {name: summary(name, arm, arms) for name, arm in arms.items()}
    swept = {name: summary(name, arm, {}) for name, arm in sweep.items()}
    lines = [f"{name}: hits seed by seed {arm['hits']}" for name, arm in arms.items()]
    base = tables[BASE][HIT]["value"]
    lines += [f"power: {len(arms[BASE]['rows'])} an arm show 3 times the base rate {base:.3f} at its lower end if it truly is "
              + ", ".join(f"{factor} times: {power(base, factor, len(arms[BASE]['rows']), 3):.2f}" for factor in (4, 5, 6, 8))]  # fmt: skip
    (args.out / "table.md").write_text("\n".join([*markdown(tables), "", *markdown(swept), "", *lines]) + "\n")
    columns = ["arm", "metric", "value", "low95", "high95", "n"]
    long = [[name, metric, v["value"], *v["ci95"], v["n"]] for name, table in (tables | swept).items() for metric, v in table.items()]
    write_rows(args.out / "table.csv", [dict(zip(columns, row)) for row in long], columns)
    found = rediscovered(arms)
    write_rows(args.out / "rediscovered.csv", found, list(found[0]))
    draw_figure(arms, tables, swept, args.out / "study.png")
    write_top(arms["default"], args)
    print((args.out / "table.md").read_text())


if __name__ == "__main__":
    main()
