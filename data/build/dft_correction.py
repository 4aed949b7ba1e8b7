"""The correction to DFT, fitted and judged: python -m data.build.dft_correction

Compares candidates by cross-validation over formulas on training and validation layers of the DFT data set,
judges them on its test layers, and fits models/weights/dft_correction.json to all that is not test. Writes
results/published/dft_correction.csv, .png and the table of docs/dft.md. Single points that are missing are
taken first.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.build.dft_report import PUBLISHED, SHARDS, add_potentials, done, fill, markdown
from data.build.validate import ONE_SIGMA, cover
from models.crystals.elements import element_features
from models.crystals.layer import unpack_atoms
from models.evaluation.figures import plt, save
from models.infra.files import ROOT, digest, read_json, write_rows
from models.infra.shards import Shard
from models.networks.gap import CAP
from models.physics.dft import Settings
from models.physics.dft_correction import FEATURES, DftCorrection, GaussianProcess, noise_spread
from models.physics.hydrogen import CORRECTION

POTENTIAL, SECOND = "sevennet", "diep"
NAME = "SevenNet 7net-l3i5"
WEIGHTS = ROOT / "models" / "weights" / "dft_correction.json"
FOLDS = 10
METAL = 0.1  # eV, gap of the DFT slab below which it counts as a metal
SHELL = 0.1  # decay of a neighbour's weight, in sums of covalent radii beyond the shortest bond to H
SITE = (  # further features that candidates are given
    "near_electronegativity",  # of the neighbours of H, weighted mean
    "near_radius",
    "near_valence",
    "coordination",  # number of neighbours by their weights
    "bond",  # shortest distance of H, in sums of covalent radii
    "height",  # of H above the outermost nucleus of its face, Å
    "electronegativity",  # of the layer: mean, and spread, which tells ionic from metallic
    "electronegativity_spread",
    "valence",
)
Predict = Callable[[np.ndarray], np.ndarray]


def site_features(pose: Atoms) -> list[float]:
    """SITE; invariant under rotation, mirror, translation and the order of atoms.

    Args:
        pose: supercell with H as the last atom.
    """
    host, last = pose.numbers[:-1], len(pose) - 1
    ratio = pose.get_distances(last, range(last), mic=True)
    ratio = ratio / (covalent_radii[host] + covalent_radii[pose.numbers[-1]])
    weight = np.exp(-(ratio - ratio.min()) / SHELL)  # [N]
    _, _, electronegativity, radius, valence = np.array([element_features(int(z)) for z in host]).T
    near = [weight @ column / weight.sum() for column in (electronegativity, radius, valence)]
    heights, h = pose.positions[:-1, 2], pose.positions[-1, 2]
    outside = h - heights.max() if h > heights.mean() else heights.min() - h
    whole = [electronegativity.mean(), electronegativity.std(), valence.mean()]
    return [*near, weight.sum(), ratio.min(), outside, *whole]


class Points:
    """The poses of the data set and what is known of them, [n] each.

    Attributes:
        rows: records of the data set.
        x: [n, F] FEATURES with the gap of the DFT calculation itself, then site_features.
        guessed: [n, 2] eV, the gap and its uncertainty as they are expected without DFT.
        dft, potential: ΔE_H, eV.
        fold: of cross-validation; a formula is in one.
    """

    def __init__(self, rows: list[dict], potentials: Shard, gaps: dict[str, dict]):
        self.rows, described, guessed = [], [], []
        for row in rows:
            first, second = (potentials.rows.get(f"{row['key']}|{name}") for name in (POTENTIAL, SECOND))
            if row["relax"] != "none" or row["key"] not in gaps or None in (first, second):
                continue
            if first["reason"] or second["reason"] or row["gaps"]["slab"] is None:
                continue
            self.rows.append(row)
            energies = [first["delta_e"], second["delta_e"] - first["delta_e"], min(row["gaps"]["slab"], CAP)]
            described.append([*energies, *site_features(unpack_atoms(row["pose"]))])
            guessed.append([gaps[row["key"]]["gap"], gaps[row["key"]]["std"]])
        self.x, self.guessed = np.array(described), np.array(guessed)
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
        process = GaussianProcess.fit(x[:, columns], y, noise_spread(x[:, 2]))
        return lambda other: process.predict(other[:, columns], noise_spread(other[:, 2]))[0]

    return fit


def fit_nothing(x: np.ndarray, y: np.ndarray) -> Predict:
    return lambda other: np.zeros(len(other))


def fit_second(x: np.ndarray, y: np.ndarray) -> Predict:
    return lambda other: other[:, 1]


EVERYTHING = list(range(len(FEATURES) + len(SITE)))
CANDIDATES = {
    "the potential as it is": fit_nothing,
    "the second potential as it is": fit_second,
    "a constant shift": fit_constant,
    "line on the potential": fit_ridge([0]),
    "ridge on both potentials": fit_ridge([0, 1]),
    "ridge on both and the gap": fit_ridge([0, 1, 2]),
    "ridge on these and the site": fit_ridge(EVERYTHING),
    "Gaussian process, both potentials": fit_process([0, 1]),
    "Gaussian process, both and the gap": fit_process([0, 1, 2]),
    "Gaussian process, these and the site": fit_process(EVERYTHING),
    "extra trees, all": fit_trees,
}


def folds(points: Points) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """([n] kept, [n] left out): each fold of the layers that are not test, then test layers by all these."""
    for fold in range(FOLDS):
        left_out = (points.fold == fold) & ~points.test
        if left_out.any():
            yield ~left_out & ~points.test, left_out
    if points.test.any():
        yield ~points.test, points.test


def cross_validated(points: Points, fit: Callable, gap_known: bool) -> np.ndarray:
    """[n] held-out predictions of the target; the gap of what is predicted is the one of DFT or, as in use,
    the expected one.
    """
    found, seen = np.full(len(points.rows), np.nan), points.x.copy()
    if not gap_known:
        seen[:, 2] = points.guessed[:, 0]
    for kept, left_out in folds(points):
        found[left_out] = fit(points.x[kept], points.target[kept])(seen[left_out])
    return found


def held_out_correction(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard deviation) [n] of ΔE_H by DFT as the shipped kind of correction has it, held out."""
    mean, std = np.full((2, len(points.rows)), np.nan)
    used = slice(0, len(FEATURES))
    for kept, left_out in folds(points):
        correction = DftCorrection.fit(points.x[kept, used], points.target[kept], NAME, SECOND)
        mean[left_out], std[left_out] = applied(points, correction, left_out)
    return mean, std


def applied(points: Points, correction: DftCorrection, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ΔE_H by DFT, standard deviation) of some poses by a correction, their gap being the expected one."""
    x = points.x[chosen]
    gap, gap_std = points.guessed[chosen].T
    return correction.delta_e(x[:, 0], x[:, 0] + x[:, 1], gap, gap_std)


def comparison(points: Points) -> list[dict]:
    """One row a candidate: errors by cross-validation and on test layers, all and randomly drawn ones, eV."""
    found = []
    for name, fit in CANDIDATES.items():
        error = cross_validated(points, fit, gap_known=False) - points.target
        with_gap = abs(cross_validated(points, fit, gap_known=True) - points.target)
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
        row["mae_cv_gap_by_dft"] = round(float(with_gap[~points.test].mean()), 3)
        row["bias_cv"] = round(float(error[~points.test].mean()), 3)
        row["rmse_cv"] = round(float(np.sqrt((error[~points.test] ** 2).mean())), 3)
        found.append(row)
    return found


def draw(points: Points, mean: np.ndarray, std: np.ndarray, path: Path) -> None:
    """Parity before and after, reliability of the error bar, and the learning curve."""
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 8.6), layout="constrained")
    before, after, reliable, learning = axes.flat
    panels = ((before, points.potential, NAME), (after, mean, "corrected, held out"))
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
    low, high = points.dft.min() - 0.3, points.dft.max() + 0.3
    for axis in (before, after):
        axis.set(xlim=(low, high), ylim=(low, high))
    before.legend(frameon=False)
    shares = np.linspace(0.05, 0.99, 40)
    error = mean - points.dft
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
    learning.set_xticks(sizes, sizes)
    learning.minorticks_off()
    save(figure, path)


def learning_curve(points: Points, draws: int = 3, seed: int = 0) -> tuple[list[int], list[float]]:
    """Held-out MAE (eV) against the number of poses learned from, mean of some random subsets."""
    rng, known = np.random.default_rng(seed), np.flatnonzero(~points.test)
    sizes = np.geomspace(10, 0.85 * len(known), 4).astype(int).tolist()
    maes = []
    for size in sizes:
        errors = []
        for _ in range(draws):
            for fold in np.unique(points.fold[known]):
                left_out = known[points.fold[known] == fold]
                rest = known[points.fold[known] != fold]
                chosen = rng.permutation(rest)[:size]
                x, y = points.x[chosen, : len(FEATURES)], points.target[chosen]
                correction = DftCorrection.fit(x, y, NAME, SECOND)
                errors.extend(abs(applied(points, correction, left_out)[0] - points.dft[left_out]))
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
    rows = done(Shard(SHARDS / "dft.jsonl"), Settings())
    potentials = Shard(SHARDS / "dft_potentials.jsonl")
    add_potentials(rows, potentials, [POTENTIAL, SECOND])
    points = Points(rows, potentials, read_json(SHARDS / "dft_gaps.json"))
    found = comparison(points)
    write_rows(PUBLISHED / "dft_correction.csv", found, list(found[0]))
    mean, std = held_out_correction(points)
    known, error = ~points.test, mean - points.dft
    widening = float(np.quantile((abs(error) / std)[known], ONE_SIGMA))
    std = std * widening
    correction = DftCorrection.fit(points.x[known, : len(FEATURES)], points.target[known], NAME, SECOND)
    correction.widening = widening
    about = {"settings": Settings().key, "poses": int(known.sum()), "test_poses": int(points.test.sum())}
    correction.save(args.out, about)
    draw(points, mean, std, PUBLISHED / "dft_correction.png")
    covers, metal = [], points.x[:, 2] < METAL
    groups = {"cross-validated": known, "cross-validated, metals": known & metal}
    groups |= {"cross-validated, gapped": known & ~metal, "test": points.test}
    for group, chosen in groups.items():
        shares = {
            f"{share:.0%}": round(cover(error[chosen], std[chosen], share), 2) for share in (0.68, 0.95)
        }
        mae = round(float(abs(error[chosen]).mean()), 2)
        before = round(float(abs(points.target[chosen]).mean()), 2)
        row = {"layers": group, "n": int(chosen.sum()), "MAE": mae, "MAE of the potential": before}
        covers.append(row | {"mean error bar": round(float(std[chosen].mean()), 2)} | shares)
    tables = {
        "correction": markdown(found, {name: name.replace("_", " ") for name in found[0]}),
        "cover": markdown(covers, {name: name for name in covers[0]}),
    }
    fill(ROOT / "docs" / "dft.md", tables)
    print(
        tables["correction"],
        tables["cover"],
        correction.process.hyperparameters,
        f"widening {widening:.2f}",
        sep="\n\n",
    )


if __name__ == "__main__":
    main()
