"""Draws what the embedded data hold: python -m data.build.draw -> data/distributions.png, data/sample.png"""

import argparse
from collections import Counter
from pathlib import Path

import ase.db
import numpy as np

from models.crystals.thresholds import CORRECTION
from models.datasets.lmdb_data import LmdbDataset
from models.evaluation.figures import draw_layer, plt, save, subscripts
from models.infra.files import ROOT

HERE = ROOT / "data"
SPLITS = ("train", "val", "test")


def best_sites(folder: Path, prefix: str) -> list[float]:
    """ΔG_H (eV) of the best site of every host."""
    lowest = {}
    for split in SPLITS:
        path = folder / f"{prefix}_{split}.lmdb"
        for record in LmdbDataset(path) if path.exists() else []:
            lowest[record.host_uid] = min(lowest.get(record.host_uid, np.inf), record.y_relaxed + CORRECTION)
    return list(lowest.values())


def distributions(folder: Path, path: Path):
    """ΔG_H of the hosts, E_hull, prototypes and elements of the layers."""
    rows = list(ase.db.connect(folder / "her2d.db").select())
    figure, axes = plt.subplots(2, 2, figsize=(13, 8), layout="constrained")
    axis = axes[0, 0]
    for prefix, label in (("her2d_h", "H on the rigid host"), ("her2d_h_relaxed", "everything relaxed")):
        values = best_sites(folder, prefix)
        axis.hist(
            np.clip(values, -2.5, 3),
            np.arange(-2.5, 3.01, 0.1),
            density=True,
            histtype="step",
            lw=1.8,
            label=f"{label} (n = {len(values)}, {np.mean(np.abs(values) <= 0.2):.0%} within ±0.2 eV)",
        )
    axis.axvspan(-0.2, 0.2, color="tab:green", alpha=0.15, lw=0)
    axis.set(
        xlabel="ΔG_H of the best site (eV), last bins: beyond", ylabel="density", title="hydrogen adsorption"
    )
    axis.set_ylim(top=1.25 * axis.get_ylim()[1])
    axis.legend(frameon=False, loc="upper left")
    hull = np.array([row.ehull for row in rows])
    axes[0, 1].hist(hull.clip(-0.1, 1.5), np.arange(-0.1, 1.51, 0.025), color="tab:blue")
    axes[0, 1].axvline(0.1, color="0.5", ls="--", lw=1)
    axes[0, 1].set(
        xlabel="E_hull (eV/atom), last bin: beyond",
        ylabel="layers",
        title=f"{len(rows)} layers, {np.mean(hull < 0.1):.0%} below 0.1 eV/atom",
    )
    bars(axes[1, 0], Counter(row.prototype for row in rows), "prototypes")
    bars(
        axes[1, 1],
        Counter(symbol for row in rows for symbol in set(row.symbols)),
        "elements (layers that contain one)",
    )
    save(figure, path)


def bars(axis, counts: Counter, title: str):
    """A bar for each name, most frequent first."""
    names, values = zip(*counts.most_common())
    axis.bar(range(len(names)), values, color="tab:blue")
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.set(title=f"{len(names)} {title}", ylabel="layers", xlim=(-0.7, len(names) - 0.3))


def sample(folder: Path, path: Path, count: int, seed: int):
    """Random layers from above and from the side."""
    rows = list(ase.db.connect(folder / "her2d.db").select())
    chosen = [rows[k] for k in np.random.default_rng(seed).choice(len(rows), count, replace=False)]
    columns = 10
    figure, axes = plt.subplots(
        2 * -(-count // columns), columns, figsize=(1.7 * columns, 3.6 * -(-count // columns))
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for k, row in enumerate(chosen):
        top, side = (axes[2 * (k // columns) + place, k % columns] for place in (0, 1))
        draw_layer(top, row.toatoms(), 0, 1)
        draw_layer(side, row.toatoms(), 0, 2)
        top.set_title(f"{subscripts(row.formula)}\n{row.prototype}, {row.ehull:.2f}", fontsize=7)
    figure.suptitle(
        f"{count} random layers from above and from the side; prototype, E_hull in eV/atom", fontsize=10
    )
    figure.tight_layout()
    save(figure, path)


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=HERE, help="folder of the packed data; the figures land in it"
    )
    parser.add_argument("--count", type=int, default=20, help="layers to render")
    parser.add_argument("--seed", type=int, default=0, help="which layers")
    return parser


def main():
    args = build_parser().parse_args()
    distributions(args.data, args.data / "distributions.png")
    sample(args.data, args.data / "sample.png", args.count, args.seed)


if __name__ == "__main__":
    main()
