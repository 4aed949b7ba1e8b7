"""Guesses at one formula by the energy of a potential: Lennard-Jones, whose energies ASE gives by itself."""

import pytest
from layers import anything, energy_by, known

from models.crystals.layer import pack_atoms
from models.crystals.matching import Fingerprint
from models.evaluation.generated import name_of, ranked_by_potential
from models.evaluation.ranking import Relaxation, by_energy, relaxations
from models.evaluation.settings import Settings
from models.infra.shards import Shard

SETTINGS = Settings(potential="layers:anything", jobs=1)


def rattled(atoms):
    copy = atoms.copy()
    copy.positions[:, 2] += [0.02, -0.01, 0.0]
    return copy


def guessed(name, scale=1.0):
    """A layer of MoS2, strained."""
    atoms = known(name).copy()
    atoms.set_cell(atoms.cell.array * [[scale], [scale], [1.0]], scale_atoms=True)
    return atoms


def test_each_material_is_relaxed_once_and_the_energy_is_the_potential_s(tmp_path):
    guesses = {"2H": known("1H-MoS2"), "again": rattled(known("1H-MoS2")), "1T": known("1T-MoS2")}
    shard = Shard(tmp_path / "relaxed.jsonl")
    found, name = relaxations(guesses, SETTINGS, shard)
    assert len(shard.rows) == 2 and "anything" in name
    assert found["again"].energy == found["2H"].energy and found["again"].seconds == 0
    for one in (found["2H"], found["1T"]):
        assert one.seconds > 0 and one.rmsd >= 0
        assert one.energy == pytest.approx(energy_by(anything(), one.atoms) / 3, abs=2e-4)
    order = by_energy(found)
    lower = min(("2H", "1T"), key=lambda guess: found[guess].energy)
    assert order[0] == lower and set(order) == set(guesses)


def test_what_relaxes_into_a_lower_one_comes_last_and_what_fails_not_at_all():
    layers = [known("1H-MoS2"), rattled(known("1H-MoS2")), known("1T-MoS2")]
    assert Fingerprint(layers[0]).same(Fingerprint(layers[1]))
    relaxed = {
        "low": Relaxation(-5.0, layers[0], 0.1, 1.0, ""),
        "same": Relaxation(-4.99, layers[1], 0.1, 1.0, ""),
        "high": Relaxation(-4.0, layers[2], 0.1, 1.0, ""),
        "lost": Relaxation(None, None, None, 0.0, "exploded"),
    }
    assert by_energy(relaxed) == ["low", "high", "same"]


def test_the_lowest_of_the_drawn_are_kept_and_the_cost_is_said(tmp_path):
    layers = [guessed("1H-MoS2"), None, guessed("1T-MoS2"), guessed("1H-MoS2")]
    rows = [{"atoms": pack_atoms(atoms), "seconds": 2.0} for atoms in layers]
    kept, energies, lines = ranked_by_potential(rows, 1, SETTINGS, Shard(tmp_path / "relaxed.jsonl"))
    assert set(energies) == {0, 2, 3} and energies[0] == energies[3]
    assert kept == {0 if energies[0] < energies[2] else 2}
    assert "2 different ones of 4 relaxed" in lines[0] and "beside 8 for drawing" in lines[0]
    assert name_of(1, None) == "gen_0001_failed"
