"""Every figure of the pipeline, drawn from tables alone."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

TITLES = {
    "total": "total", "coordinates": "in-plane score (σ·∇log p)", "z": "z (v-prediction)", "lattice": "lattice (v-prediction)",
    "elements": "slot elements (cross-entropy)", "delta_g_h": "|ΔG_H − ΔG_H*| (eV)", "e_hull": "(E_hull − E_hull*)² (eV²/atom²)",
    "synthesizable": "BCE of P_synth",
}  # fmt: skip
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 160})


def save(figure, path: Path):
    """Writes a PNG by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.stem + ".tmp.png")
    figure.savefig(temporary, bbox_inches="tight")
    plt.close(figure)
    temporary.replace(path)


def plot_loss_curve(history: list[dict], path: Path):
    """Training and validation curves of the joint loss and of each of its terms."""
    figure, axes = plt.subplots(2, 4, figsize=(13, 5.5), sharex=True)
    epochs = [row["epoch"] for row in history]
    for axis, (name, title) in zip(axes.flat, TITLES.items()):
        axis.plot(epochs, [row[f"train_{name}"] for row in history], label="train", color="tab:blue")
        axis.plot(epochs, [row[f"val_{name}"] for row in history], label="validation (EMA)", color="tab:orange")
        axis.set_title(title)
        if min(row[f"val_{name}"] for row in history) > 0:
            axis.set_yscale("log")
    axes[0, 0].legend(frameon=False)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    figure.suptitle("Joint loss: diffusion channels (lower noise floor is not zero) and property terms", y=1.0)
    figure.tight_layout()
    save(figure, path)


def plot_mae_curve(history: list[dict], path: Path):
    """Error of DimeNet++ by epoch, with the error of always predicting the mean of the training targets."""
    epochs = [row["epoch"] for row in history]
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    axis.plot(epochs, [row["train_mae_eV"] for row in history], ".-", label="train")
    axis.plot(epochs, [row["val_mae_eV"] for row in history], ".-", label="validation (EMA)")
    axis.axhline(history[0]["null_val_mae_eV"], color="0.5", linestyle="--", label="mean of train, on validation")
    axis.set(xlabel="epoch", ylabel="MAE (eV)", ylim=(0, None), title="DimeNet++ adsorption energy")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)
    save(figure, path)


def parity(panels: dict, xlabel: str, ylabel: str, path: Path):
    """Parity plots; panels: title -> (true [n], predicted [n], unit). The frame holds the central 99 % of the points."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.8), squeeze=False, layout="constrained")
    for axis, (title, (true, predicted, unit)) in zip(axes[0], panels.items()):
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
OPTIMUM = 0.1  # eV, |ΔG_H| of a good catalyst


def column(rows, name):
    """Values of a numeric column where they exist."""
    return [float(row[name]) for row in rows if row[name] not in ("", None)]


def paired(rows, *names):
    """Columns of the rows where all of them exist."""
    full = [row for row in rows if all(row[name] not in ("", None) for name in names)]
    return [[float(row[name]) for row in full] for name in names]


def her_performance(sets: dict, potential: str, path: Path):
    """Distributions of ΔG_H by the oracle and by DimeNet++, the gap between the two, and ΔG_H against E_hull."""
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.2))
    bins = [x / 4 for x in range(-16, 17)]
    for axis, (name, title) in zip(axes, [("delta_g_h_oracle_eV", f"H relaxed with {potential}"), ("delta_g_h_dimenet_eV", "DimeNet++")]):
        axis.axvspan(-OPTIMUM, OPTIMUM, color="tab:green", alpha=0.2, lw=0)
        for colour, (label, rows) in zip(COLOURS, sets.items()):
            values = column(rows, name)
            weights = [1 / max(len(rows), 1)] * len(values)
            outside = sum(abs(v) > 4 for v in values)
            legend = f"{label} (n = {len(values)} of {len(rows)}" + (f", {outside} beyond)" if outside else ")")
            axis.hist(values, bins, weights=weights, histtype="step", lw=1.8, color=colour, label=legend)
        axis.set(xlabel="ΔG_H (eV)", ylabel="share of all submitted", title=title)
        axis.legend(frameon=False, fontsize=7, loc="upper left")
        axis.set_ylim(top=axis.get_ylim()[1] * 1.25)
    for colour, (label, rows) in zip(COLOURS, sets.items()):
        oracle, dimenet = paired(rows, "delta_g_h_oracle_eV", "delta_g_h_dimenet_eV")
        axes[2].scatter(oracle, dimenet, s=18, color=colour, alpha=0.75, label=label, lw=0)
        hull, oracle = paired(rows, "e_hull_eV_per_atom", "delta_g_h_oracle_eV")
        axes[3].scatter(hull, oracle, s=18, color=colour, alpha=0.75, label=label, lw=0)
    axes[2].axline((0, 0), slope=1, color="0.6", lw=1)
    axes[2].set(xlabel="ΔG_H, oracle (eV)", ylabel="ΔG_H, DimeNet++ (eV)", title="the surrogate against the oracle")
    axes[3].axhspan(-OPTIMUM, OPTIMUM, color="tab:green", alpha=0.2, lw=0)
    axes[3].axvline(0.1, color="0.6", lw=1, ls="--")
    axes[3].set(xlabel="E_hull (eV/atom)", ylabel="ΔG_H, oracle (eV)", title="active and stable: green band, left of the line")
    axes[3].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    save(figure, path)


def stability_curve(sets: dict, potential: str, path: Path):
    """Share of all submitted below an E_hull, distributions of the stability score and of the RMSD to relaxed."""
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4))
    for colour, (label, rows) in zip(COLOURS, sets.items()):
        hull = sorted(column(rows, "e_hull_eV_per_atom"))
        share = [(k + 1) / max(len(rows), 1) for k in range(len(hull))]
        name = f"{label} (n = {len(hull)} of {len(rows)})"
        axes[0].step([-0.5, *hull, 3], [0, *share, share[-1] if share else 0], where="post", color=colour, label=name)
        axes[1].hist(column(rows, "stability_score"), [x / 20 for x in range(21)], histtype="step", lw=1.8, color=colour, label=label)
        moved = column(rows, "rmsd_relaxed_A")
        axes[2].hist([min(x, 1.5) for x in moved], [x / 20 for x in range(31)], histtype="step", lw=1.8, color=colour, label=label)
    axes[0].axvline(0.1, color="0.6", lw=1, ls="--")
    axes[0].set(xlim=(-0.3, 2), ylim=(0, 1.02), xlabel="E_hull (eV/atom)", ylabel="share of all submitted")
    axes[0].set_title(f"stability curve, {potential}")
    axes[0].legend(frameon=False, fontsize=7, loc="lower right")
    axes[1].set(xlabel="exp(−max(0, E_form − E_stable))", ylabel="structures", title="stability score")
    axes[1].legend(frameon=False, fontsize=7, loc="upper left")
    axes[2].set(xlabel="RMSD to the relaxed structure (Å), last bin: beyond", ylabel="structures", title="how far from a minimum")
    axes[2].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    save(figure, path)


def baseline_comparison(sets: dict, path: Path):
    """Rates and means of several sets with their 95 % intervals."""
    rates = [n for n in next(iter(sets.values())) if n.endswith("rate") or "rate_" in n]
    means = ["mae_delta_g_h_oracle_eV", "mae_delta_g_h_dimenet_eV", "stability_score", "rmsd_relaxed_A"]
    figure, axes = plt.subplots(1, 2, figsize=(15, 4.6), gridspec_kw={"width_ratios": [3, 1.3]})
    for axis, names, unit in ((axes[0], rates, "share of all submitted"), (axes[1], means, "mean over those that have it")):
        width = 0.8 / len(sets)
        for k, (colour, (label, metrics)) in enumerate(zip(COLOURS, sets.items())):
            for x, name in enumerate(names):
                m = metrics[name]
                if m["value"] is None:
                    continue
                low, high = [m["value"] if bound is None else bound for bound in m["ci95"]]
                axis.bar(x + (k - (len(sets) - 1) / 2) * width, m["value"], width * 0.92, color=colour, label=label if x == 0 else None,
                         yerr=[[m["value"] - low], [high - m["value"]]], error_kw={"lw": 1, "capsize": 2})  # fmt: skip
        axis.set_xticks(range(len(names)), [n.replace("_rate", "").replace("_", " ") for n in names], rotation=40, ha="right")
        axis.set_ylabel(unit)
    axes[0].legend(frameon=False, loc="upper center", bbox_to_anchor=(0.57, 1.0))
    axes[0].set_title("95 % intervals: bootstrap, Wilson where all agree")
    figure.tight_layout()
    save(figure, path)


def draw_layer(axis, atoms, rotation: str, repeat):
    """A layer drawn with ASE, its periodic images included."""
    from ase.visualize.plot import plot_atoms

    plot_atoms(atoms.repeat(repeat), axis, rotation=rotation, show_unit_cell=0)
    axis.set_axis_off()


def generated_structures(rows, relaxed: dict, poses: dict, path: Path, count: int = 8):
    """Top and side views of the most stable relaxed structures, H of the oracle's best pose included."""
    known = [r for r in rows if r["material_id"] in relaxed and r["e_hull_eV_per_atom"] != ""]
    stable = sorted(known, key=lambda r: float(r["e_hull_eV_per_atom"]))[:count]
    figure, axes = plt.subplots(2, max(len(stable), 1), figsize=(2.3 * max(len(stable), 2), 5), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for k, row in enumerate(stable):
        name = row["material_id"]
        atoms = poses.get(name, relaxed[name].repeat((2, 2, 1)))
        draw_layer(axes[0, k], atoms, "0x,0y,0z", (2, 2, 1))
        draw_layer(axes[1, k], atoms, "-90x,0y,0z", (2, 1, 1))
        energy = f"ΔG_H {float(row['delta_g_h_oracle_eV']):+.2f} eV" if row["delta_g_h_oracle_eV"] != "" else "no H site"
        axes[0, k].set_title(f"{row['formula']}\n{row['layer_group']}, E_hull {float(row['e_hull_eV_per_atom']):.2f}\n{energy}", fontsize=8)
    title = "the most stable of the set, relaxed; H at the oracle's best site; E_hull in eV/atom"
    figure.suptitle(title if stable else "no structure of this set is a 2D crystal", y=1.05)
    save(figure, path)
