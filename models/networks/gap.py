"""The band gap of a layer by PBE: extremely randomised trees on composition, symmetry and bonds.

Interatomic potentials do not know the gap, and bind H too strongly to whatever has one: the correction to DFT
(models.physics.dft_correction) needs it. Trained on C2DB's gaps (python -m data.build.gap --db c2db.db).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from sklearn.ensemble import ExtraTreesRegressor

from models.infra.files import load_checkpoint, save_checkpoint
from models.networks.synthesis import FEATURES, Forest, as_forest, feature_table

CAP = 2.5  # eV; larger gaps count as this much: by then no state is near enough for H to use
TREES, MIN_LEAF, MAX_FEATURES = 100, 2, 0.4  # as for the synthesizability; 300 trees change 0.002 eV
KIND = "band gap"


def gap_features(structures: Sequence[Atoms]) -> np.ndarray:
    """[n, F] of layers in the convention; models.networks.synthesis.FEATURES with E_hull unknown."""
    return feature_table(structures, [np.nan] * len(structures))


def fit_gap(x: np.ndarray, gap: np.ndarray, seed: int = 0) -> Forest:
    """Trees on features [n, F] and gaps [n] eV."""
    model = ExtraTreesRegressor(
        TREES, min_samples_leaf=MIN_LEAF, max_features=MAX_FEATURES, random_state=seed
    )
    model.fit(x, np.minimum(gap, CAP))
    return as_forest([tree.tree_ for tree in model.estimators_])


@torch.no_grad()
def expected_gap(forest: Forest, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard deviation over the trees) [n] eV of features [n, F]."""
    said = forest.leaves(torch.tensor(x, dtype=torch.float32)).double()  # [T, n]
    return said.mean(0).numpy(), said.std(0).numpy()


def predict_gap(forest: Forest, structures: Sequence[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard deviation over the trees) [n] eV of layers in the convention; gaps end at CAP."""
    if not structures:
        return np.zeros(0), np.zeros(0)
    return expected_gap(forest, gap_features(structures))


def save_gap(path: Path, forest: Forest, **extra) -> None:
    """Writes the trees, the names of the features and plain extras."""
    content = {"kind": KIND, "hyper_parameters": forest.hyper_parameters, "features": list(FEATURES)}
    save_checkpoint(Path(path), content | {"model": forest.state_dict(), **extra})


def load_gap(path: Path, device: str = "cpu") -> Forest:
    """The trees of a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: python -m data.build.gap --db c2db.db makes it")
    content = load_checkpoint(path, device)
    if not isinstance(content, dict) or content.get("kind") != KIND or content["features"] != list(FEATURES):
        raise ValueError(f"{path} is no model of band gaps: python -m data.build.gap --db c2db.db makes one")
    forest = Forest(**content["hyper_parameters"])
    forest.load_state_dict(content["model"])
    return forest
