"""Can a layer be made? A positive-unlabelled classifier, for where no CSLLM is given.

Layers known from experiment are positives; the others are unlabelled, not negative. An ensemble of trees,
each trained on the positives against a bootstrap draw of the unlabelled (PU bagging: Mordelet & Vert, Pattern
Recognit. Lett. 37, 201 (2014)), gives the probability of being *known*; divided by its mean on known layers
that were held out, that is the probability of being synthesizable (Elkan & Noto, KDD 2008). This assumes that
which of the synthesizable layers have been made so far does not depend on the layer. It does: in C2DB the
known ones have larger cells than the enumerated ones, so the report also gives the AUC among layers of equal
size.

scikit-learn grows the trees; they are kept as plain tensors, which takes fewer lines than skops (20, and no
version of scikit-learn to match) and is read with `weights_only=True` as every other checkpoint is.
scikit-learn's CalibratedClassifierCV is no substitute for Elkan & Noto's constant: it fits to true labels,
which unlabelled layers have not.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from sklearn.tree import ExtraTreeClassifier
from torch import nn

from models.crystals.elements import COMPOSITION_FEATURES, composition_features
from models.crystals.layer import bond_ratios, layer_group_of
from models.crystals.split import split_of
from models.crystals.thresholds import BOND_SCALE, SYMPREC, SYNTHESIZABLE
from models.infra.files import load_checkpoint, save_checkpoint

# fewer held-out known layers than this calibrate nothing: the training ones do then, and P comes out too low
MIN_KNOWN = 5
# chosen by 4-fold cross-validation over training formulas (AUC 0.940)
TREES, MIN_LEAF, MAX_FEATURES = 100, 2, 0.3
BOOTSTRAPS = 1000  # draws of formulas behind a 95 % interval

POINT_GROUP_ORDER = {
    "1": 1,
    "-1": 2,
    "2": 2,
    "m": 2,
    "2/m": 4,
    "222": 4,
    "mm2": 4,
    "mmm": 8,
    "4": 4,
    "-4": 4,
    "4/m": 8,
    "422": 8,
    "4mm": 8,
    "-42m": 8,
    "-4m2": 8,
    "4/mmm": 16,
    "3": 3,
    "-3": 6,
    "32": 6,
    "3m": 6,
    "-3m": 12,
    "6": 6,
    "-6": 6,
    "6/m": 12,
    "622": 12,
    "6mm": 12,
    "-6m2": 12,
    "-62m": 12,
    "6/mmm": 24,
}
CENTROSYMMETRIC = {"-1", "2/m", "mmm", "4/m", "4/mmm", "-3", "-3m", "6/m", "6/mmm"}

FEATURES = (
    *COMPOSITION_FEATURES,
    "primitive_atoms",
    "log_point_group_order",
    "inversion",
    "rectangular",
    "tetragonal",
    "hexagonal",
    "thickness",
    "area_per_atom",
    "coordination_mean",
    "coordination_min",
    "coordination_max",
    "bond_ratio_mean",
    "like_bonds",
    "e_hull",
    "e_hull_unknown",
)


def features(atoms: Atoms, e_hull: float) -> np.ndarray:
    """What the classifier sees of a layer; invariant under rotation, in-plane translation, mirror and
    supercell.

    Args:
        atoms: a layer in the convention.
        e_hull: energy above the hull, eV/atom; NaN or None where unknown.

    Returns:
        [F] in the order of FEATURES; lengths in Å, the energy clipped to [0, 1] eV/atom.
    """
    unknown = e_hull is None or not np.isfinite(e_hull)
    energy = [0.0 if unknown else float(np.clip(e_hull, 0, 1)), float(unknown)]
    return np.array([*composition_features(atoms.numbers), *_symmetry(atoms), *_geometry(atoms), *energy])


def _symmetry(atoms: Atoms) -> list[float]:
    found = layer_group_of(atoms, SYMPREC)
    if found is None:
        return [len(atoms), 0.0, 0.0, 0.0, 0.0, 0.0]
    translations = (found.rotations == np.eye(3, dtype=int)).all((1, 2)).sum()
    order = POINT_GROUP_ORDER[found.pointgroup]
    lattice = np.searchsorted(
        [8, 49, 65], found.number, side="right"
    )  # oblique, rectangular, tetragonal, hexagonal
    return [
        len(atoms) / translations,
        np.log2(order),
        found.pointgroup in CENTROSYMMETRIC,
        *(lattice == k for k in (1, 2, 3)),
    ]


def _geometry(atoms: Atoms) -> list[float]:
    thickness = np.ptp(atoms.positions[:, 2])
    area = np.linalg.norm(np.cross(*atoms.cell.array[:2])) / len(atoms)
    i, j, _, ratio = bond_ratios(atoms, BOND_SCALE)
    if len(i) == 0:
        return [thickness, area, 0.0, 0.0, 0.0, BOND_SCALE, 0.0]
    coordination = np.bincount(i, minlength=len(atoms))
    like = np.mean(atoms.numbers[i] == atoms.numbers[j])
    return [thickness, area, coordination.mean(), coordination.min(), coordination.max(), ratio.mean(), like]


def feature_table(structures: Sequence[Atoms], e_hull: Sequence[float]) -> np.ndarray:
    """features of n layers, [n, F]."""
    return np.array(
        [features(atoms, energy) for atoms, energy in zip(structures, e_hull, strict=True)]
    ).reshape(-1, len(FEATURES))


class Forest(nn.Module):
    """Extremely randomised trees as tensors, and the constant that turns their score into P(synthesizable).

    Attributes:
        feature, threshold, left, right, share: [T, K] of the nodes, root first: which feature [F] is
            compared, where to go for value <= threshold and where else (a leaf leads to itself), and the
            share of known layers in the node's bag.
        c: mean P(known) of held-out known layers (Elkan & Noto's constant).
    """

    def __init__(self, trees: int, nodes: int, depth: int):
        super().__init__()
        self.hyper_parameters = {"trees": trees, "nodes": nodes, "depth": depth}
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(trees, nodes, dtype=torch.long))
        self.register_buffer("threshold", torch.full((trees, nodes), torch.inf, dtype=torch.float64))
        self.register_buffer("share", torch.zeros(trees, nodes))
        self.register_buffer("c", torch.tensor(1.0))

    def leaves(self, x: torch.Tensor) -> torch.Tensor:
        """What each tree says [T, n] of features [n, F]."""
        rows = torch.arange(len(x), device=x.device)
        node = torch.zeros(len(self.feature), len(x), dtype=torch.long, device=x.device)
        for _ in range(self.hyper_parameters["depth"]):
            value = x[rows, self.feature.gather(1, node)]
            below = value <= self.threshold.gather(1, node)
            node = torch.where(below, self.left.gather(1, node), self.right.gather(1, node))
        return self.share.gather(1, node)

    def labelled(self, x: torch.Tensor) -> torch.Tensor:
        """P(known from experiment) [n] of features [n, F]."""
        return self.leaves(x).mean(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """P(synthesizable) [n] of features [n, F]."""
        return (self.labelled(x) / self.c).clamp(0, 1)


def fit_forest(x: np.ndarray, known: np.ndarray, held_out: np.ndarray, seed: int) -> Forest:
    """Trains on known against unlabelled rows and calibrates on held-out known ones.

    Args:
        x: [n, F] features.
        known: [n] bool.
        held_out: [m, F] features of known rows, best not among x.
        seed: of the bags and the trees.

    Raises:
        ValueError: without known or without unlabelled rows.
    """
    if not known.any() or known.all():
        raise ValueError(
            f"{known.sum()} known and {(~known).sum()} unlabelled layers to train on: both are needed"
        )
    rng = np.random.default_rng(seed)
    positive, unlabelled = np.flatnonzero(known), np.flatnonzero(~known)
    trees = []
    for state in rng.integers(2**31, size=TREES):
        bag = np.concatenate([positive, rng.choice(unlabelled, len(unlabelled))])
        tree = ExtraTreeClassifier(
            min_samples_leaf=MIN_LEAF, max_features=MAX_FEATURES, random_state=int(state)
        )
        trees.append(tree.fit(x[bag], known[bag]).tree_)
    forest = as_forest(trees)
    forest.c = forest.labelled(_tensor(held_out)).mean()
    return forest


def as_forest(trees: list) -> Forest:
    """scikit-learn's trees (`.tree_`) as tensors: shares of a classifier, means of a regressor."""
    forest = Forest(len(trees), max(tree.node_count for tree in trees), max(tree.max_depth for tree in trees))
    for k, tree in enumerate(trees):
        _store(forest, k, tree)
    return forest


def _store(forest: Forest, k: int, tree) -> None:
    """Copies scikit-learn's tree into row k."""
    nodes, leaf = np.arange(tree.node_count), tree.children_left < 0
    fill = lambda name, values: getattr(forest, name)[k, : len(nodes)].copy_(torch.tensor(values))
    fill("feature", np.where(leaf, 0, tree.feature))
    fill("threshold", np.where(leaf, np.inf, tree.threshold))
    fill("left", np.where(leaf, nodes, tree.children_left))
    fill("right", np.where(leaf, nodes, tree.children_right))
    value = tree.value[:, 0]  # [K, classes], or [K, 1] of a regressor
    fill("share", value[:, 0] if value.shape[1] == 1 else value[:, 1] / value.sum(1))


def _tensor(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float32)


class SynthesisModel(nn.Module):
    """Two forests: one that knows E_hull, and one for where it is unknown.

    Args:
        with_e_hull, without_e_hull: trained by fit_forest, the latter on features from which E_hull was
            removed.
    """

    def __init__(self, with_e_hull: Forest, without_e_hull: Forest):
        super().__init__()
        self.with_e_hull, self.without_e_hull = with_e_hull, without_e_hull

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """P(synthesizable) [n] of features [n, F]."""
        return torch.where(
            x[:, FEATURES.index("e_hull_unknown")] > 0.5, self.without_e_hull(x), self.with_e_hull(x)
        )

    @torch.no_grad()
    def predict(self, structures: Sequence[Atoms], e_hull: Sequence[float]) -> np.ndarray:
        """P(synthesizable) [n] of n layers in the convention; E_hull [n] in eV/atom, NaN where unknown."""
        table = _tensor(feature_table(structures, e_hull)).to(self.with_e_hull.c.device)
        return self(table).cpu().numpy().astype(float)


def train_synthesis(structures: Sequence[Atoms], e_hull, labels, formulas: Sequence[str], seed: int = 0):
    """Trains on the split's training formulas, calibrates on its validation ones, and measures on both and on
    test.

    Args:
        structures: n layers in the convention.
        e_hull: [n] eV/atom, NaN where unknown.
        labels: [n] 1 known from experiment, 0 unlabelled, NaN ignored.
        formulas: [n], for the split.

    Returns:
        The model, and a report of plain types (numbers that do not exist are None).

    Raises:
        ValueError: no layer is known from experiment, or none is unlabelled, among the training formulas.
    """
    labels = np.asarray(labels, dtype=float)
    rows = np.flatnonzero(np.isfinite(labels))
    known = labels[rows] == 1
    if not known.any():
        raise ValueError(
            "no layer is known from experiment: the database needs rows with icsd_id, cod_id or doi"
        )
    energies, formulas = np.asarray(e_hull, dtype=float)[rows], np.array([formulas[k] for k in rows])
    split = np.array([split_of(formula) for formula in formulas])
    x = feature_table([structures[k] for k in rows], energies)
    blind = _without_e_hull(x)
    train = split == "train"
    calibration = "val" if (known & (split == "val")).sum() >= MIN_KNOWN else "train"
    held_out = known & (split == calibration)
    model = SynthesisModel(
        *(fit_forest(table[train], known[train], table[held_out], seed) for table in (x, blind))
    )

    constants = {"c": float(model.with_e_hull.c), "c_without_e_hull": float(model.without_e_hull.c)}
    report = {
        "seed": seed,
        "threshold": SYNTHESIZABLE,
        "calibrated_on": calibration,
        **constants,
        "notes": [],
    }
    for name in ("train", "val", "test"):
        here = split == name
        report[name] = _measure(
            model, x[here], blind[here], known[here], energies[here], formulas[here], seed
        )
        if report[name]["known"] < MIN_KNOWN:
            report["notes"].append(f"{report[name]['known']} known layers in {name}: its figures say little")
    if calibration == "train":
        report["notes"].append(
            "calibrated on training layers, for want of held-out ones: P comes out too low for new ones"
        )
    return model, report


def _without_e_hull(x: np.ndarray) -> np.ndarray:
    """Features [n, F] as they are where E_hull is unknown."""
    x = x.copy()
    x[:, FEATURES.index("e_hull")], x[:, FEATURES.index("e_hull_unknown")] = 0.0, 1.0
    return x


def _measure(model, x, blind, known, e_hull, formulas, seed) -> dict:
    """Figures of one split, with E_hull and without, among equal sizes, and of the nulls: E_hull and the size
    of the cell alone.
    """
    if not len(x):
        return {"known": 0, "unlabelled": 0}
    result = {"known": int(known.sum()), "unlabelled": int((~known).sum())}
    size = x[:, FEATURES.index("primitive_atoms")].round()
    score, null = model(_tensor(x)).numpy(), -np.nan_to_num(e_hull, nan=np.inf)
    for prefix, values in {"": score, "without_e_hull_": model(_tensor(blind)).numpy()}.items():
        result |= {
            f"{prefix}recall": _share(values[known]),
            f"{prefix}unlabelled_positive": _share(values[~known]),
        }
        result[f"{prefix}auc"], result[f"{prefix}auc_95"] = auc(values, known, formulas, seed)
    result["auc_equal_size"], result["auc_equal_size_95"] = auc(score, known, formulas, seed, size)
    result["e_hull_alone_auc"], result["e_hull_alone_auc_95"] = auc(null, known, formulas, seed)
    result["e_hull_alone_auc_equal_size"], _ = auc(null, known, formulas, seed, size)
    result["size_alone_auc"], _ = auc(size, known, formulas, seed)
    return result


def _share(score: np.ndarray) -> float | None:
    return float(np.mean(score >= SYNTHESIZABLE)) if len(score) else None


def auc(
    score: np.ndarray,
    known: np.ndarray,
    formulas: np.ndarray,
    seed: int = 0,
    strata: np.ndarray | None = None,
):
    """Share of (known, unlabelled) pairs that the score orders rightly, ties half, and its 95 % interval.

    The bootstrap draws formulas, not rows, because phases of one formula are not independent.

    Args:
        score, known, formulas: [n].
        strata: [n], only pairs of equal value count; None for all pairs.

    Returns:
        (AUC, [low, high]), or (None, None) where there is no such pair.
    """
    strata = np.zeros(len(score)) if strata is None else strata
    counted = strata[known][:, None] == strata[~known]
    if not counted.any():
        return None, None
    right = counted * (
        (score[known][:, None] > score[~known]) + 0.5 * (score[known][:, None] == score[~known])
    )
    kinds, group = np.unique(formulas, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(
        len(kinds), np.full(len(kinds), 1 / len(kinds)), BOOTSTRAPS
    )[:, group]
    positive, negative = drawn[:, known].astype(float), drawn[:, ~known]
    pairs = ((positive @ counted) * negative).sum(1)
    values = ((positive @ right) * negative).sum(1)[pairs > 0] / pairs[pairs > 0]
    return float(right.sum() / counted.sum()), np.percentile(values, [2.5, 97.5]).tolist()


def save_synthesis(path: Path, model: SynthesisModel, **extra) -> None:
    """Writes the forests, the names of the features and plain extras (the report, the arguments)."""
    sizes = {name: forest.hyper_parameters for name, forest in model.named_children()}
    save_checkpoint(
        Path(path),
        {"hyper_parameters": sizes, "features": list(FEATURES), "model": model.state_dict(), **extra},
    )


def load_synthesis(path: Path, device: str = "cpu") -> SynthesisModel:
    """Model of a checkpoint.

    Raises:
        FileNotFoundError: with what to do.
        ValueError: the checkpoint was trained on other features.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} is missing: train it with material_dataset.py --synthesis-out {path}"
        )
    content = load_checkpoint(path, device)
    if not isinstance(content, dict) or not {"features", "hyper_parameters", "model"} <= content.keys():
        raise ValueError(
            f"{path} is no synthesizability model: material_dataset.py --synthesis-out makes one"
        )
    if content["features"] != list(FEATURES):
        raise ValueError(f"{path} was trained on other features than this version computes: train it anew")
    model = SynthesisModel(**{name: Forest(**size) for name, size in content["hyper_parameters"].items()})
    model.load_state_dict(content["model"])
    return model.to(device)
