"""What hypothesis draws: a known layer described otherwise."""

import numpy as np
from ase import Atoms
from hypothesis import strategies as st
from layers import known, unimodular
from scipy.spatial.transform import Rotation


@st.composite
def descriptions(draw, names: tuple[str, ...]) -> tuple[str, Atoms]:
    """(one of these known layers, the same layer described otherwise): another basis, supercell, vacuum,
    origin, wrap, order of atoms, orientation or hand.
    """
    name = draw(st.sampled_from(names))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    repeat = draw(st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 3, 1), (2, 2, 1), (3, 2, 1), (5, 5, 1)]))
    atoms = known(name).repeat(repeat if len(known(name)) < 5 or max(repeat) < 4 else (2, 2, 1))
    atoms.pbc = True
    atoms.cell[2, 2] = np.ptp(atoms.positions[:, 2]) + draw(st.floats(10.1, 40.0))
    if draw(st.booleans()):  # mirrored: another hand of the same layer
        atoms.positions[:, 0] *= -1
        atoms.cell[:, 0] *= -1
    if draw(st.booleans()):  # the lattice rows mixed, c into the plane too
        atoms.set_cell(unimodular(rng) @ atoms.cell.array)
    angle = draw(st.floats(0, 360))
    rotation = Rotation.from_euler("z", angle, degrees=True)
    if draw(st.booleans()):
        rotation = Rotation.random(random_state=int(rng.integers(2**31)))
    matrix = rotation.as_matrix()
    atoms.set_cell(atoms.cell.array @ matrix.T)
    atoms.positions = atoms.positions @ matrix.T
    atoms.positions += rng.uniform(-1, 1, 3) @ atoms.cell.array  # another origin, through every boundary
    atoms.positions += rng.integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array  # every atom in another cell
    if draw(st.booleans()):
        atoms.wrap()
    return name, atoms[rng.permutation(len(atoms))]
