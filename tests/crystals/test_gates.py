"""The gates at their borders: vacuum, bond scale, molecules beside a layer, and geometry that cannot be."""

import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule, mx2
from layers import known

from models.crystals.gates import VERDICTS, gates
from models.crystals.layer import NotAStructure, bond_ratios, extract_layer
from models.crystals.thresholds import BORDER_SCALES, MIN_VACUUM


def with_vacuum(name: str, vacuum: float) -> Atoms:
    """A known layer, periodic in three directions."""
    atoms = known(name)
    atoms.cell[2, 2] = np.ptp(atoms.positions[:, 2]) + vacuum
    atoms.pbc = True
    return atoms


def wires(apart: float) -> Atoms:
    """Copper chains, 2.6 Å from atom to atom, side by side; 1.3 covalent sums are 3.43 Å."""
    return Atoms("Cu", cell=[2.6, apart, 15], pbc=True)


@pytest.mark.parametrize("name", ["graphene", "1H-MoS2"])
@pytest.mark.parametrize("written", [3, 5, 12])
def test_a_vacuum_of_ten_angstrom_is_enough(name, written):
    """However the file rounds it."""
    atoms = with_vacuum(name, MIN_VACUUM)
    atoms.set_cell(atoms.cell.array.round(written))
    atoms.positions = atoms.positions.round(written)
    row, layer, why = gates(atoms)
    assert row["verdict"] == "2D" and layer is not None and why == ""


def test_a_refused_vacuum_is_told_as_it_is():
    row, layer, why = gates(with_vacuum("1H-MoS2", 9.97))
    assert row["verdict"] == "layers too close" and layer is None
    assert why == "not 2D: 9.97 Å between the layers, less than 10"


def test_molecules_beside_a_layer_are_no_second_layer():
    sheet = with_vacuum("graphene", 20).repeat((4, 4, 1))
    hydrogen = molecule("H2")
    hydrogen.positions += [4, 4, 10]
    row, layer, why = gates(sheet + hydrogen)
    assert row["verdict"] == "layer and molecules" and layer is None
    assert why.startswith("not 2D: layer and molecules (2 component(s)")
    two = sheet.copy()
    two.positions[:, 2] += 8
    assert gates(sheet + two)[0]["verdict"] == "several layers"
    assert gates(sheet + two + hydrogen)[0]["verdict"] == "several layers"


@pytest.mark.parametrize(
    "apart, verdict, borderline",
    [
        (2.6, "2D", ""),
        (3.38, "2D", f"chain at a bond scale of {BORDER_SCALES[0]:g}"),
        (3.6, "chain", f"layer at a bond scale of {BORDER_SCALES[1]:g}"),
        (4.0, "chain", ""),
    ],
)
def test_what_slightly_longer_or_shorter_bonds_would_change_is_borderline(apart, verdict, borderline):
    row, _, why = gates(wires(apart))
    assert (row["verdict"], row["borderline"]) == (verdict, borderline)
    assert borderline in why or verdict == "2D"


def test_atoms_that_overlap_as_submitted_are_told_so():
    atoms = with_vacuum("1H-MoS2", 15)
    atoms.positions[1] += 0.5 * (atoms.positions[0] - atoms.positions[1])
    row, layer, why = gates(atoms)
    assert layer is not None and row["two_d"] and not row["valid"]
    assert why == f"atoms overlap as submitted: {row['min_dist_ratio']:.2f} of the sum of covalent radii"


def test_a_layer_without_a_c_vector_is_a_layer():
    atoms = mx2("MoS2", size=(4, 4, 1))
    assert atoms.cell.rank == 2
    row, layer, why = gates(atoms)
    assert row["verdict"] == "2D" and row["vacuum_A"] == np.inf and why == "" and len(layer) == 48


def changed(**what) -> Atoms:
    atoms = with_vacuum("1H-MoS2", 15)
    for name, value in what.items():
        if name == "positions":
            atoms.positions[0, 0] = value
        else:
            cell = atoms.cell.array.copy()
            cell["abc".index(name)] = value
            atoms.cell = cell
    return atoms


IMPOSSIBLE = {
    "no atoms": (Atoms(cell=[5, 5, 5], pbc=True), "no atoms"),
    "cell length nan": (changed(c=(0, 0, np.nan)), "not finite"),
    "cell length inf": (changed(a=(np.inf, 0, 0)), "not finite"),
    "position nan": (changed(positions=np.nan), "not finite"),
    "position inf": (changed(positions=-np.inf), "not finite"),
    "cell length 1e300": (changed(c=(0, 0, 1e300)), "1e+300 Å"),
    "position 1e30": (changed(positions=1e30), "1e+30 Å"),
    "cell length 0.01": (changed(a=(0.01, 0, 0)), "lattice vector of 0.01 Å"),
    "cell of 0.01": (Atoms("C", cell=[0.01] * 3, pbc=True), "lattice vector of 0.01 Å"),
    "flat cell": (changed(c=(3.0, 1.0, 0.0)), "Å^3 an atom"),
    "a hundred atoms in 1 Å^3": (Atoms("H100", cell=[1.1] * 3, pbc=True), "Å^3 an atom"),
    "two atoms on one site": (
        with_vacuum("1H-MoS2", 15) + Atoms("Mo", known("1H-MoS2").positions[:1]),
        "two atoms on one site",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_is_refused_at_once(name):
    """Each of these took a core-minute, or gigabytes, or was called valid."""
    atoms, reason = IMPOSSIBLE[name]
    begin = time.process_time()
    row, layer, why = gates(atoms)
    assert time.process_time() - begin < 0.5
    assert row["verdict"] == "impossible" and layer is None and not row["valid"] and not row["two_d"]
    assert why.startswith("impossible: ") and reason in why and row["verdict"] in VERDICTS
    if name != "two atoms on one site":
        for refuse in (lambda: bond_ratios(atoms, 1.3), lambda: extract_layer(atoms)):
            with pytest.raises(NotAStructure):
                refuse()
