"""When two layers are the same: layer group and structure, with the vacuum out of the way."""

from functools import cached_property

import numpy as np
from ase import Atoms
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from models.crystals.layer import layer_atoms, layer_group_of, reduced_formula
from models.crystals.thresholds import SAME_SYMPREC, SYMPREC

GAP = 3.0  # Å of vacuum left in the comparison: with more of it the matcher's tolerances merge 1T and 2H MoS2
MATCHER = StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5, primitive_cell=True, scale=True)


def layer_group(atoms: Atoms, symprec: float = SYMPREC) -> str:
    """International symbol of the layer group of a layer with c along z; "?" where none is found."""
    found = layer_group_of(atoms, symprec)
    return "?" if found is None else found.international


class Fingerprint:
    """What is compared of a layer, computed once.

    Args:
        atoms: a layer in the convention.
    """

    def __init__(self, atoms: Atoms):
        self.atoms = atoms
        self.formula = reduced_formula(atoms)

    @cached_property
    def group(self):
        return layer_group(self.atoms, SAME_SYMPREC)

    @cached_property
    def structure(self):
        thin = layer_atoms(
            self.atoms.numbers, self.atoms.positions, self.atoms.cell.array[:2, :2], vacuum=GAP
        )
        return Structure(Lattice(thin.cell.array), thin.get_chemical_symbols(), thin.get_scaled_positions())

    def same(self, other: "Fingerprint") -> bool:
        """Whether both are one material."""
        if self.formula != other.formula or self.group != other.group:
            return False
        return bool(MATCHER.fit(self.structure, other.structure))


class Register:
    """Layers seen so far, bucketed by formula."""

    def __init__(self):
        self.buckets = {}

    def find(self, fingerprint: Fingerprint):
        """Name of the first registered layer that is the same, or None."""
        for name, other in self.buckets.get(fingerprint.formula, []):
            if fingerprint.same(other):
                return name
        return None

    def add(self, name: str, fingerprint: Fingerprint):
        self.buckets.setdefault(fingerprint.formula, []).append((name, fingerprint))


def rmsd(start: Atoms, end: Atoms) -> float:
    """Root mean square displacement in Å from start to end, less the in-plane drift and the cell's strain.

    Both have the same atoms in the same order; displacements are measured in the cell of `end`.
    """
    delta = end.get_scaled_positions(wrap=False)[:, :2] - start.get_scaled_positions(wrap=False)[:, :2]
    delta -= np.round(delta - delta[0])
    plane = (delta - delta.mean(0)) @ end.cell.array[:2, :2]
    z = (end.positions[:, 2] - end.positions[:, 2].mean()) - (
        start.positions[:, 2] - start.positions[:, 2].mean()
    )
    return float(np.sqrt(((plane**2).sum(1) + z**2).mean()))
