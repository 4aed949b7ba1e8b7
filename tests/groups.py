"""A layer of any of the eighty layer groups, from pyxtal's tables (International Tables E)."""

import numpy as np
from ase import Atoms
from pyxtal.symmetry import Group

from models.crystals.layer import layer_atoms

# By the number of the layer group: oblique, rectangular, square, hexagonal.
PLANES = {
    7: [[5.0, 0.0], [-1.4, 6.3]],
    48: [[5.2, 0.0], [0.0, 6.9]],
    64: [[6.0, 0.0], [0.0, 6.0]],
    80: [[6.0, 0.0], [-3.0, 6.0 * 3**0.5 / 2]],
}
GENERAL = ((42, (0.131, 0.292, 0.055)), (16, (0.377, 0.418, 0.02)))  # element, place of an atom


def family(number: int) -> int:
    return min(last for last in PLANES if number <= last)


def example(number: int, orbits=GENERAL) -> Atoms:
    """A layer of a layer group.

    Args:
        orbits: (element, place), on the general position; or with a Wyckoff position's number in pyxtal's
            list, 0 the general one, -1 the most special one.
    """
    plane, height, group = np.array(PLANES[family(number)]), 20.0, Group(number, dim=2)
    numbers, positions = [], []
    for element, place, *position in orbits:
        for operation in group[position[0] % len(group) if position else 0].ops:
            x, y, z = operation.operate(place)
            numbers.append(element)
            positions.append([*(np.array([x, y]) @ plane), z * height])
    return layer_atoms(numbers, np.array(positions), plane)
