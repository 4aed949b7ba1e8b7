"""Phonons and elastic constants against lattices solved by hand, ASE's own phonons and derivatives of the
energy.
"""

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.phonons import Phonons
from matscipy.neighbours import neighbour_list

from models.physics import phonons
from models.physics.phonons import elastic_positivity, phonon_stability
from models.physics.potentials import load_potential, relax_layer, single_point
from tests.layers import known

THZ = (
    np.sqrt(units._e / units._amu) * 1e10 / (2 * np.pi) * 1e-12
)  # of a root of eV/Å^2/amu, from the SI constants


class Springs(Calculator):
    """Springs ½k(r − r0)² between pairs whose distance lies within 0.3 Å of a shell; shells: (distance, k in
    eV/Å^2, r0).
    """

    implemented_properties = ["energy", "forces"]

    def __init__(self, *shells):
        super().__init__()
        self.shells = shells

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        i, r, vector = neighbour_list("idD", atoms, max(shell[0] for shell in self.shells) + 0.3)
        energy, pull = 0.0, np.zeros(len(r))
        for distance, k, rest in self.shells:
            mine = abs(r - distance) < 0.3
            energy += 0.25 * k * ((r[mine] - rest) ** 2).sum()
            pull[mine] += k * (r[mine] - rest)
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, (pull / r)[:, None] * vector)
        self.results = {"energy": energy, "forces": forces}


class Silent(Calculator):
    """Forces that are no numbers."""

    implemented_properties = ["energy", "forces", "stress"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.full((len(atoms), 3), np.nan), "stress": np.zeros(6)}


def hexagonal(symbols: str, a: float, fractions=((0, 0),)) -> Atoms:
    return Atoms(
        symbols,
        scaled_positions=[(*f, 0.5) for f in fractions],
        cell=[[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, 15]],
        pbc=(True, True, False),
    )


def square(symbol: str, a: float) -> Atoms:
    return Atoms(symbol, positions=[[0, 0, 7.5]], cell=[a, a, 15], pbc=(True, True, False))


def hexagonal_springs(q: np.ndarray, a: float, shells, mass: float) -> np.ndarray:
    """Frequencies [3] in THz of one atom per cell by the textbook sum over neighbours, wave vector in
    reciprocal vectors.
    """
    lattice = hexagonal("X", a).cell.array
    dynamical = np.zeros((3, 3))
    for m, n in np.ndindex(7, 7):
        vector = (m - 3) * lattice[0] + (n - 3) * lattice[1]
        r = np.linalg.norm(vector)
        for distance, k, rest in shells:
            if abs(r - distance) < 0.3:
                along = np.outer(vector, vector) / r**2
                stiffness = k * along + k * (1 - rest / r) * (np.eye(3) - along)
                dynamical += stiffness * (1 - np.cos(2 * np.pi * (q[0] * (m - 3) + q[1] * (n - 3)))) / mass
    squares = np.linalg.eigvalsh(dynamical)
    return np.sign(squares) * np.sqrt(abs(squares)) * THZ


@pytest.fixture(scope="module")
def tense_copper():
    """Hexagonal sheet, 2 % wider than relaxed: flat EMT sheets buckle otherwise."""
    relaxed = relax_layer(hexagonal("Cu", 2.5), EMT(), fmax=1e-3).atoms
    relaxed.set_cell(relaxed.cell.array * [[1.02], [1.02], [1]], scale_atoms=True)
    return relaxed


def test_flat_springs_match_the_textbook():
    a, shells = 2.6, [(2.6, 5.0, 2.6), (2.6 * np.sqrt(3), 2.0, 2.6 * np.sqrt(3))]
    layer = hexagonal("Cu", a)
    found = phonon_stability(layer, Springs(*shells), displacement=0.002)
    points, _ = phonons._wave_vectors(layer, found["supercell"])
    expected = np.array([hexagonal_springs(q, a, shells, layer.get_masses()[0]) for q in points])
    assert found["verdict"] == "stable", found
    assert found["highest_frequency_THz"] == pytest.approx(expected.max(), rel=1e-4)
    assert found["lowest_frequency_THz"] == pytest.approx(0, abs=0.02)  # nothing holds a flat sheet along z
    assert (
        found["supercell"] == [5, 5, 1] and found["displacements"] <= 2 and found["tolerated_ZA_THz"] is None
    )


def test_a_compressed_sheet_buckles_as_computed_by_hand():
    a, shells = 2.6, [(2.6, 5.0, 2.7), (2.6 * np.sqrt(3), 2.0, 2.6 * np.sqrt(3))]
    layer = hexagonal("Cu", a)
    found = phonon_stability(layer, Springs(*shells), displacement=0.002)
    points, _ = phonons._wave_vectors(layer, found["supercell"])
    expected = np.array([hexagonal_springs(q, a, shells, layer.get_masses()[0]) for q in points])
    assert found["verdict"] == "unstable"
    assert found["lowest_frequency_THz"] == pytest.approx(expected.min(), rel=1e-3) and expected.min() < -0.5
    assert found["lowest_at"] == "K" and found["tolerated_ZA_THz"] is None


def test_a_flexural_pocket_near_gamma_is_tolerated_and_said():
    """Stretched near springs against compressed far ones: net compression that only long waves feel."""
    a = 2.6
    far = a * np.sqrt(3)
    tension = (
        0.02  # 1 − r0/r of the far shell; the near one holds 2.8 of the 3 times that flatness would take
    )
    shells = [(a, 5.0, a * (1 - 2.8 * tension)), (far, 5.0, far * (1 + tension))]
    layer = hexagonal("Cu", a)
    found = phonon_stability(layer, Springs(*shells), displacement=0.002)
    points, _ = phonons._wave_vectors(layer, found["supercell"])
    lowest = min(hexagonal_springs(q, a, shells, layer.get_masses()[0]).min() for q in points)
    assert -phonons.TOLERANCE < lowest < -phonons.NOISE
    assert found["verdict"] == "stable" and found["tolerated_ZA_THz"] == pytest.approx(lowest, rel=0.02)
    assert "tolerated" in found["note"] and "rotational invariance not" in found["note"]
    strict = phonon_stability(layer, Springs(*shells), displacement=0.002, tolerance=0.0)
    assert strict["verdict"] == "unstable" and strict["tolerated_ZA_THz"] is None
    assert strict["supercell"] == [6, 6, 1]  # it was looked at again in a larger one


def test_two_species_have_their_optical_frequency():
    """Honeycomb of nearest-neighbour springs: at Γ ω² = 3k/2 (1/m1 + 1/m2)."""
    bond, k = 1.45, 20.0
    layer = hexagonal("BN", bond * np.sqrt(3), [(1 / 3, 2 / 3), (2 / 3, 1 / 3)])
    found = phonon_stability(layer, Springs((bond, k, bond)), displacement=0.002)
    expected = np.sqrt(1.5 * k * (1 / layer.get_masses()).sum()) * THZ
    assert found["highest_frequency_THz"] == pytest.approx(expected, rel=1e-3)
    assert found["verdict"] == "stable", found


def test_frequencies_match_ase(tense_copper, tmp_path):
    found = phonon_stability(tense_copper, EMT(), supercell=4)
    periodic = tense_copper.copy()
    periodic.pbc = True
    oracle = Phonons(periodic, EMT(), supercell=(4, 4, 1), delta=0.01, name=str(tmp_path / "phonons"))
    oracle.run()
    oracle.read(acoustic=True)
    grid = [(i / 4, j / 4, 0) for i in range(4) for j in range(4)]
    energies = oracle.band_structure(grid, verbose=False) / (units._hplanck / units._e * 1e12)
    built = phonons._force_constants(tense_copper, EMT(), (4, 4), 0.01)
    np.testing.assert_allclose(np.sort(built.run_qpoints(grid).frequencies), np.sort(energies), atol=0.02)
    assert found["verdict"] == "stable" and found["highest_frequency_THz"] >= energies.max() - 0.02


def test_square_and_overstretched_sheets_are_unstable():
    layer = relax_layer(square("Cu", 2.5), EMT(), fmax=1e-3).atoms
    found = phonon_stability(layer, EMT())
    assert found["verdict"] == "unstable" and found["lowest_frequency_THz"] < -1
    elastic = elastic_positivity(layer, EMT())
    assert (
        elastic["verdict"] == "unstable"
        and elastic["C66"] < 0
        and elastic["lowest_eigenvalue"] == pytest.approx(elastic["C66"])
    )
    layer = hexagonal("Cu", 2.8)
    assert (
        phonon_stability(layer, EMT())["verdict"] == elastic_positivity(layer, EMT())["verdict"] == "unstable"
    )


def test_elastic_constants_are_second_derivatives_of_the_energy():
    """In N/m, by the energy per area of the strained sheet, atoms relaxed: an alloy whose atoms have room to
    move.
    """
    start = hexagonal("Cu2Ag", 4.6, [(0, 0), (1 / 3, 2 / 3), (2 / 3, 1 / 3)])
    layer = relax_layer(start, EMT(), fmax=1e-4, steps=500).atoms
    found = elastic_positivity(layer, EMT())
    area = np.linalg.norm(np.cross(*layer.cell.array[:2]))

    def energy(xx, yy, xy):
        strained = layer.copy()
        strained.set_cell(
            layer.cell.array @ [[1 + xx, xy / 2, 0], [xy / 2, 1 + yy, 0], [0, 0, 1]], scale_atoms=True
        )
        return (
            single_point(relax_layer(strained, EMT(), fmax=1e-4, steps=500, cell=False).atoms, EMT()) / area
        )

    h = 0.005
    second = lambda v: (energy(*h * v) + energy(*-h * v) - 2 * energy(0, 0, 0)) / h**2 * units._e * 1e20
    xx, yy, xy = np.eye(3)
    expected = {
        "C11": second(xx),
        "C22": second(yy),
        "C66": second(xy),
        "C12": (second(xx + yy) - second(xx) - second(yy)) / 2,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=0.02), name
    assert found["verdict"] == "stable" and np.abs(found["residual_stress"]).max() < 0.05
    assert found["C11"] == pytest.approx(found["C12"] + 2 * found["C66"], rel=0.01)  # hexagonal
    assert abs(found["C16"]) + abs(found["C26"]) < 0.1


def test_the_supercell_keeps_images_apart_and_stays_affordable():
    assert phonons._repeats(hexagonal("Cu", 2.46)) == (5, 5)
    oblong = Atoms("Cu", cell=[3.1, 13.0, 15.0])
    assert phonons._repeats(oblong) == (4, 1)
    assert phonons._shortest(oblong, (4, 1)) == pytest.approx(12.4)
    crowded = Atoms("Cu30", cell=[4.0, 6.0, 15.0])
    assert np.prod(phonons._repeats(crowded)) * 30 <= phonons.MAX_ATOMS


@pytest.mark.parametrize("judge", [phonon_stability, elastic_positivity])
def test_one_bad_structure_costs_an_error_text(judge):
    found = judge(hexagonal("Cu", 2.5), Silent())
    assert found["verdict"] == "failed" and "not finite" in found["error"]
    tilted = hexagonal("Cu", 2.5)
    tilted.cell[2, 0] = 1.0
    assert "c along z" in judge(tilted, EMT())["error"]
    assert "Xe" in judge(hexagonal("Xe", 4.0), EMT())["error"]  # unknown to the calculator
    good = judge(hexagonal("Cu", 2.6), EMT())
    assert set(good) == set(found) and good["error"] == ""


@pytest.fixture(scope="module")
def sevennet():
    return load_potential("sevennet").calculator


def test_boron_nitride_with_sevennet(sevennet):
    """Its force constants are what phonopy 4.10's symfc projector spoils; DFT's highest frequency is about 41
    THz.
    """
    layer = relax_layer(known("h-BN"), sevennet, fmax=0.05).atoms
    found = phonon_stability(layer, sevennet)
    assert found["verdict"] == "stable" and 38 < found["highest_frequency_THz"] < 42


def test_graphene_with_sevennet(sevennet):
    layer = relax_layer(known("graphene"), sevennet, fmax=0.05).atoms
    found = phonon_stability(layer, sevennet)
    assert found["verdict"] == "stable" and 47 < found["highest_frequency_THz"] < 50.5
    elastic = elastic_positivity(layer, sevennet)
    assert 335 < elastic["C11"] < 365 and elastic["C22"] == pytest.approx(elastic["C11"], rel=0.01)
    assert elastic["verdict"] == "stable"
