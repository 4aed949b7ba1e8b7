"""Hull and formation energies against numbers worked out by hand and pymatgen's own phase diagram."""

import math

import ase.db
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from models.evaluation.verdicts import stability_score
from models.infra.shards import Shard
from models.physics.hull import (
    Hull,
    competing_phase_known,
    hull_for,
    is_stable,
    plus_u_metals,
    read_offsets,
    read_points,
    relax_phase,
    to_pbe,
)
from models.physics.potentials import Potential, load_potential

# eV per formula as written. Elements: Li -2 an atom (two polymorphs), Cl -3 an atom.
TOY = [("Li", -2.0), ("Li2", -3.6), ("Cl4", -12.0), ("LiCl", -6.0), ("Li3Cl", -9.04)]
# Formation energy an atom: LiCl (-6 + 5) / 2 = -0.5; Li3Cl (-9.04 + 9) / 4 = -0.01, above the tie line
# Li-LiCl (-0.25 there).


@pytest.fixture(scope="module")
def hull():
    return Hull(TOY)


@pytest.mark.parametrize(
    "formula, energy, e_form, e_stable",
    [
        ("LiCl", -6.0, -0.5, -0.5),  # the phase itself
        ("Li4Cl4", -24.0, -0.5, -0.5),  # the same, larger cell
        ("LiCl", -5.8, -0.4, -0.5),  # a polymorph above it
        ("LiCl", -6.4, -0.7, -0.5),  # one below: E_hull is negative
        ("Li3Cl", -9.04, -0.01, -0.25),  # not on the hull: half way from Li to LiCl
        ("Li2Cl", -7.3, -0.1, -1 / 3),
        ("LiCl3", -11.4, -0.1, -0.25),
        ("Li", -1.9, 0.1, 0.0),  # an element, against its lower polymorph
        ("Cl2", -6.0, 0.0, 0.0),
    ],
)
def test_stability_by_hand(hull, formula, energy, e_form, e_stable):
    found = hull.stability(formula, energy)
    assert found.e_form == pytest.approx(e_form)
    assert found.e_stable == pytest.approx(e_stable)
    assert found.e_hull == pytest.approx(e_form - e_stable)


def test_hull_against_pymatgen_on_a_random_ternary():
    rng = np.random.default_rng(0)
    formulas = [
        "Ti",
        "S",
        "Se",
        "Ti2",
        "TiS",
        "TiS2",
        "Ti3Se",
        "TiSe2",
        "SSe",
        "Ti2SSe",
        "TiSSe",
        "TiS3Se",
        "Ti4S2Se3",
    ]
    atoms = [Composition(f).num_atoms for f in formulas]
    phases = [(f, n * e) for f, n, e in zip(formulas, atoms, rng.uniform(-6, -4, len(formulas)))]
    diagram = PhaseDiagram([PDEntry(Composition(f), e) for f, e in phases])
    hull = Hull([*phases, ("Mo", -10.0), ("MoS2", -30.0)])  # of another system: no say
    for formula, energy in [*phases, ("Ti5S3Se2", -50.0), ("TiS2Se7", -44.0)]:
        entry = PDEntry(Composition(formula), energy)
        found = hull.stability(formula, energy)
        assert found.e_hull == pytest.approx(diagram.get_e_above_hull(entry, allow_negative=True), abs=1e-9)
        mu = {el.symbol: ref.energy_per_atom for el, ref in diagram.el_refs.items()}
        by_hand = (
            energy - sum(n * mu[el] for el, n in Composition(formula).as_dict().items())
        ) / Composition(formula).num_atoms
        members = set(Composition(formula).as_dict())
        assert found.e_form == pytest.approx(by_hand)
        inside = [c for c in (Composition(f) for f, _ in phases) if set(c.as_dict()) <= members]
        assert found.phases == sum(len(c) > 1 or len(members) == 1 for c in inside)


def test_a_missing_element_is_named(hull):
    with pytest.raises(ValueError, match="Mo") as error:
        hull.stability("LiMoCl", -5.0)
    assert "Li" not in str(error.value) and "Cl" not in str(error.value)
    with pytest.raises(ValueError, match="Mo, S"):
        hull.stability("MoS2", -20.0)
    assert hull.stability("LiCl", -6.0).phases == 2  # and the hull still works


def test_only_elements_known_is_said():
    """Ca2Pt at -0.66 eV/atom with no compound known was once a published hit."""
    found = Hull([("Li", -2.0), ("Cl", -3.0)]).stability("LiCl", -6.0)
    assert found.phases == 0 and found.e_hull == pytest.approx(-0.5)
    assert not found.competes and not found.stable
    assert not competing_phase_known(-0.05, 0) and not is_stable(-0.657, 0)


@pytest.mark.parametrize(
    "energy, competes, stable",
    [
        (-6.0, True, True),
        (-5.85, True, True),
        (-5.7, True, False),
        (-6.29, True, True),
        (-6.31, False, False),
    ],
)
def test_stable_needs_a_competitor_and_a_hull_that_is_not_far_above(hull, energy, competes, stable):
    found = hull.stability("LiCl", energy)  # LiCl itself lies at -6.0, so E_hull = (energy + 6) / 2
    assert (found.competes, found.stable) == (competes, stable)


def test_a_pure_element_competes_with_its_other_forms(hull):
    found = hull.stability("Li", -1.95)
    assert found.phases == 2 and found.stable


def test_stability_score_is_the_formula():
    assert stability_score(0.0) == 1.0
    assert stability_score(-0.3) == 1.0
    assert stability_score(0.25) == pytest.approx(math.exp(-0.25))
    assert stability_score(1.0) == pytest.approx(0.36787944)


def write_phases(path, potential):
    database = ase.db.connect(path)
    for atoms in (bulk("Cu"), bulk("Al"), bulk("Cu", "bcc", a=2.9), bulk("Pt")):
        _, energy, _ = relax_phase(atoms, EMT())
        database.write(atoms, energy_eV=energy if potential == "right" else 99.0)
    database.metadata = {"potential": "ase.calculators.emt:EMT" if potential == "right" else "another"}
    return path


def test_hull_of_another_potential_is_relaxed_anew(tmp_path):
    """Stored energies serve only the potential that made them; the two ways must give one hull."""
    emt = load_potential("ase.calculators.emt:EMT")
    right, wrong = (write_phases(tmp_path / f"{which}.db", which) for which in ("right", "wrong"))
    stored = hull_for(emt, ["CuAl"], right, Shard(tmp_path / "a.jsonl"), points=None)
    anew = hull_for(emt, ["CuAl"], wrong, Shard(tmp_path / "b.jsonl"), points=None)
    assert {entry.composition.reduced_formula for entry in anew.entries} == {
        "Cu",
        "Al",
    }  # Pt is of no use here
    energy = -0.5
    assert anew.stability("CuAl", energy).e_form == pytest.approx(
        stored.stability("CuAl", energy).e_form, abs=1e-3
    )
    assert abs(stored.stability("CuAl", energy).e_form) < 5


class Refuses(EMT):
    """EMT that knows no aluminium, as long as `refuses`."""

    refuses = True

    def calculate(self, atoms=None, *args, **kwargs):
        if self.refuses and "Al" in atoms.symbols:
            raise NotImplementedError("no parameters of Al")
        super().calculate(atoms, *args, **kwargs)


def test_a_phase_that_fails_is_counted_and_tried_again(tmp_path):
    """It was dropped without a word, and remembered as failed for ever (issue 20.5)."""
    path, cache = write_phases(tmp_path / "phases.db", "wrong"), Shard(tmp_path / "cache.jsonl")
    calculator = Refuses()
    potential = Potential("refuses", calculator, "test", "test")
    hull = hull_for(potential, ["CuAl"], path, cache, points=None)
    assert list(hull.failed) == ["Al"] and "no parameters of Al" in hull.failed["Al"]
    with pytest.raises(ValueError, match="no reference phase of Al"):
        hull.stability("CuAl", -1.0)
    calculator.refuses = False
    hull = hull_for(potential, ["CuAl"], path, Shard(tmp_path / "cache.jsonl"), points=None)
    assert hull.failed == {} and np.isfinite(hull.stability("CuAl", -1.0).e_hull)


def test_points_of_dft_are_part_of_the_hull_and_can_be_left_out(tmp_path):
    hull = Hull([("Li", -2.0), ("Cl", -3.0), ("LiCl", -6.0), ("K", -1.0)])
    hull.add_points({"Li3Cl": -0.4, "KCl": 0.0, "MoS2": -1.0})  # KCl: on the line; Mo, S: no reference
    hull.add_points({"Li": -0.5})  # what formation energies count from is no point
    assert hull.stability("Li", -2.0).e_form == pytest.approx(0.0)
    assert hull.stability("Li3Cl", -9.0).e_stable == pytest.approx(-0.4)
    assert hull.stability("Li7Cl", -17.0).e_stable == pytest.approx(-0.2)  # half way from Li to Li3Cl
    assert hull.stability("KCl", -4.0).phases == 0
    without = hull.stability("Li3Cl", -9.0, without="Li3Cl")
    assert (without.e_stable, without.phases) == (pytest.approx(-0.25), 1)
    (tmp_path / "points.csv").write_text("formula,e_stable_eV_per_atom\nLi3Cl,-0.4\n")
    assert read_points(tmp_path / "points.csv") == {"Li3Cl": -0.4}
    with pytest.raises(FileNotFoundError, match="dft_hull"):
        read_points(tmp_path / "none.csv")


def test_more_phases_reach_diagrams_that_were_made_before(hull):
    hull = Hull(TOY)
    before = hull.stability("Li2Cl", -7.3).e_hull
    hull.add([("Li2Cl", -8.5)])
    assert hull.stability("Li2Cl", -7.3).e_hull == pytest.approx(1.2 / 3) and before < 1.2 / 3


def test_reading_without_a_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m data.build"):
        Hull.read(tmp_path / "none.db")


def test_oxides_and_fluorides_of_u_metals_are_brought_to_the_pbe_scale():
    """The published constants: V −1.700, Fe −2.256, Mo −3.202, W −4.438 eV per metal atom in oxides and
    fluorides.
    """
    shift = lambda formula: to_pbe(Composition(formula), 0.0)
    assert shift("MoO3") == pytest.approx(-3.202)
    assert shift("Fe4O6") == pytest.approx(-4 * 2.256)
    assert shift("LiFeF4") == pytest.approx(-2.256)
    assert shift("V2WO8") == pytest.approx(-2 * 1.7 - 4.438)
    assert [shift(formula) for formula in ("MoS2", "Fe", "TiO2", "FeCl3", "O2")] == [0.0] * 5


def test_corrections_reach_phases_and_structures_alike():
    phases = [("Mo", -10.0), ("O2", -10.0), ("MoO2", -22.0)]
    plain, mixed = Hull(phases), Hull(phases, "SevenNet 7net-0")
    assert plain.stability("MoO2", -21.7).e_form == pytest.approx(-1.7 / 3)
    assert mixed.stability("MoO2", -21.7).e_form == pytest.approx((-1.7 - 3.202) / 3)
    for hull in (plain, mixed, Hull(phases, "CHGNet 0.3.0")):
        assert hull.stability("MoO2", -21.7).e_hull == pytest.approx(0.1)
    assert plus_u_metals(Composition("Mo2FeO4")) == {"Mo": -3.202, "Fe": -2.256}
    assert plus_u_metals(Composition("MoS2")) == plus_u_metals(Composition("Mo")) == {}


def test_offsets_move_compounds_and_neither_elements_nor_points(hull):
    """LiCl (-6 eV) with 0.1 eV a Li and -0.3 eV a Cl: the formation energy moves by -0.1 eV/atom, and E_hull
    of a polymorph, which moves as much, by nothing; against a point of DFT's hull it moves.
    """
    moved = Hull(TOY, offsets={"Li": 0.1, "Cl": -0.3, "Xe": 5.0})
    for energy in (-6.0, -5.8):
        before, after = hull.stability("LiCl", energy), moved.stability("LiCl", energy)
        assert after.e_form == pytest.approx(before.e_form - 0.1)
        assert after.e_hull == pytest.approx(before.e_hull)
    assert moved.stability("Li", -1.9).e_form == pytest.approx(0.1)
    assert moved.formation_energy(Composition("Li3Cl"), -9.04) == pytest.approx(-0.04)  # 3 * 0.1 - 0.3 = 0
    moved.add_points({"LiCl": -0.7})
    assert moved.stability("LiCl", -6.0).e_hull == pytest.approx(-0.6 + 0.7)
    assert moved.copy().stability("LiCl", -5.8).e_hull == pytest.approx(-0.5 + 0.7)


def test_offsets_serve_the_potential_that_they_were_fitted_for(tmp_path):
    path = tmp_path / "offsets.csv"
    path.write_text("potential,element,offset_eV_per_atom,training_rows\nA 1,Li,-0.25,9\nB,Li,0.5,9\n")
    assert read_offsets("A 1", path) == {"Li": -0.25} and read_offsets("C", path) == {}
    with pytest.raises(FileNotFoundError, match="data.build.offsets"):
        read_offsets("A 1", tmp_path / "none.csv")
    shipped = read_offsets("SevenNet 7net-l3i5")
    assert len(shipped) > 55 and max(map(abs, shipped.values())) < 0.3
    assert Hull.read().offsets == shipped and Hull.read(offsets=None).offsets == {}
