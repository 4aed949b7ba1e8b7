"""The builder's work lists, what it makes of layers, and the statistics of its validation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from layers import known
from scipy.stats import linregress

from data.build.items import PERTURBATIONS, layer_items, perturbations, surface_items
from data.build.prototypes import PROTOTYPES
from data.build.validate import corrected_on_halves, errors
from models.crystals.layer import dimension, extract_layer, min_distance_ratio, unpack_atoms
from models.crystals.split import split_of
from models.datasets.graphs import graph_atoms, off_equilibrium_graphs
from models.infra.files import ROOT
from models.networks.diffusion import MAX_E_HULL


def test_work_lists_have_unique_keys_and_do_not_depend_on_the_run():
    first, second = layer_items(), layer_items()
    assert [item["key"] for item in first] == [item["key"] for item in second]
    keys = [item["key"] for item in [*first, *surface_items()]]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("prototype", PROTOTYPES, ids=lambda prototype: prototype.name)
def test_prototypes_are_single_layers(prototype):
    atoms = prototype.atoms()
    assert dimension(atoms) == (1, 2)
    assert min_distance_ratio(atoms) > 0.7


def test_surfaces_are_layers_of_the_named_metals():
    for item in surface_items():
        atoms = extract_layer(unpack_atoms(item["atoms"])).atoms
        assert set(atoms.symbols) == set(item["key"].split(":")[1].split("/")), item["key"]
        assert min_distance_ratio(atoms) > 0.7, item["key"]


def test_perturbations_are_seeded_by_the_key_and_do_what_they_say():
    layer = known("1H-MoS2")
    made, again, other = (list(perturbations(layer, key, ["Ti", "Cl", "Pt"])) for key in ("a", "a", "b"))
    assert [kind for kind, _ in made] == [kind for kind, count in PERTURBATIONS.items() for _ in range(count)]
    for (kind, atoms), (_, same), (_, different) in zip(made, again, other):
        np.testing.assert_array_equal(atoms.positions, same.positions)
        assert not np.allclose(atoms.cell, different.cell) or not np.allclose(
            atoms.positions, different.positions
        )
        if kind == "strained":
            np.testing.assert_allclose(atoms.get_scaled_positions(), layer.get_scaled_positions(), atol=1e-9)
        if kind == "rattled":
            np.testing.assert_array_equal(atoms.cell, layer.cell)
        assert (set(atoms.symbols) == {"Mo", "S"}) == (kind != "substituted")


def test_off_equilibrium_layers_split_by_formula_and_cost_energy():
    """Of the embedded file: in their split, layers as told, and the further a layer is rattled the more it
    costs.
    """
    path = ROOT / "data" / "perturbed.pt"
    graphs = off_equilibrium_graphs(path, "test")
    saved = torch.load(path, weights_only=True)
    assert 0 < len(graphs) < len(saved["natoms"]) / 5
    assert all(
        split_of(graph_atoms(g).get_chemical_formula()) == "test" and g.delta_g_h.isnan() for g in graphs[:50]
    )
    kinds = np.array(saved["kind"])
    median = {kind: saved["e_hull"].numpy()[kinds == kind].clip(max=MAX_E_HULL).mean() for kind in set(kinds)}
    assert median["strained"] < median["rattled"] < median["noised"]
    with pytest.raises(FileNotFoundError, match="absent.pt"):
        off_equilibrium_graphs(Path("absent.pt"), "test")


def test_validation_statistics_against_scipy():
    rng = np.random.default_rng(0)
    true = rng.normal(size=200)
    predicted = 0.5 * true + 0.3 + rng.normal(scale=0.01, size=200)
    found, line = errors(predicted, true), linregress(true, predicted)
    assert found["slope"] == pytest.approx(line.slope) and found["r"] == pytest.approx(line.rvalue)
    assert found["mae"] > 0.3 and corrected_on_halves(predicted, true)["mae"] < 0.03
