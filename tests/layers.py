"""Known layers and disguises of them, shared by the tests."""

import numpy as np
import torch
from ase import Atoms
from ase.build import fcc111
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import LinearCombinationCalculator
from ase.optimize import BFGS
from matscipy.neighbours import neighbour_list
from scipy.spatial.transform import Rotation
from torch_geometric.data import Data

from data.build.prototypes import PROTOTYPES
from models.crystals.layer import layer_atoms

PROTOTYPE = {prototype.name: prototype for prototype in PROTOTYPES}
FROM_PROTOTYPE = {
    "h-BN": "graphene",
    "1H-MoS2": "MoS2-2H",
    "1T-TiS2": "CdI2-1T",
    "phosphorene": "phosphorene",
    "Janus-MoSSe": "Janus-2H",
    "FeSe": "FeSe",
    "Ti2CO2": "MXene-M2XT2",
    "CrI3": "CrI3",
    "PdSe2": "PdSe2-penta",
}


def known(name: str) -> Atoms:
    """A known layer in the convention."""
    if name == "graphene":
        a = 2.46
        return layer_atoms(
            [6, 6],
            np.array([[0, 0, 0], [0, a / np.sqrt(3), 0]]),
            np.array([[a, 0], [-a / 2, a * np.sqrt(3) / 2]]),
        )
    if name == "1T-MoS2":
        layer = PROTOTYPE["CdI2-1T"].atoms()
        layer.symbols = ["Mo" if s == "Ti" else s for s in layer.symbols]
        layer.set_cell(layer.cell.array * [[3.18 / 3.41], [3.18 / 3.41], [1]], scale_atoms=True)
        return layer
    return PROTOTYPE[FROM_PROTOTYPE[name]].atoms()


def lennard_jones() -> LennardJones:
    """Binds everything to everything, and knows every element."""
    return LennardJones(sigma=2.2, epsilon=0.5, rc=5.0, smooth=True)


def unimodular(rng: np.random.Generator) -> np.ndarray:
    """Random integer matrix of determinant 1 that mixes all three lattice vectors."""
    matrix = np.eye(3, dtype=int)
    for i, j in ((0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)):
        shear = np.eye(3, dtype=int)
        shear[i, j] = rng.integers(-2, 3)
        matrix = shear @ matrix
    return matrix


def disguised(atoms: Atoms, seed: int) -> Atoms:
    """The same crystal, described so that nothing is along z: fully periodic, another basis of the lattice (c
    mixed into the plane), rotated, moved across the cell boundary and wrapped, atoms shuffled."""
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


def scaled_emt() -> LinearCombinationCalculator:
    """EMT with all energies a quarter larger: the same minima, so every energy difference is 1.25 times
    EMT's.
    """
    return LinearCombinationCalculator([EMT()], [1.25])


def anything() -> LennardJones:
    """Lennard-Jones atoms of one size: a potential that takes every element, and no more."""
    return LennardJones(sigma=2.3, epsilon=0.02, rc=7.0, smooth=True)


class Springs(Calculator):
    """Morse bonds of a metal with itself (2.5 Å) and with H (1.7 Å, stronger), cut off smoothly at 6 Å: a
    slab that H can move.
    """

    implemented_properties = ["energy", "forces"]
    metal, hydrogen, steepness, reach = (0.3, 2.5), (0.8, 1.7), 1.6, 6.0  # eV, Å; 1/Å; Å

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        i, j, r, vector = neighbour_list("ijdD", atoms, self.reach)
        depth, length = self.bonds(atoms.numbers[i], atoms.numbers[j])
        x, window = np.exp(-self.steepness * (r - length)), (1 - (r / self.reach) ** 2) ** 2
        morse, slope = depth * (x**2 - 2 * x), depth * -2 * self.steepness * (x**2 - x)
        slope = slope * window + morse * -4 * r / self.reach**2 * (1 - (r / self.reach) ** 2)
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, slope[:, None] * vector / r[:, None])
        self.results = {"energy": float((morse * window).sum() / 2), "forces": forces}

    def bonds(self, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Depth in eV and length in Å of pairs of atomic numbers."""
        h = (i == 1) | (j == 1)
        return np.where(h, self.hydrogen[0], self.metal[0]), np.where(h, self.hydrogen[1], self.metal[1])


def square_metal(a: float, layers: int) -> Atoms:
    """Square lattice of a metal of Springs, `a` Å wide, relaxed where there is a second layer to relax to."""
    positions = [(a / 2 * (k % 2), a / 2 * (k % 2), 10 + 1.8 * k) for k in range(layers)]
    slab = Atoms(["Cu"] * layers, positions, cell=[a, a, 22], pbc=(True, True, False))
    slab.calc = Springs()
    BFGS(slab, logfile=None).run(fmax=1e-3)
    slab.calc = None
    return slab


def energy_by(calculator, atoms: Atoms) -> float:
    """eV of a structure, without any of the project's code."""
    atoms = atoms.copy()
    atoms.calc = calculator
    return float(atoms.get_potential_energy())


def h_on_metal(metal: str, height: float, sid: str | int, **extra) -> Data:
    """Record of H on top of a metal's (111) face, with an energy that grows with its height."""
    atoms = fcc111(metal, (1, 1, 2), vacuum=6) + Atoms("H", [[0, 0, 0]])
    atoms.positions[-1] = atoms.positions[1] + [0, 0, height]
    return Data(
        pos=torch.tensor(atoms.positions, dtype=torch.float32),
        cell=torch.tensor(atoms.cell.array).float()[None],
        atomic_numbers=torch.tensor(atoms.numbers).float(),
        tags=torch.tensor([0, 1, 2]),
        natoms=3,
        fixed=torch.tensor([1, 0, 0]),
        sid=sid,
        y_relaxed=height - 1.5,
        **extra,
    )
