"""What the DFT data set says: python -m data.build.dft_report

--potentials takes single points of potentials at the poses of DFT and appends them to
data/shards/dft_potentials.jsonl; without it, only the tables and the figure are made:
results/published/dft_error.csv, .png, dft_top20.csv, dft_geometry.csv, and the tables of docs/dft.md.
"""

import argparse
import re
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.build.dft.records import ROOT, SHARDS, counts, done, embedded_items, material_class
from data.build.validate import errors
from models.crystals.layer import pack_atoms, reduced_formula, unpack_atoms
from models.crystals.sites import abstracts
from models.crystals.split import split_of
from models.evaluation.figures import plt, save
from models.evaluation.metrics import DRAWS
from models.infra.files import markdown_table, read_rows, write_rows
from models.infra.shards import Shard
from models.physics.dft import Settings
from models.physics.hydrogen import CORRECTION, HydrogenOracle
from models.physics.potentials import load_potential

PUBLISHED = ROOT / "results" / "published"
OWN = "SevenNet 7net-l3i5"  # made the poses
GAPPED, MAGNETIC, INERT = 0.1, 0.3, 0.5  # eV, μB a cell, eV: what counts as gapped, magnetic, inert


def convergence_rows(taken: list[dict]) -> list[dict]:
    """The reference calculations of the convergence table as records of a sample of their own: small hosts
    that were chosen, not drawn. Those that are in the data set themselves are left out.
    """
    poses = {work["key"]: work for work in embedded_items(SHARDS / "relaxed.jsonl") if work["rank"] == "best"}
    names, rows = {row["key"].split("|")[0] for row in taken}, []
    for found in Shard(SHARDS / "dft_convergence.jsonl").sorted_rows():
        name = found["host"]
        if found["change"] != "reference" or found["delta_e"] is None or name in names:
            continue
        work = poses[name]
        formula = reduced_formula(work["host"])
        row = {"key": f"{name}|best|none|{found['settings']}", "rank": "best", "relax": "none", "reason": ""}
        row |= {"sample": "convergence", "source": "embedded", "class": material_class(work["host"])}
        row |= {"formula": formula, "split": split_of(formula), "site": work["site"]}
        row |= {"host": pack_atoms(work["host"]), "pose": pack_atoms(work["pose"])}
        row |= {"cells": (len(work["pose"]) - 1) // len(work["host"])}
        row |= {"delta_e_dft": found["delta_e"], "delta_e_sevennet": work["delta_e"]}
        rows.append(row | {"moments": None, "gaps": None})
    return rows


def add_potentials(rows: list[dict], shard: Shard, names: list[str]) -> None:
    """ΔE_H by each potential at the poses, single points: E(pose) − N · E(host) − ½ E(H2), each with its own
    molecule.
    """
    for name in names:
        todo = [row for row in rows if f"{row['key']}|{name}" not in shard.rows and row["relax"] == "none"]
        if not todo:
            continue
        potential = load_potential(name)
        title = name.rpartition(":")[2] if ":" in name else potential.name
        oracle = HydrogenOracle(potential.calculator)
        for row in tqdm(todo, desc=title):
            begin, result = time.time(), {"record": row["key"], "potential": title, "spec": name}
            try:
                delta_e = oracle.delta_e_at(unpack_atoms(row["host"]), unpack_atoms(row["pose"]))
                result |= {"delta_e": round(delta_e, 5), "reason": ""}
            except Exception as error:  # one bad structure costs one row
                result |= {"delta_e": None, "reason": f"{type(error).__name__}: {error}"[:200]}
            shard.append(f"{row['key']}|{name}", result | {"seconds": round(time.time() - begin, 2)})


def groups(rows: list[dict]) -> dict[str, list[dict]]:
    """Best poses, nothing relaxed by DFT, by sample, activity, gap, magnetism, class and split; then all of
    them.
    """
    best = [row for row in rows if row["rank"] == "best" and row["relax"] == "none"]
    random = [row for row in best if row["sample"] == "random"]
    found = {"random layers": random}
    for name in ("magnetic", "targeted", "literature", "top20", "convergence"):
        found[name] = [row for row in best if row["sample"] == name]
    found["all"] = best
    found["random, val and test"] = [row for row in random if row["split"] != "train"]
    found["random, embedded set"] = [row for row in random if row["source"] == "embedded"]
    found["random, C2DB"] = [row for row in random if row["source"] == "C2DB"]
    found["random, DFT |ΔG_H| <= 0.5 eV"] = [
        row for row in random if abs(row["delta_e_dft"] + CORRECTION) <= INERT
    ]
    found["random, DFT ΔG_H > 0.5 eV (inert)"] = [
        row for row in random if row["delta_e_dft"] + CORRECTION > INERT
    ]
    found["random, DFT ΔG_H < -0.5 eV (too strong)"] = [
        row for row in random if row["delta_e_dft"] + CORRECTION < -INERT
    ]
    found["all, SevenNet |ΔG_H| <= 0.3 eV"] = [
        row for row in best if abs(row["delta_e_sevennet"] + CORRECTION) <= 0.3
    ]
    known = [row for row in best if row["gaps"] and row["gaps"]["slab"] is not None]
    found["all, gapped"] = [row for row in known if row["gaps"]["slab"] > GAPPED]
    found["all, metal"] = [row for row in known if row["gaps"]["slab"] <= GAPPED]
    found["all, magnetic"] = [row for row in known if abs(row["moments"]["slab"]) > MAGNETIC]
    found["all, not magnetic"] = [row for row in known if abs(row["moments"]["slab"]) <= MAGNETIC]
    for name in sorted({row["class"] for row in best}):
        found[f"all, {name}"] = [row for row in best if row["class"] == name]
    return found


def table(rows: list[dict], potentials: Shard) -> list[dict]:
    """Errors against DFT by group and potential with bootstrap intervals of bias and MAE; "a constant" is
    the mean of the others.
    """
    by_record = {}
    for row in potentials.rows.values():
        if row["delta_e"] is not None:
            by_record.setdefault(row["potential"], {})[row["record"]] = row["delta_e"]
    found = []
    for group, members in groups(rows).items():
        for name, values in by_record.items():
            pairs = np.array(
                [[values[row["key"]], row["delta_e_dft"]] for row in members if row["key"] in values]
            )
            if len(pairs) < 3:
                continue
            found.append({"group": group, "potential": name, **_with_intervals(pairs)})
        true = np.array([row["delta_e_dft"] for row in members])
        if len(true) >= 3:
            others = (true.sum() - true) / (len(true) - 1)
            found.append(
                {"group": group, "potential": "a constant", "n": len(true), "mae": abs(others - true).mean()}
            )
    for row in found:
        for name, value in row.items():
            row[name] = round(float(value), 3) if isinstance(value, float) else value
    return found


def _with_intervals(pairs: np.ndarray, seed: int = 0) -> dict:
    """errors() of [n, 2] (guess, truth) in eV, 95 % bootstrap intervals, and the MAE after a line, leave-
    one-out.
    """
    result = errors(*pairs.T)
    draws = np.random.default_rng(seed).integers(len(pairs), size=(DRAWS, len(pairs)))
    difference = pairs[draws, 0] - pairs[draws, 1]
    for name, sample in (("bias", difference.mean(1)), ("mae", abs(difference).mean(1))):
        result[f"{name}_low95"], result[f"{name}_high95"] = np.percentile(sample, [2.5, 97.5])
    if len(pairs) >= 8:
        left_out = []
        for k in range(len(pairs)):
            rest = np.delete(pairs, k, 0)
            left_out.append(np.polyval(np.polyfit(rest[:, 0], rest[:, 1], 1), pairs[k, 0]) - pairs[k, 1])
        result["mae_after_line"] = abs(np.array(left_out)).mean()
    return result


COLUMNS = ["group", "potential", "n", "bias", "bias_low95", "bias_high95", "mae", "mae_low95", "mae_high95"]
COLUMNS += ["median", "rmse", "slope", "r", "mae_after_line"]


def geometry_rows(rows: list[dict]) -> list[dict]:
    """What the pose costs: H relaxed by DFT less the single point there, and the second-best site less the
    best, eV.
    """
    best = {row["key"].split("|")[0]: row for row in rows if row["rank"] == "best" and row["relax"] == "none"}
    found = []
    for row in rows:
        name = row["key"].split("|")[0]
        if name not in best or row is best[name]:
            continue
        what = "second site less best" if row["rank"] == "second" else "H relaxed less single point"
        change = {
            "host": name,
            "what": what,
            "dft_eV": round(row["delta_e_dft"] - best[name]["delta_e_dft"], 4),
        }
        if row["rank"] == "second":
            change["sevennet_eV"] = round(row["delta_e_sevennet"] - best[name]["delta_e_sevennet"], 4)
        found.append(change)
    return found


def top20_rows(shard: Shard, settings: Settings) -> list[dict]:
    """The published top 20 beside DFT, failures included."""
    found = []
    for row in shard.sorted_rows():
        if row["sample"] != "top20" or row["settings"] != settings.key:
            continue
        name = row["key"].split("|")[0].removeprefix("top20 ")
        line = {"material_id": name, "formula": row.get("formula", ""), "reason": row["reason"]}
        if "delta_e_sevennet" in row:
            line["h_abstracts"] = abstracts(unpack_atoms(row["pose"]))
            line["delta_g_h_sevennet_eV"] = round(row["delta_e_sevennet"] + CORRECTION, 3)
        if row["reason"] == "":
            line["delta_g_h_dft_eV"] = round(row["delta_e_dft"] + CORRECTION, 3)
            line["active_0.2eV"] = abs(line["delta_g_h_dft_eV"]) <= 0.2
            line |= {
                "gap_eV": row["gaps"]["slab"],
                "moment": row["moments"]["slab"],
                "dft_seconds": row["dft_seconds"],
            }
        found.append(line)
    return sorted(found, key=lambda line: line["material_id"])


def draw(rows: list[dict], potentials: Shard, path: Path) -> None:
    """Parity of each potential with DFT by class; the random sample filled, what was chosen hollow."""
    names = sorted({row["potential"] for row in potentials.rows.values()})
    best = {row["key"]: row for row in rows if row["rank"] == "best" and row["relax"] == "none"}
    classes = sorted({row["class"] for row in best.values()})
    colours = dict(zip(classes, plt.get_cmap("tab10").colors))
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure, axes = plt.subplots(
        down,
        across,
        figsize=(4.4 * across, 4.2 * down),
        squeeze=False,
        layout="constrained",
        sharex=True,
        sharey=True,
    )
    for axis, name in zip(axes.flat, names):
        difference = []
        for row in potentials.rows.values():
            if row["potential"] != name or row["delta_e"] is None or row["record"] not in best:
                continue
            record = best[row["record"]]
            colour = colours[record["class"]]
            filled = record["sample"] == "random"
            axis.scatter(
                record["delta_e_dft"],
                row["delta_e"],
                s=22,
                facecolor=colour if filled else "none",
                edgecolor=colour,
                lw=1,
            )
            difference.append(row["delta_e"] - record["delta_e_dft"])
        axis.axline((0, 0), slope=1, color="0.6", lw=1)
        axis.axvspan(-CORRECTION - 0.2, -CORRECTION + 0.2, color="0.92", zorder=0)
        mae, bias = np.abs(difference).mean(), np.mean(difference)
        axis.set_title(f"{name}\nn = {len(difference)}, MAE {mae:.2f}, bias {bias:+.2f} eV")
    for column in range(across):
        last = axes[(len(names) - 1 - column) // across, column]  # the lowest panel that is drawn
        last.set_xlabel("ΔE_H by DFT (eV)")
        last.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("ΔE_H by the potential (eV)")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    handles = [plt.Line2D([], [], marker="o", ls="", color=colours[name], label=name) for name in classes]
    handles.append(
        plt.Line2D([], [], marker="o", ls="", markerfacecolor="none", color="0.3", label="not random")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    save(figure, path)


TOP20 = {
    "material_id": "layer",
    "formula": "formula",
    "delta_g_h_sevennet_eV": "ΔG_H SevenNet",
    "delta_g_h_dft_eV": "ΔG_H DFT",
    "active_0.2eV": "active by DFT",
    "h_abstracts": "H abstracts an atom",
    "gap_eV": "gap",
    "moment": "moment",
    "dft_seconds": "core-seconds",
    "reason": "why not",
}
GEOMETRY = {"host": "host", "what": "what", "dft_eV": "DFT", "sevennet_eV": "SevenNet"}
SHOWN = {  # in docs/dft.md; everything is in dft_error.csv
    "potential": "potential",
    "n": "n",
    "bias": "bias",
    "mae": "MAE",
    "mae interval": "95 %",
    "rmse": "RMSE",
    "slope": "slope",
    "r": "r",
    "mae_after_line": "after a line",
}


def markdown(rows: list[dict], columns: dict[str, str]) -> str:
    """A table of some columns (name -> heading); what a row lacks stays empty."""
    lines = []
    for row in rows:
        values = [row.get(name, "") for name in columns]
        lines.append([f"{value:.2f}" if isinstance(value, float) else value for value in values])
    return markdown_table(list(columns.values()), lines)


def error_tables(found: list[dict]) -> str:
    """One table for all poses, then MAE and bias by group for all potentials."""
    first = []
    for row in found:
        if row["group"] == "all":
            interval = f"{row['mae_low95']:.2f}–{row['mae_high95']:.2f}" if "mae_low95" in row else ""
            first.append(row | {"mae interval": interval})
    names = sorted({row["potential"] for row in found})
    lines = {}
    for row in found:
        line = lines.setdefault(row["group"], {"group": row["group"], "n": 0})
        line["n"] = max(line["n"], row["n"])
        bias = f" ({row['bias']:+.2f})" if "bias" in row else ""
        line[row["potential"]] = f"{row['mae']:.2f}{bias}"
    columns = {"group": "group", "n": "n"} | {name: name for name in names}
    return (
        "All poses:\n\n"
        + markdown(first, SHOWN)
        + "\n\nMAE (bias) by group:\n\n"
        + markdown(list(lines.values()), columns)
    )


def count_table(shard: Shard, settings: Settings) -> str:
    """Records by sample: with numbers, by split, failures by reason, core-hours."""
    lines = {}
    for row in shard.sorted_rows():
        if row["sample"] == "reference" or row["settings"] != settings.key:
            continue
        line = lines.setdefault(
            row["sample"],
            {"sample": row["sample"], "records": 0, "done": 0, "val": 0, "hours": 0.0, "failed": {}},
        )
        line["records"] += 1
        line["hours"] += row["seconds"] / 3600
        if row["reason"]:
            reason = re.sub(r"[:\d].*then", " then", row["reason"]).replace(":1", "")
            line["failed"][reason] = line["failed"].get(reason, 0) + 1
        else:
            line["done"] += 1
            line["val"] += row["split"] != "train"
    for line in lines.values():
        line["failed"] = "; ".join(f"{count} {reason}" for reason, count in sorted(line["failed"].items()))
    columns = {
        "sample": "sample",
        "records": "records",
        "done": "with ΔE_H",
        "val": "of them val or test",
        "hours": "core-hours",
        "failed": "no numbers, and why",
    }
    return markdown(list(lines.values()), columns)


def fill(path: Path, tables: dict[str, str]) -> None:
    """Puts each table between its mark and the next end mark of a page."""
    text = path.read_text()
    for name, content in tables.items():
        start = text.index(f"<!-- {name} -->") + len(f"<!-- {name} -->")
        text = text[:start] + f"\n{content}\n" + text[text.index("<!-- end -->", start) :]
    path.write_text(text)


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--potentials",
        nargs="*",
        default=[],
        help="take their single points first, by name or module:factory",
    )
    parser.add_argument("--dft-calculator", default="gpaw", help="whose records")
    parser.add_argument("--out", type=Path, default=PUBLISHED, help="where tables and figure go")
    return parser


def main():
    args = build_parser().parse_args()
    shard, potentials = Shard(SHARDS / "dft.jsonl"), Shard(SHARDS / "dft_potentials.jsonl")
    settings = Settings(code=args.dft_calculator)
    rows = done(shard, settings)
    rows += convergence_rows(rows)
    add_potentials(rows, potentials, args.potentials)
    found = table(rows, potentials)
    write_rows(args.out / "dft_error.csv", found, COLUMNS)
    top20 = top20_rows(shard, settings)
    write_rows(args.out / "dft_top20.csv", top20, list(TOP20))
    geometry = geometry_rows(rows)
    write_rows(args.out / "dft_geometry.csv", geometry, list(GEOMETRY))
    if potentials.rows:
        draw(rows, potentials, args.out / "dft_error.png")
    convergence = read_rows(PUBLISHED / "dft_convergence.csv")
    tables = {
        "convergence": markdown(convergence, {name: name for name in convergence[0]}),
        "counts": count_table(shard, settings),
        "errors": error_tables(found),
        "top20": markdown(top20, TOP20),
        "geometry": markdown(geometry, GEOMETRY),
    }
    fill(ROOT / "docs" / "dft.md", tables)
    print(counts(shard))


if __name__ == "__main__":
    main()
