"""--dft K: candidates judged by DFT, here by a pair potential behind --dft-calculator."""

import argparse
from dataclasses import asdict

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones

from data.build.dft.records import add_evaluated
from models.crystals.sites import roomy, spaced_supercell
from models.evaluation import columns
from models.evaluation.settings import Settings, settings_from
from models.infra.shards import Shard
from models.physics.dft import Settings as DftSettings
from models.physics.dft import estimated_seconds

FACTORY = f"{__name__}:pairwise"
EDGE = 3.2  # Å


def pairwise(settings, kpoints, spin, attempt):
    return LennardJones(sigma=1.0, epsilon=0.2, rc=4.0)


def square(symbol: str) -> Atoms:
    return Atoms(symbol, positions=[(0, 0, 7.5)], cell=[EDGE, EDGE, 15], pbc=(True, True, False))


def with_h(layer: Atoms, height: float) -> Atoms:
    pose = roomy(spaced_supercell(layer))
    pose.append("H")
    pose.positions[-1] = pose.positions[0] + [0, 0, height]
    return pose


def pair_energy(distance: float) -> float:
    """Lennard-Jones, σ = 1 Å, ε = 0.2 eV, shifted to 0 at the cutoff of 4 Å as ASE's is."""
    return 0.8 * (distance**-12 - distance**-6) - 0.8 * (4.0**-12 - 4.0**-6)


def test_delta_g_is_the_calculators_and_resumes(tmp_path, monkeypatch, capsys):
    layer, height = square("C"), 1.3
    pose = with_h(layer, height)
    settings = Settings(dft_calculator=FACTORY, dft_relax="none", jobs=1)
    shard = Shard(tmp_path / "dft.jsonl")
    found = columns.dft({"a": layer, "no pose": layer}, {"a": pose}, settings, shard)
    by_hand = 0.0  # H meets the atoms of its own supercell and of their images within the cutoff
    for a in range(-2, 3):
        for b in range(-2, 3):
            distance = float(np.hypot(EDGE * np.hypot(a, b), height))
            by_hand += pair_energy(distance) if distance < 4 else 0.0
    half_h2 = -0.1  # half the well depth
    assert found["a"]["delta_g_h_dft_eV"] == pytest.approx(by_hand - half_h2 + 0.27, abs=0.003)
    assert set(found) == {"a"} and "relaxed: none" in found["a"]["dft_settings"]
    assert "core-minutes" in capsys.readouterr().out
    monkeypatch.setattr(columns, "dft_one", len)  # what is in the shard is not asked again
    again = columns.dft({"a": layer}, {"a": pose}, settings, Shard(tmp_path / "dft.jsonl"))
    assert again == found and "core-minutes" not in capsys.readouterr().out


def test_what_was_evaluated_joins_the_data_set_once(tmp_path):
    layer = square("C")
    pose, settings = with_h(layer, 1.3), Settings(dft_calculator=FACTORY, dft_relax="none", jobs=1)
    said = columns.dft({"a": layer}, {"a": pose}, settings, Shard(tmp_path / "dft.jsonl"))["a"]
    shard = Shard(tmp_path / "set.jsonl")
    assert [add_evaluated(shard, tmp_path / "dft.jsonl") for _ in range(2)] == [1, 0]
    (row,) = Shard(tmp_path / "set.jsonl").rows.values()
    assert row["delta_e_dft"] + 0.27 == pytest.approx(said["delta_g_h_dft_eV"])
    assert row["class"] == "element" and row["sample"] == "evaluated" and row["formula"] == "C"


def test_a_relaxed_h_lies_lower_and_one_failure_costs_one_row(tmp_path):
    layer = square("C")
    pose, settings = with_h(layer, 1.3), Settings(dft_calculator=FACTORY, jobs=1)
    assert settings.dft_relax == "h"
    shard = Shard(tmp_path / "dft.jsonl")
    relaxed = columns.dft({"a": layer}, {"a": pose}, settings, shard)["a"]["delta_g_h_dft_eV"]
    fixed = Settings(dft_calculator=FACTORY, dft_relax="none", jobs=1)
    assert relaxed < columns.dft({"a": layer}, {"a": pose}, fixed, shard)["a"]["delta_g_h_dft_eV"]
    elsewhere = with_h(square("N"), 1.3)
    elsewhere.set_cell(elsewhere.cell.array * 1.4)  # on no supercell of its layer
    found = columns.dft({"a": layer, "b": square("N")}, {"a": pose, "b": elsewhere}, fixed, shard)
    assert "delta_g_h_dft_eV" in found["a"] and found["b"] == {
        "error": "DFT: the pose is on no supercell of the host"
    }


def test_without_a_code_the_run_goes_on_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    args = argparse.Namespace(**asdict(Settings(dft=3)))
    assert settings_from(args).dft == 0
    assert "no DFT of the 3 best: GPAW is not installed: `make dft`" in capsys.readouterr().out
    args = argparse.Namespace(**asdict(Settings(dft=3, dft_calculator="nowhere:factory")))
    assert settings_from(args).dft == 0
    assert "module:factory" in capsys.readouterr().out


def test_spin_and_relaxation_cost_more():
    settings, plain, magnetic = DftSettings(), with_h(square("C"), 1.3), with_h(square("Fe"), 1.3)
    assert estimated_seconds(magnetic, settings) == 3 * estimated_seconds(plain, settings)
    assert estimated_seconds(plain, settings, "h") > estimated_seconds(plain, settings)
