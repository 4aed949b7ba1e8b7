"""Every figure of the pipeline, drawn from tables alone."""

import math
import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors

from models.crystals.layer import flipped
from models.crystals.thresholds import ACTIVE, BELOW_HULL, STABLE
from models.evaluation.rows import records
from models.infra.files import atomic

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

TITLES = {
    "total": "total",
    "coordinates": "in-plane score (σ·∇log p)",
    "z": "z (v-prediction)",
    "lattice": "lattice (v-prediction)",
    "elements": "slot elements (cross-entropy)",
    "delta_g_h": "|ΔG_H − ΔG_H*| (eV)",
    "e_hull": "(E_hull − E_hull*)² (eV²/atom²)",
    "synthesizable": "BCE of P_synth",
}
plt.rcParams.update(
    {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 160}
)


def save(figure, path: Path) -> None:
    """Writes a PNG by rename."""
    with atomic(path) as temporary:
        figure.savefig(temporary, bbox_inches="tight")
    plt.close(figure)


def plot_loss_curve(history: list[dict], path: Path) -> None:
    """Training and validation curves of the joint loss and of each of its terms."""
    figure, axes = plt.subplots(2, 4, figsize=(13, 5.5), sharex=True)
    epochs = [row["epoch"] for row in history]
    for axis, (name, title) in zip(axes.flat, TITLES.items()):
        axis.plot(epochs, [row[f"train_{name}"] for row in history], label="train", color="tab:blue")
        axis.plot(
            epochs, [row[f"val_{name}"] for row in history], label="validation (EMA)", color="tab:orange"
        )
        axis.set_title(title)
        if min(row[f"val_{name}"] for row in history) > 0:
            axis.set_yscale("log")
    axes[0, 0].legend(frameon=False)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    figure.suptitle(
        "Joint loss: diffusion channels (lower noise floor is not zero) and property terms", y=1.0
    )
    figure.tight_layout()
    save(figure, path)


def plot_mae_curve(history: list[dict], path: Path) -> None:
    """Error of DimeNet++ by epoch, with the error of always predicting the mean of the training targets."""
    epochs = [row["epoch"] for row in history]
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    axis.plot(epochs, [row["train_mae_eV"] for row in history], ".-", label="train")
    axis.plot(epochs, [row["val_mae_eV"] for row in history], ".-", label="validation (EMA)")
    axis.axhline(
        history[0]["null_val_mae_eV"], color="0.5", linestyle="--", label="mean of train, on validation"
    )
    axis.set(xlabel="epoch", ylabel="MAE (eV)", ylim=(0, None), title="DimeNet++ adsorption energy")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)
    save(figure, path)


PANELS_ACROSS = 3  # of a parity figure


def parity(panels: dict[str, tuple], xlabel: str, ylabel: str, path: Path) -> None:
    """Parity plots; panels: title -> (true [n], predicted [n], unit). The frame holds the central 99 % of the
    points.
    """
    columns = min(len(panels), PANELS_ACROSS)
    lines = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.6 * columns, 4 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, (true, predicted, unit)) in zip(axes.flat, panels.items()):
        true, predicted = np.asarray(true), np.asarray(predicted)
        low, high = np.percentile([*true, *predicted], [0.5, 99.5])
        low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
        axis.scatter(true, predicted, s=10, alpha=0.5, lw=0)
        axis.axline((0, 0), slope=1, color="0.6", lw=1)
        axis.set(xlim=(low, high), ylim=(low, high), xlabel=xlabel, ylabel=ylabel)
        outside = int(((np.minimum(true, predicted) < low) | (np.maximum(true, predicted) > high)).sum())
        note = f"n = {len(true)}, MAE {np.abs(predicted - true).mean():.3f} {unit}"
        axis.set_title(f"{title}\n{note}" + (f", {outside} outside the frame" if outside else ""))
    save(figure, path)


COLOURS = plt.get_cmap("tab10").colors
FRAME = {
    "e_hull": (-0.5, 1.0),
    "delta_g_h": (-2.0, 2.5),
}  # eV/atom, eV; what lies beyond is drawn at the edge and counted
ACROSS = 10  # structures side by side
WINDOW = 11.0  # Å that a view of a layer is wide and high
LABELS = {
    "two_d_rate": "two-dimensional crystal",
    "valid_rate": "valid: distances and SMACT",
    "stable_rate": "stable, E_hull < 0.1 eV/atom",
    "no_competitor_rate": "no competing phase known",
    "novel_rate": "novel",
    "unique_rate": "unique",
    "sun_rate": "stable, unique and novel",
    "synthesis_rate": "called synthesizable",
    "reconstructed_rate": "reconstructs under H",
    "active_rate_0.2eV": "|ΔG_H| ≤ 0.2 eV",
    "hit_rate_0.2eV": "hit: passes the chain of gates",
    "expected_hit_rate_0.1eV": "expected hits, |ΔG_H| ≤ 0.1 eV",
    "mae_delta_g_h_oracle_eV": "mean |ΔG_H|, oracle (eV)",
    "mae_delta_g_h_dimenet_eV": "mean |ΔG_H|, DimeNet++ (eV)",
    "delta_g_h_gap_eV": "oracle minus DimeNet++ (eV)",
    "stability_score": "stability score",
    "rmsd_relaxed_A": "RMSD to relaxed (Å)",
}


def cumulative(axis, sets: dict[str, pd.Series], low: float, high: float) -> None:
    """Share of all submitted structures of each set whose value lies below x, from `low` to `high`.

    Args:
        sets: name -> a number for each structure, NaN where it has none.
    """
    for colour, (label, values) in zip(COLOURS, sets.items()):
        found = np.sort(values.dropna())
        share = np.arange(len(found) + 1) / max(len(values), 1)
        x = [low, *found, max(high, *found, low)]
        legend = f"{label}: {len(found)} of {len(values)} have it"
        axis.step(x, [*share, share[-1]], where="post", color=colour, lw=1.8, label=legend)
    top = 1.02 + 0.075 * len(sets)  # room for the legend
    axis.set(xlim=(low, high), ylim=(0, top), yticks=np.arange(6) / 5, ylabel="share of all submitted")
    axis.legend(frameon=False, fontsize=8, loc="upper left")


def scatter(axis, sets: dict[str, pd.DataFrame], names: tuple[str, str], frames: tuple) -> None:
    """Rows of the sets by two columns, within the frames; what lies beyond is counted in the legend.

    Args:
        names: columns of x and y.
        frames: (low, high) of x and of y.
    """
    lows, highs = np.transpose(frames)
    for colour, (label, rows) in zip(COLOURS, sets.items()):
        points = rows[list(names)].dropna().to_numpy(float)  # [n, 2]
        moved = np.clip(points, lows, highs)
        beyond = int((moved != points).any(axis=1).sum())
        legend = f"{label}, n = {len(points)}" + (f" ({beyond} at the edge)" if beyond else "")
        axis.scatter(*moved.T, s=30, color=colour, alpha=0.75, lw=0, label=legend, clip_on=False)
    axis.set(xlim=frames[0], ylim=(frames[1][0], frames[1][1] + 0.28 * len(sets)))
    axis.legend(frameon=False, fontsize=8, loc="upper left")


def her_performance(sets: dict[str, pd.DataFrame], oracle: str, path: Path) -> None:
    """How many come how close to ΔG_H = 0 by the oracle and by DimeNet++, the two against each other, and
    against E_hull; `oracle` says in words how the oracle comes to its number.
    """
    figure, axes = plt.subplots(2, 2, figsize=(11.5, 9))
    energy, e_hull = FRAME["delta_g_h"], FRAME["e_hull"]
    names = {
        "delta_g_h_oracle_eV": f"by the oracle, {oracle}",
        "delta_g_h_dimenet_eV": "by DimeNet++",
    }
    for axis, (name, title) in zip(axes[0], names.items()):
        axis.fill_betweenx([0, 1], 0, ACTIVE, color="tab:green", alpha=0.15, lw=0)
        cumulative(axis, {label: abs(rows[name]) for label, rows in sets.items()}, 0, 2)
        axis.set(xlabel="|ΔG_H| below (eV)", title=title)
    parity, hits = axes[1]
    parity.axline((0, 0), slope=1, color="0.6", lw=1)
    scatter(parity, sets, ("delta_g_h_oracle_eV", "delta_g_h_dimenet_eV"), (energy, energy))
    parity.set(
        xlabel="ΔG_H, oracle (eV)", ylabel="ΔG_H, DimeNet++ (eV)", title="DimeNet++ against the oracle"
    )
    corner, width = (BELOW_HULL, -ACTIVE), STABLE - BELOW_HULL
    hits.add_patch(plt.Rectangle(corner, width, 2 * ACTIVE, color="tab:green", alpha=0.15, lw=0))
    scatter(hits, sets, ("e_hull_eV_per_atom", "delta_g_h_oracle_eV"), (e_hull, energy))
    hits.set(xlabel="E_hull (eV/atom)", ylabel="ΔG_H, oracle (eV)", title="stable and active (green)")
    figure.tight_layout()
    save(figure, path)


def stability_curve(sets: dict[str, pd.DataFrame], potential: str, path: Path) -> None:
    """Share of all submitted below an E_hull, above a stability score, and within an RMSD of the relaxed
    structure.
    """
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4))
    panels = [
        ("e_hull_eV_per_atom", -0.5, 1.5, "E_hull below (eV/atom)", f"stability curve, {potential}"),
        ("stability_score", 0, 1, "exp(−max(0, E_form − E_stable)) below", "stability score"),
        ("rmsd_relaxed_A", 0, 1.5, "RMSD to the relaxed structure below (Å)", "how far from a minimum"),
    ]
    for axis, (name, low, high, label, title) in zip(axes, panels):
        cumulative(axis, {key: rows[name] for key, rows in sets.items()}, low, high)
        axis.set(xlabel=label, title=title)
    axes[0].plot([STABLE, STABLE], [0, 1], color="0.6", lw=1, ls="--")
    figure.tight_layout()
    save(figure, path)


def draw_funnel(funnels: dict[str, list[dict]], path: Path) -> None:
    """How many of 100 submitted structures of each set pass each gate and all before it, with 95 % intervals;
    pale: those that have failed none so far, where a gate was not computed for all.

    Args:
        funnels: set -> models.evaluation.funnel.funnel.
    """
    gates = [gate["gate"] for gate in next(iter(funnels.values()))]
    figure, axis = plt.subplots(figsize=(8.5, 1.2 + len(gates) * (0.22 + 0.2 * len(funnels))))
    height = 0.8 / len(funnels)
    for k, (colour, (label, found)) in enumerate(zip(COLOURS, funnels.items())):
        n = max(1, found[0]["rate"]["n"])
        rows = np.arange(len(gates)) + (k - (len(funnels) - 1) / 2) * height
        proven = np.array([gate["proven"] for gate in found])
        possible = np.array([gate["possible"] for gate in found])
        axis.barh(rows, 100 * possible / n, 0.9 * height, color=colour, alpha=0.25)
        axis.barh(rows, 100 * proven / n, 0.9 * height, color=colour, label=f"{label}, {n} submitted")
        for y, gate in zip(rows, found):
            low, high = gate["rate"]["ci95"]
            if low is not None:
                axis.plot([100 * low, 100 * high], [y, y], color="0.25", lw=1)
            unproven = f" ({gate['possible']})" if gate["possible"] > gate["proven"] else ""
            axis.annotate(f"{gate['proven']}{unproven}", (101, y), va="center", fontsize=7.5, color=colour)
    axis.set_yticks(range(len(gates)), gates)
    axis.set(
        xlim=(0, 112),
        ylim=(len(gates) - 0.5, -0.5),
        xlabel="% of all submitted that pass this gate and all above",
    )
    axis.set_xticks(range(0, 101, 20))
    axis.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3)
    save(figure, path)


def baseline_comparison(sets: dict[str, dict[str, dict]], path: Path) -> None:
    """Rates and means of several sets with their 95 % intervals; a star where a set differs from the first
    with p < 0.05.
    """
    names = [name for name in LABELS if any(metrics[name]["value"] is not None for metrics in sets.values())]
    groups = [[n for n in names if "rate" in n], [n for n in names if "rate" not in n]]
    rows = max(len(group) for group in groups)
    figure, axes = plt.subplots(1, 2, figsize=(13, 1.6 + rows * (0.28 + 0.12 * len(sets))))
    for axis, group in zip(axes, groups):
        for k, (colour, (label, metrics)) in enumerate(zip(COLOURS, sets.items())):
            offset = (k - (len(sets) - 1) / 2) * 0.7 / len(sets)
            _interval_column(axis, [metrics[name] for name in group], offset, colour, label)
        axis.set_yticks(range(len(group)), [LABELS[name] for name in group])
        axis.set_ylim(len(group) - 0.5, -0.5)
        for y in range(1, len(group)):
            axis.axhline(y - 0.5, color="0.92", lw=1, zorder=0)
    axes[0].set(xlim=(-0.01, 1.05), xlabel="share of all submitted")
    axes[1].set(xlabel="mean over those that have it")
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="upper center", ncols=len(sets))
    axes[0].set_title(
        "95 % intervals; * differs from the first set, p < 0.05", fontsize=9, loc="left", color="0.35"
    )
    save(figure, path)


def _interval_column(axis, metrics: list[dict], offset: float, colour, label: str) -> None:
    """Dots with intervals, one a row, `offset` rows below its middle."""
    drawn = False
    for y, metric in enumerate(metrics):
        if metric["value"] is None:
            continue
        low, high = [metric["value"] if bound is None else bound for bound in metric["ci95"]]
        axis.plot([low, high], [y + offset] * 2, color=colour, lw=1.6)
        axis.plot(metric["value"], y + offset, "o", color=colour, ms=5.5, label=None if drawn else label)
        if metric.get("p_value", 1) < 0.05:
            axis.annotate(
                "*", (high, y + offset), xytext=(3, -4), textcoords="offset points", color=colour, fontsize=11
            )
        drawn = True


def subscripts(formula: str) -> str:
    """A formula with its numbers lowered, for matplotlib."""
    return re.sub(r"(\d+)", r"$_{\1}$", formula)


def draw_layer(axis, atoms: Atoms, across: int, up: int) -> None:
    """A WINDOW wide view of a layer about its last atom, periodic images included, nearer atoms in front.

    Args:
        across, up: axes of space that are horizontal and vertical in the picture.
    """
    depth = 3 - across - up
    plane = atoms.cell.array[:2, :2]
    reach = np.ceil(2 * WINDOW * np.linalg.norm(np.linalg.inv(plane), axis=0)).astype(int)
    shifts = (
        np.array([(i, j) for i in range(-reach[0], reach[0] + 1) for j in range(-reach[1], reach[1] + 1)])
        @ plane
    )
    centre = np.array(
        [*atoms.positions[-1, :2], (atoms.positions[:, 2].max() + atoms.positions[:, 2].min()) / 2]
    )
    positions = np.tile(atoms.positions - centre, (len(shifts), 1))
    positions[:, :2] += np.repeat(shifts, len(atoms), axis=0)
    numbers = np.tile(atoms.numbers, len(shifts))
    seen = (abs(positions[:, [across, up]]) < WINDOW / 2 + 2).all(1) & (
        abs(positions[:, depth]) < WINDOW / 2 + 2
    )
    order = np.flatnonzero(seen)[
        np.argsort(positions[seen, depth] * (1 if depth == 2 else -1), kind="stable")
    ]
    for k in order:
        axis.add_patch(
            plt.Circle(
                positions[k, [across, up]],
                0.8 * covalent_radii[numbers[k]],
                fc=jmol_colors[numbers[k]],
                ec="tab:red" if numbers[k] == 1 else "0.15",
                lw=1.3 if numbers[k] == 1 else 0.6,
            )
        )
    axis.set(xlim=(-WINDOW / 2, WINDOW / 2), ylim=(-WINDOW / 2, WINDOW / 2), aspect="equal")
    axis.set_axis_off()


def generated_structures(
    rows: pd.DataFrame, relaxed: dict[str, Atoms], poses: dict[str, Atoms], path: Path, count: int = 8
) -> None:
    """Top and side views of the best ranked relaxed structures, then of the most stable, H at the oracle's
    best site.

    Args:
        rows: table of the set.
        relaxed, poses: layers, and supercells with H as the last atom, by material_id.
        count: structures that are drawn.
    """
    known = rows[rows["material_id"].isin(relaxed)]
    best = records(known.sort_values(["rank", "e_hull_eV_per_atom"]).head(count))
    lines, across = max(1, math.ceil(len(best) / ACROSS)), min(max(len(best), 1), ACROSS)
    figure, axes = plt.subplots(2 * lines, across, figsize=(2.1 * max(across, 3), 5.2 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, row in enumerate(best):
        top, side = axes[2 * (place // ACROSS) : 2 * (place // ACROSS) + 2, place % ACROSS]
        atoms = poses.get(row["material_id"], relaxed[row["material_id"]])
        if row["h_site"].endswith("bottom"):
            atoms = flipped(atoms)  # so that H is on top
        draw_layer(top, atoms, 0, 1)
        draw_layer(side, atoms, 0, 2)
        top.set_title(_caption(row), fontsize=8.5)
    title = (
        f"best ranked first, relaxed, {WINDOW:g} Å wide, top and side; H (red rim) where the oracle puts it"
    )
    nothing = "no structure of this set is a 2D crystal"
    figure.suptitle(title if best else nothing, y=1 + 0.03 / lines, fontsize=10)
    figure.tight_layout()
    save(figure, path)


def _caption(row: dict) -> str:
    """Formula, layer group and energies of a structure, a line each."""
    delta_g, e_hull = row["delta_g_h_oracle_eV"], row["e_hull_eV_per_atom"]
    lines = [
        subscripts(row["formula"]),
        row["layer_group"],
        "H does not stay" if delta_g is None else f"ΔG$_H$ {delta_g:+.2f} eV",
        "no E$_{hull}$" if e_hull is None else f"E$_{{hull}}$ {e_hull:+.2f} eV/atom",
    ]
    return "\n".join(lines)
