"""Competing phases made on demand, with EMT: its alloys are known, and a search takes seconds."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from pymatgen.core import Element

from models.crystals.bulk import METALLIC, SCREENED, aflow, candidates
from models.crystals.layer import unpack_atoms
from models.infra.shards import Shard
from models.physics.competitors import Overlap, blank_systems, extend, search, systems_of, without_pressure
from models.physics.hull import Hull, relax_phase
from models.physics.potentials import load_potential

FEW = ("AB_cP2_221_b_a", "AB_tP2_123_a_d", "AB3_cP4_221_a_c")


def elements(*symbols: str) -> Hull:
    return Hull([(symbol, relax_phase(bulk(symbol), EMT())[1]) for symbol in symbols], "EMT")


@pytest.fixture
def few_prototypes(monkeypatch):
    """B2, L1_0 and L1_2 alone, for the sake of the time."""
    for tag in [tag for tag in METALLIC if tag not in FEW]:
        monkeypatch.delitem(METALLIC, tag)


def test_systems_inside_a_formula():
    assert systems_of("Li4Tl2Cu") == [("Cu", "Li"), ("Cu", "Tl"), ("Li", "Tl"), ("Cu", "Li", "Tl")]
    assert systems_of("Al2") == [] and len(systems_of("LiFePO4")) == 10  # pairs and triples of four


def test_candidates_are_compounds_of_the_system_at_sensible_distances():
    for system in (("Al", "Ni"), ("Ca", "Pt"), ("Mo", "S"), ("Cu", "Li", "Tl"), ("Na", "O", "P")):
        found = candidates(system)
        assert 8 <= len(found) <= SCREENED and len({name for name, _ in found}) == len(found)
        assert all(set(atoms.symbols) == set(system) for _, atoms in found)
        volumes = [atoms.get_volume() / len(atoms) for _, atoms in found]
        assert 4 < min(volumes) and max(volumes) < 90
    names = [name for name, _ in candidates(("Ca", "Pt"))]
    # the large atom is rare
    assert "Ca-Pt:AB5_hP6_191_a_cg" in names and "Pt-Ca:AB5_hP6_191_a_cg" not in names


@pytest.mark.parametrize("tag", METALLIC)
def test_every_prototype_is_shipped(tag):
    assert len(set(aflow()[tag].symbols)) == 2


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.12])
def test_the_volume_without_pressure(scale):
    """Against ASE's own relaxation of a cubic crystal, whose volume is its only freedom."""
    start = bulk("Cu", a=3.59 * scale)
    _, expected, _ = relax_phase(bulk("Cu"), EMT())
    found, energy = without_pressure(start, EMT())
    assert energy == pytest.approx(expected, abs=5e-3)
    assert found.get_volume() == pytest.approx(11.57, rel=0.02)


def test_a_hole_is_refused():
    with pytest.raises(Overlap, match="atoms at 0"):
        without_pressure(bulk("Cu", a=1.8), _Constant())


class _Constant(EMT):
    """No forces: nothing moves the atoms apart."""

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results |= {"energy": -1.0, "stress": np.zeros(6)}


def test_a_search_finds_the_compounds_that_relaxation_finds(few_prototypes):
    hull = elements("Al", "Ni")
    row = search(("Al", "Ni"), hull, EMT(), budget=2)
    assert row["screened"] == 4 and row["failed"] == {}
    best = min(row["phases"], key=lambda phase: phase["energy"] / len(phase["atoms"]["numbers"]))
    for phase in row["phases"]:
        atoms = unpack_atoms(phase["atoms"])
        atoms.calc = EMT()
        assert atoms.get_potential_energy() == pytest.approx(phase["energy"], abs=1e-3)
    _, energy, _ = relax_phase(unpack_atoms(best["atoms"]), EMT())
    assert energy == pytest.approx(best["energy"], abs=5e-3)
    assert hull.compounds(("Al", "Ni")) == len(row["phases"]) > 0


def test_what_nothing_competed_with_is_stable_no_more(few_prototypes, tmp_path):
    """AlNi was the substitution baseline's only hit: its hull held no B2 phase (issue 20.1)."""
    potential = load_potential("ase.calculators.emt:EMT")
    hull, cache = elements("Al", "Ni"), Shard(tmp_path / "cache.jsonl")
    energy = sum(hull.reference(Element(symbol)) for symbol in ("Al", "Ni")) - 0.02
    structures = [("AlNi", energy)]
    assert not hull.stability(*structures[0]).competes
    assert blank_systems(hull, structures) == [("Al", "Ni")]
    first = extend(hull, potential, structures, cache, budget=2)
    assert first["systems searched"] == 1 and first["phases added"] >= 1
    assert hull.stability(*structures[0]).phases == first["phases added"]

    again = elements("Al", "Ni")
    second = extend(again, potential, structures, Shard(tmp_path / "cache.jsonl"), budget=2)
    assert second["systems from the cache"] == 1 and second["systems searched"] == 0
    assert again.stability("AlNi", energy).e_hull == pytest.approx(hull.stability("AlNi", energy).e_hull)
    assert extend(elements("Al", "Ni"), potential, structures, cache, budget=0) == {}
