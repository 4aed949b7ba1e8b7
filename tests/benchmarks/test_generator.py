"""What the benchmark of the generator counts, on guesses whose verdict is known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from layers import known

from benchmarks.generator import study as generator
from data.build.prototypes import PROTOTYPES
from models.crystals.layer import layer_atoms
from models.crystals.templates import Templates, substitute

ARGS = SimpleNamespace(seed=0, tries=2, formulas=9)
DATABASE = Templates([(p.name, p.atoms()) for p in PROTOTYPES])


def flat_layer(atoms):
    """The layer with all its heights 0: another structure."""
    positions = atoms.positions.copy()
    positions[:, 2] = 0
    return layer_atoms(atoms.numbers, positions, atoms.cell.array[:2, :2])


def test_a_guess_that_is_the_truth_matches_and_another_polymorph_does_not():
    truth, other = known("1H-MoS2"), known("1T-MoS2")
    assert generator.matching(truth, truth) == pytest.approx(0.0, abs=1e-6)
    assert generator.matching(other, truth) is None and generator.matching(None, truth) is None


def test_rates_over_formulas_and_over_guesses(monkeypatch):
    """Three formulas: found at once; found at the second guess, which the head prefers; no prototype."""
    truth, other = known("1H-MoS2"), known("1T-MoS2")
    heads = iter([[0.0, 0.3], [0.2, 0.1]])
    monkeypatch.setattr(
        generator, "head_properties", lambda model, found: np.array([[0, x] for x in next(heads)])
    )
    starts = [("2H", truth), ("1T", other)]
    rows = [
        generator.verdict(truth, starts, [truth, other], None, DATABASE),
        generator.verdict(truth, starts, [other, truth], None, DATABASE),
        dict(generator.MISS),
    ]
    found = generator.summarised({"rows": rows, "seconds": 8.0}, ARGS)
    value = lambda name: pytest.approx(found[name]["value"])
    assert value("match@1") == 1 / 3 and value("match@2") == 2 / 3
    assert value("match@1, ranked by the E_hull head") == 2 / 3
    assert value("layer group of its start") == 0.5 and found["layer group of its start"]["n"] == 2
    assert value("symmetry beyond p1") == 1 and value("new prototypes") == 0
    assert value("core-seconds a guess") == 2.0
    assert "RMSD to relaxed of the first guess, mean (Å)" not in found


def test_failed_draws_are_misses(monkeypatch):
    monkeypatch.setattr(generator, "head_properties", lambda model, found: np.array([[0, 0.0]] * len(found)))
    truth = known("1H-MoS2")
    row = generator.verdict(truth, [("", truth)] * 2, [None, truth], None, DATABASE)
    assert row["rms"][0] is None and row["rms"][1] is not None and row["first"] == 1
    assert row["groups"][0] == "?"
    assert generator.verdict(truth, [("", truth)] * 2, [None, None], None, DATABASE)["first"] == 0


def test_new_prototypes_are_those_of_no_row_and_joined_by_name():
    assert not DATABASE.holds_prototype(flat_layer(known("1H-MoS2")))
    judged = pd.DataFrame({"material_id": list("abcd"), "stable": [True, True, False, None]})
    drawn = pd.DataFrame({"material_id": list("dcba"), "prototype_known": [False, False, False, True]})
    found = generator.prototypes(judged, drawn, 0)
    assert found["new prototypes"]["value"] == 0.75
    assert found["new prototypes, stable"]["value"] == 0.25  # b


def test_orbits_are_drawn_without_the_layers_that_are_asked_for():
    """1T of MoS2 is the only layer of its amounts left once WSe2's is hidden; the truth is never a host."""
    layers = [
        ("1T", substitute(known("1T-MoS2"), {"Mo": "Ti"})),
        ("2H", substitute(known("1H-MoS2"), {"Mo": "W", "S": "Se"})),
    ]
    wanted = {"WSe2": layers[1][1]}
    starts = generator.Starts(Templates(layers), wanted, 6, 0).of("drawn")["WSe2"]
    assert len(starts) == 6
    for name, atoms in starts:
        assert atoms.get_chemical_formula(empirical=True) == "Se2W"
        assert "p-3m1" in name
    assert generator.Starts(Templates(layers), {"MoSi2N4": layers[0][1]}, 2, 0).of("drawn") == {"MoSi2N4": []}
    truth = generator.Starts(Templates(layers), wanted, 3, 0).of("truth")["WSe2"]
    assert len(truth) == 3 and all(atoms is layers[1][1] for _, atoms in truth)
