"""The correction to DFT, fitted and judged: python -m data.build.dft_correction

Compares candidates by cross-validation over formulas on training and validation layers of the DFT data set,
judges them on its test layers, and fits models/weights/dft_correction.json to all that is not test. Writes
results/published/dft_correction.csv, .png and the table of docs/dft.md. Single points that are missing are
taken first.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import norm
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.build.dft_report import PUBLISHED, SHARDS, add_potentials, convergence_rows, done, fill, markdown
from models.crystals.layer import unpack_atoms
from models.evaluation.figures import plt, save
from models.infra.files import ROOT, digest, write_rows
from models.infra.shards import Shard
from models.physics.dft import Settings
from models.physics.dft_correction import FEATURES, DftCorrection, GaussianProcess, features
from models.physics.hydrogen import CORRECTION

POTENTIAL, SECOND = "sevennet", "diep"
NAME = "SevenNet 7net-l3i5"
WEIGHTS = ROOT / "models" / "weights" / "dft_correction.json"
FOLDS = 10
ONE_SIGMA = 0.6827  # of a normal distribution
FEW = [0, 1, 2, 5, 9]  # FEATURES that a small set can carry
Predict = Callable[[np.ndarray], np.ndarray]


class Points:
    """The poses of the data set: features [n, F], ΔE_H by DFT and by the potential [n] eV, and the rows."""

    def __init__(self, rows: list[dict], potentials: Shard):
        self.rows, described = [], []
        for row in rows:
            first, second = (potentials.rows.get(f"{row['key']}|{name}") for name in (POTENTIAL, SECOND))
            if row["relax"] != "none" or None in (first, second) or first["reason"] or second["reason"]:
                continue
            self.rows.append(row)
            described.append(features(unpack_atoms(row["pose"]), first["delta_e"], second["delta_e"]))
        self.x = np.array(described)
        self.dft = np.array([row["delta_e_dft"] for row in self.rows])
        self.potential = self.x[:, 0]
        self.test = np.array([row["split"] == "test" for row in self.rows])
        self.fold = np.array([int(digest(row["formula"])[:6], 16) % FOLDS for row in self.rows])
        self.random = np.array([row["sample"] == "random" for row in self.rows])

    @property
    def target(self) -> np.ndarray:
        """[n] DFT minus the potential, eV."""
        return self.dft - self.potential


def fit_constant(x: np.ndarray, y: np.ndarray) -> Predict:
    return lambda other: np.full(len(other), y.mean())


def fit_ridge(columns: list[int]) -> Callable[[np.ndarray, np.ndarray], Predict]:
    def fit(x: np.ndarray, y: np.ndarray) -> Predict:
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 25))).fit(x[:, columns], y)
        return lambda other: model.predict(other[:, columns])

    return fit


def fit_trees(x: np.ndarray, y: np.ndarray) -> Predict:
    return ExtraTreesRegressor(300, min_samples_leaf=2, random_state=0).fit(x, y).predict


def fit_process(columns: list[int]) -> Callable[[np.ndarray, np.ndarray], Predict]:
    def fit(x: np.ndarray, y: np.ndarray) -> Predict:
        process = GaussianProcess.fit(x[:, columns], y)
        return lambda other: process.predict(other[:, columns])[0]

    return fit


def fit_nothing(x: np.ndarray, y: np.ndarray) -> Predict:
    return lambda other: np.zeros(len(other))


def fit_second(x: np.ndarray, y: np.ndarray) -> Predict:
    return lambda other: other[:, 1]


EVERYTHING = list(range(len(FEATURES)))
CANDIDATES = {
    "the potential as it is": fit_nothing,
    "the second potential as it is": fit_second,
    "a constant shift": fit_constant,
    "line on the potential": fit_ridge([0]),
    "ridge on both potentials": fit_ridge([0, 1]),
    "ridge on all features": fit_ridge(EVERYTHING),
    "Gaussian process, both potentials": fit_process([0, 1]),
    "Gaussian process, five features": fit_process(FEW),
    "Gaussian process, all features": fit_process(EVERYTHING),
    "extra trees, all features": fit_trees,
}


def cross_validated(points: Points, fit: Callable) -> np.ndarray:
    """[n] predictions of the target: each fold of the layers that are not test by the others; test layers by
    all of these.
    """
    found = np.full(len(points.rows), np.nan)
    for fold in range(FOLDS):
        left_out = (points.fold == fold) & ~points.test
        if left_out.any():
            kept = ~left_out & ~points.test
            found[left_out] = fit(points.x[kept], points.target[kept])(points.x[left_out])
    if points.test.any():
        kept = ~points.test
        found[points.test] = fit(points.x[kept], points.target[kept])(points.x[points.test])
    return found


def held_out_process(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard deviation) [n] of the shipped kind of process, by the same scheme."""
    mean, std = np.full((2, len(points.rows)), np.nan)
    for fold in range(FOLDS + 1):
        left_out = points.test if fold == FOLDS else (points.fold == fold) & ~points.test
        kept = ~left_out & ~points.test
        if left_out.any():
            process = GaussianProcess.fit(points.x[kept], points.target[kept])
            mean[left_out], std[left_out] = process.predict(points.x[left_out])
    return mean, std


def comparison(points: Points) -> list[dict]:
    """One row a candidate: errors by cross-validation and on test layers, all and randomly drawn ones, eV."""
    found = []
    for name, fit in CANDIDATES.items():
        error = cross_validated(points, fit) - points.target
        row = {"candidate": name}
        groups = {
            "cv": ~points.test,
            "cv_random": ~points.test & points.random,
            "cv_active": ~points.test & (abs(points.dft + CORRECTION) <= 0.5),
            "test": points.test,
            "test_random": points.test & points.random,
        }
        for group, chosen in groups.items():
            row[f"n_{group}"] = int(chosen.sum())
            row[f"mae_{group}"] = round(float(abs(error[chosen]).mean()), 3) if chosen.any() else None
        row["bias_cv"] = round(float(error[~points.test].mean()), 3)
        row["rmse_cv"] = round(float(np.sqrt((error[~points.test] ** 2).mean())), 3)
        found.append(row)
    return found


def cover(error: np.ndarray, std: np.ndarray, share: float) -> float:
    """Share of the errors within the central interval that should hold `share` of them."""
    return float((abs(error) <= norm.ppf(0.5 + share / 2) * std).mean())


def draw(points: Points, mean: np.ndarray, std: np.ndarray, path: Path) -> None:
    """Parity before and after, reliability of the error bar, and the learning curve."""
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 8.6), layout="constrained")
    before, after, reliable, learning = axes.flat
    panels = ((before, points.potential, NAME), (after, points.potential + mean, "corrected, held out"))
    for axis, guess, title in panels:
        for chosen, colour, label in (
            (~points.test, "tab:blue", "cross-validated"),
            (points.test, "tab:red", "test"),
        ):
            axis.scatter(points.dft[chosen], guess[chosen], s=18, color=colour, label=label, zorder=3)
        if axis is after:
            axis.errorbar(points.dft, guess, std, fmt="none", ecolor="0.75", lw=0.8, zorder=1)
        axis.axline((0, 0), slope=1, color="0.6", lw=1)
        axis.axvspan(-CORRECTION - 0.2, -CORRECTION + 0.2, color="0.93", zorder=0)
        mae = abs(guess - points.dft).mean()
        axis.set(title=f"{title}: MAE {mae:.2f} eV (n = {len(guess)})", xlabel="ΔE_H by DFT (eV)")
        axis.set_ylabel("ΔE_H (eV)")
    after.set(xlim=before.get_xlim(), ylim=before.get_ylim())
    before.legend(frameon=False)
    shares = np.linspace(0.05, 0.99, 40)
    error = mean - points.target
    reliable.plot(shares, [cover(error, std, share) for share in shares], color="tab:blue")
    reliable.plot([0, 1], [0, 1], color="0.6", lw=1)
    reliable.set(
        title="error bar: reliability", xlabel="interval that should hold", ylabel="share that it holds"
    )
    sizes, maes = learning_curve(points)
    learning.plot(sizes, maes, "o-", color="tab:blue")
    learning.axhline(abs(points.target).mean(), color="0.6", ls="--", lw=1)
    learning.annotate("uncorrected", (sizes[0], abs(points.target).mean()), va="bottom", color="0.4")
    learning.set(
        title="learning curve (cross-validated)",
        xlabel="DFT poses learned from",
        ylabel="MAE (eV)",
        xscale="log",
    )
    learning.set_ylim(0)
    save(figure, path)


def learning_curve(points: Points, draws: int = 5, seed: int = 0) -> tuple[list[int], list[float]]:
    """Held-out MAE (eV) against the number of poses learned from, mean of some random subsets."""
    rng, known = np.random.default_rng(seed), np.flatnonzero(~points.test)
    sizes = [size for size in (10, 20, 40, 80, 160, 320) if size < 0.85 * len(known)]
    maes = []
    for size in sizes:
        errors = []
        for _ in range(draws):
            for fold in np.unique(points.fold[known]):
                left_out = known[points.fold[known] == fold]
                rest = known[points.fold[known] != fold]
                chosen = rng.permutation(rest)[:size]
                process = GaussianProcess.fit(points.x[chosen], points.target[chosen])
                errors.extend(abs(process.predict(points.x[left_out])[0] - points.target[left_out]))
        maes.append(float(np.mean(errors)))
    return sizes, maes


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the correction")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    shard = Shard(SHARDS / "dft.jsonl")
    rows = done(shard, Settings())
    rows += convergence_rows(rows)
    potentials = Shard(SHARDS / "dft_potentials.jsonl")
    add_potentials(rows, potentials, [POTENTIAL, SECOND])
    points = Points(rows, potentials)
    found = comparison(points)
    write_rows(PUBLISHED / "dft_correction.csv", found, list(found[0]))
    mean, std = held_out_process(points)
    known = ~points.test
    ratio = abs(mean - points.target)[known] / std[known]
    widening = float(np.quantile(ratio, ONE_SIGMA))
    std = std * widening
    process = GaussianProcess.fit(points.x[known], points.target[known])
    process.widening = widening
    about = {"settings": Settings().key, "poses": int(known.sum()), "test_poses": int(points.test.sum())}
    DftCorrection(process, NAME, SECOND).save(args.out, about)
    draw(points, mean, std, PUBLISHED / "dft_correction.png")
    covers = []
    for group, chosen in {"cross-validated": known, "test": points.test}.items():
        error = (mean - points.target)[chosen]
        shares = {f"{share:.0%}": round(cover(error, std[chosen], share), 2) for share in (0.68, 0.95)}
        covers.append({"layers": group, "n": int(chosen.sum())} | shares)
    tables = {
        "correction": markdown(found, {name: name.replace("_", " ") for name in found[0]}),
        "cover": markdown(covers, {name: name for name in covers[0]}),
    }
    fill(ROOT / "docs" / "dft.md", tables)
    print(
        tables["correction"], tables["cover"], process.hyperparameters, f"widening {widening:.2f}", sep="\n\n"
    )


if __name__ == "__main__":
    main()
