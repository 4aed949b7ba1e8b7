"""Known layers and disguises of them, shared by the tests."""

import numpy as np
from ase import Atoms
from scipy.spatial.transform import Rotation

from data.prototypes import PROTOTYPES
from models.layer import layer_atoms

PROTOTYPE = {prototype.name: prototype for prototype in PROTOTYPES}
FROM_PROTOTYPE = {
    "h-BN": "graphene", "1H-MoS2": "MoS2-2H", "1T-TiS2": "CdI2-1T", "phosphorene": "phosphorene", "Janus-MoSSe": "Janus-2H",
    "FeSe": "FeSe", "Ti2CO2": "MXene-M2XT2", "CrI3": "CrI3", "PdSe2": "PdSe2-penta",
}  # fmt: skip


def known(name: str) -> Atoms:
    """A known layer in the convention."""
    if name == "graphene":
        a = 2.46
        return layer_atoms([6, 6], np.array([[0, 0, 0], [0, a / np.sqrt(3), 0]]), np.array([[a, 0], [-a / 2, a * np.sqrt(3) / 2]]))
    if name == "1T-MoS2":
        layer = PROTOTYPE["CdI2-1T"].atoms()
        layer.symbols = ["Mo" if s == "Ti" else s for s in layer.symbols]
        layer.set_cell(layer.cell.array * [[3.18 / 3.41], [3.18 / 3.41], [1]], scale_atoms=True)
        return layer
    return PROTOTYPE[FROM_PROTOTYPE[name]].atoms()


def unimodular(rng: np.random.Generator) -> np.ndarray:
    """Random integer matrix of determinant 1 that mixes all three lattice vectors."""
    matrix = np.eye(3, dtype=int)
    for i, j in ((0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)):
        shear = np.eye(3, dtype=int)
        shear[i, j] = rng.integers(-2, 3)
        matrix = shear @ matrix
    return matrix


def disguised(atoms: Atoms, seed: int) -> Atoms:
    """The same crystal, described so that nothing is along z: fully periodic, another basis of the lattice (c mixed into the
    plane), rotated, moved across the cell boundary and wrapped, atoms shuffled."""
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.pbc = True
    atoms.positions += [0, 0, atoms.cell[2, 2] / 2]
    atoms.set_cell(unimodular(rng) @ atoms.cell.array)
    rotation = Rotation.random(random_state=seed).as_matrix()
    atoms.set_cell(atoms.cell.array @ rotation.T)
    atoms.positions = atoms.positions @ rotation.T
    atoms.wrap()
    return atoms[rng.permutation(len(atoms))]
