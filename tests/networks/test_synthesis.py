"""The positive-unlabelled classifier: its features, its calibration, its report and its checkpoint."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import graphene, mx2

from models.crystals.layer import extract_layer, layer_atoms
from models.crystals.split import split_of
from models.networks import synthesis
from models.networks.synthesis import (
    FEATURES,
    Forest,
    auc,
    features,
    fit_forest,
    load_synthesis,
    save_synthesis,
    train_synthesis,
)

METALS = "Ti V Cr Zr Nb Mo Hf Ta W Re Fe Co Ni Pd Pt Sn Ge Mn Sc Y Cd Zn Mg Ca".split()
ANIONS = "O S Se Te F Cl Br I".split()


def layer(formula: str, kind: str = "2H", a: float = 3.2) -> Atoms:
    atoms = mx2(formula, kind=kind, a=a, thickness=3.1, vacuum=7.5)
    return layer_atoms(atoms.numbers, atoms.positions, atoms.cell.array[:2, :2])


def toy(seed: int = 0):
    """Every metal with every anion: chalcogenides are synthesizable, half of them known, and one in ten rows
    carries no label.
    """
    rng = np.random.default_rng(seed)
    formulas = [f"{metal}{anion}2" for metal in METALS for anion in ANIONS]
    made = np.array([formula.endswith(("S2", "Se2", "Te2")) for formula in formulas])
    labels = (made & (rng.random(len(made)) < 0.5)).astype(float)
    labels[rng.random(len(made)) < 0.1] = np.nan
    return [layer(formula) for formula in formulas], rng.uniform(0, 0.3, len(made)), labels, formulas, made


@pytest.fixture(scope="module")
def trained():
    structures, e_hull, labels, formulas, made = toy()
    return *train_synthesis(structures, e_hull, labels, formulas, seed=0), structures, e_hull, made


def rotated(atoms: Atoms) -> Atoms:
    turned = atoms.copy()
    turned.rotate(37, "z", rotate_cell=True)
    return turned


def translated(atoms: Atoms) -> Atoms:
    moved = atoms.copy()
    moved.positions[:, :2] += [0.7, -1.3]
    moved.wrap(pbc=(1, 1, 0))
    return moved


def mirrored(atoms: Atoms) -> Atoms:
    mirror = atoms.copy()
    mirror.positions[:, 2] = atoms.cell[2, 2] - mirror.positions[:, 2]
    return mirror


@pytest.mark.parametrize(
    "change", [rotated, translated, mirrored, lambda a: a.repeat((2, 2, 1)), lambda a: a.repeat((3, 2, 1))]
)
@pytest.mark.parametrize(
    "atoms", [layer("MoS2"), layer("PtSe2", "1T"), extract_layer(graphene(vacuum=7.5)).atoms]
)
def test_features_do_not_depend_on_the_description(atoms, change):
    assert np.allclose(features(atoms, 0.05), features(change(atoms), 0.05), atol=1e-6)


def test_features_of_a_known_layer():
    found = dict(zip(FEATURES, features(layer("MoS2"), 0.02), strict=True))
    expected = {
        "primitive_atoms": 3,
        "charge_imbalance": 0,
        "hexagonal": 1,
        "inversion": 0,
        "thickness": 3.1,
        "share_chalcogen": 2 / 3,
    }
    expected |= {"coordination_min": 3, "coordination_max": 12}  # of Mo: 6 S and 6 Mo
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert features(layer("MoS2", "1T"), 0.02)[FEATURES.index("inversion")] == 1


@pytest.mark.parametrize(
    "given, energy, flag", [(0.1, 0.1, 0), (7.0, 1.0, 0), (-0.1, 0.0, 0), (np.nan, 0.0, 1), (None, 0.0, 1)]
)
def test_e_hull_is_clipped_and_may_be_unknown(given, energy, flag):
    assert features(layer("MoS2"), given)[-2:] == pytest.approx([energy, flag])


def test_separable_data_are_separated(trained):
    model, report, structures, e_hull, made = trained
    test = np.array([split_of(atoms.get_chemical_formula()) == "test" for atoms in structures])
    p = model.predict(structures, e_hull)
    assert ((p >= 0) & (p <= 1)).all()
    assert auc(p[test], made[test], np.arange(test.sum()))[0] > 0.95
    assert (
        auc(model.predict(structures, np.full(len(p), np.nan))[test], made[test], np.arange(test.sum()))[0]
        > 0.95
    )
    assert report["test"]["auc"] > report["test"]["e_hull_alone_auc"]
    low, high = report["test"]["auc_95"]
    assert low <= report["test"]["auc"] <= high


def test_calibration_recovers_the_probability():
    """Two Gaussians, 40 % positive, 30 % of the positives labelled at random: Bayes' posterior is known."""
    rng = np.random.default_rng(0)
    positive = rng.random(6000) < 0.4
    x = rng.normal(np.where(positive, 1.25, -1.25)[:, None], 1, (6000, 2))
    known = positive & (rng.random(6000) < 0.3)
    train = np.arange(6000) < 3000
    forest = fit_forest(x[train], known[train], x[~train & known], seed=0)
    p = forest(torch.tensor(x[~train], dtype=torch.float32)).numpy()
    bayes = 1 / (1 + 0.6 / 0.4 * np.exp(-2.5 * x[~train].sum(1)))
    assert float(forest.c) == pytest.approx(0.3, abs=0.06)
    assert p.mean() == pytest.approx(0.4, abs=0.06)
    assert abs(p - bayes).mean() < 0.12


def test_the_tensors_are_the_trees(monkeypatch):
    """The share of known layers in the leaves, against scikit-learn's own descent."""
    trees = []

    class Spy(synthesis.ExtraTreeClassifier):
        def fit(self, *args):
            trees.append(super().fit(*args))
            return self

    monkeypatch.setattr(synthesis, "ExtraTreeClassifier", Spy)
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    forest = fit_forest(x, x[:, 0] > 0.5, x[:10], seed=0)
    expected = np.mean([tree.predict_proba(x)[:, 1] for tree in trees], axis=0)
    assert np.allclose(forest.labelled(torch.tensor(x)), expected, atol=1e-6)
    assert isinstance(forest, Forest) and len(trees) == synthesis.TREES


def test_save_and_load(trained, tmp_path):
    model, report, structures, e_hull, _ = trained
    e_hull = np.where(np.arange(len(e_hull)) % 3, e_hull, np.nan)
    save_synthesis(tmp_path / "synthesis.pt", model, report=report)
    assert np.array_equal(
        load_synthesis(tmp_path / "synthesis.pt").predict(structures, e_hull),
        model.predict(structures, e_hull),
    )
    assert torch.load(tmp_path / "synthesis.pt", weights_only=True)["report"] == report


def test_load_says_what_is_wrong(trained, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="material_dataset.py"):
        load_synthesis(tmp_path / "none.pt")
    save_synthesis(tmp_path / "synthesis.pt", trained[0])
    monkeypatch.setattr(synthesis, "FEATURES", FEATURES[:-1])
    with pytest.raises(ValueError, match="other features"):
        load_synthesis(tmp_path / "synthesis.pt")


def test_unknown_labels_are_ignored():
    structures, e_hull, labels, formulas, _ = toy()
    keep = np.flatnonzero(np.isfinite(labels))
    _, all_rows = train_synthesis(structures, e_hull, labels, formulas, seed=1)
    model, labelled = train_synthesis(
        [structures[k] for k in keep], e_hull[keep], labels[keep], [formulas[k] for k in keep], seed=1
    )
    assert all_rows == labelled
    assert sum(
        labelled[name]["known"] + labelled[name]["unlabelled"] for name in ("train", "val", "test")
    ) == len(keep)


def test_few_known_layers_work_and_are_said():
    structures, e_hull, _, formulas, _ = toy()
    labels = np.zeros(len(structures))
    labels[[formulas.index(f) for f in formulas if split_of(f) == "train"][:3]] = 1
    model, report = train_synthesis(structures, e_hull, labels, formulas, seed=0)
    assert report["calibrated_on"] == "train" and report["test"]["auc"] is None and len(report["notes"]) == 4
    assert np.isfinite(model.predict(structures[:3], e_hull[:3])).all()


def test_none_known_is_an_error():
    structures, e_hull, _, formulas, _ = toy()
    with pytest.raises(ValueError, match="no layer is known from experiment"):
        train_synthesis(structures, e_hull, np.zeros(len(structures)), formulas)
    with pytest.raises(ValueError, match="0 unlabelled"):
        train_synthesis(structures, e_hull, np.ones(len(structures)), formulas)


def test_auc_counts_pairs():
    score, known = np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False])
    assert auc(score, known, np.arange(4))[0] == 0.625
    assert auc(score, known, np.arange(4), strata=np.array([0, 1, 0, 1]))[0] == 0.75
    assert auc(score, known, np.arange(4), strata=np.array([0, 1, 2, 2])) == (None, None)
