"""The operations of a layer's layer group: which atom each one sends where, subgroups, and exact
symmetrisation.
"""

import itertools
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from ase import Atoms

from models.crystals.layer import layer_atoms, layer_group_of
from models.crystals.thresholds import SYMPREC

# Generators that a maximal subgroup may need: mmm (order 8) and 6/mmm's subgroups need three.
GENERATORS = 3


@dataclass(frozen=True)
class Operations:
    """G operations x′ = W x + w in the plane, z′ = ±z, of a layer of N atoms centred in z.

    Attributes:
        rotations: [G, 2, 2] int, W on fractional coordinates.
        signs: [G] 1, or −1 where the operation turns the layer over.
        translations: [G, 2] fractional, in [0, 1).
        images: [G, N] the atom that each atom is sent to.
        group: international symbol of the layer group.
        number: its number, 1 to 80.
        wyckoff: letter of the Wyckoff position of each atom.
        basis, origin: [2, 2], [2], to the standard setting of the group: x_standard = basis x + origin.
    """

    rotations: np.ndarray
    signs: np.ndarray
    translations: np.ndarray
    images: np.ndarray
    group: str = "p1"
    number: int = 1
    wyckoff: tuple[str, ...] = ()
    basis: np.ndarray = field(default_factory=lambda: np.eye(2))
    origin: np.ndarray = field(default_factory=lambda: np.zeros(2))

    def __len__(self) -> int:
        return len(self.signs)

    def subset(self, keep: list[int]) -> "Operations":
        """Some of the operations; the group's name no longer holds."""
        return Operations(
            self.rotations[keep], self.signs[keep], self.translations[keep], self.images[keep], "", 0
        )


def identity(count: int) -> Operations:
    """The identity alone, on `count` atoms."""
    return Operations(
        np.eye(2, dtype=int)[None], np.ones(1, int), np.zeros((1, 2)), np.arange(count)[None], "p1", 1
    )


def layer_operations(atoms: Atoms, symprec: float = SYMPREC) -> Operations:
    """The operations of a layer in the convention; the identity where spglib finds no layer group.

    Args:
        symprec: Å within which an operation maps the layer onto itself.
    """
    arrays = (atoms.numbers, atoms.positions, atoms.cell.array)
    return _operations(*(array.tobytes() for array in arrays), len(atoms), symprec)


@lru_cache(maxsize=20_000)  # a template is asked for again and again
def _operations(numbers: bytes, positions: bytes, cell: bytes, count: int, symprec: float) -> Operations:
    atoms = Atoms(
        np.frombuffer(numbers, int),
        np.frombuffer(positions).reshape(-1, 3),
        cell=np.frombuffer(cell).reshape(3, 3),
        pbc=(True, True, False),
    )
    found = layer_group_of(atoms, symprec)
    if found is None:
        return identity(count)
    rotations, signs = found.rotations[:, :2, :2], found.rotations[:, 2, 2]
    translations = found.translations[:, :2] % 1.0
    images = [_images(atoms, *operation) for operation in zip(rotations, signs, translations)]
    if any(sorted(image) != list(range(count)) for image in images):  # two atoms within the tolerance
        return identity(count)
    return Operations(
        rotations.astype(int),
        signs.astype(int),
        translations,
        np.array(images),
        found.international,
        int(found.number),
        tuple(found.wyckoffs),
        found.transformation_matrix[:2, :2],
        found.origin_shift[:2],
    )


def _images(atoms: Atoms, rotation: np.ndarray, sign: int, translation: np.ndarray) -> np.ndarray:
    """[N] the atom of the same element nearest to where each atom is sent."""
    plane, z = atoms.cell.array[:2, :2], atoms.positions[:, 2]
    frac = atoms.get_scaled_positions()[:, :2]
    away = (frac @ rotation.T + translation)[:, None] - frac  # [N, N, 2] from each atom to each image
    away = (away - np.round(away)) @ plane
    middle = z.mean()
    height = sign * (z - middle)[:, None] - (z - middle)  # [N, N]
    square = (away**2).sum(-1) + height**2
    square[atoms.numbers[:, None] != atoms.numbers] = np.inf
    return square.argmin(1)


def symmetrized(atoms: Atoms, operations: Operations) -> Atoms:
    """The layer with cell, coordinates and heights averaged over its operations, in the convention."""
    plane = atoms.cell.array[:2, :2]
    turn = operations.rotations
    metric = np.einsum("gji,jk,gkl->il", turn, plane @ plane.T, turn) / len(operations)
    lower = np.linalg.cholesky(metric)  # rows a = (|a|, 0), b: a along x, as the convention has it
    if np.linalg.det(plane) < 0:
        lower[:, 1] *= -1
    frac, z = atoms.get_scaled_positions()[:, :2], atoms.positions[:, 2] - atoms.positions[:, 2].mean()
    moved, height = np.zeros_like(frac), np.zeros_like(z)
    for rotation, sign, translation, image in zip(
        turn, operations.signs, operations.translations, operations.images
    ):
        step = frac @ rotation.T + translation - frac[image]
        moved[image] += step - np.round(step)
        height[image] += sign * z
    frac, z = frac + moved / len(operations), height / len(operations)
    return layer_atoms(atoms.numbers, np.column_stack([frac @ lower, z]), lower)


def maximal_subgroups(operations: Operations) -> list[list[int]]:
    """Numbers of the operations of each maximal subgroup with the same translations; none of p1."""
    table = _products(operations)
    found = set()
    for size in range(GENERATORS + 1):
        for chosen in itertools.combinations(range(len(operations)), size):
            found.add(_closure(chosen, table))
    proper = [group for group in found if len(group) < len(operations)]
    maximal = [group for group in proper if not any(group < other for other in proper)]
    return sorted(sorted(group) for group in maximal)


def _products(operations: Operations) -> np.ndarray:
    """[G, G] number of the operation g ∘ h."""
    count = len(operations)
    table = np.empty((count, count), int)
    for g, h in itertools.product(range(count), repeat=2):
        rotation = operations.rotations[g] @ operations.rotations[h]
        shift = operations.rotations[g] @ operations.translations[h] + operations.translations[g]
        away = operations.translations - shift
        same = (operations.rotations == rotation).all((1, 2)) & (
            operations.signs == operations.signs[g] * operations.signs[h]
        )
        distance = np.where(same, abs(away - np.round(away)).max(1), np.inf)
        table[g, h] = distance.argmin()
    return table


def _closure(generators: tuple[int, ...], table: np.ndarray) -> frozenset[int]:
    """The subgroup that some operations generate."""
    neutral = int(np.flatnonzero((table == np.arange(len(table))).all(1))[0])
    group, fresh = {neutral}, [neutral]
    while fresh:
        one = fresh.pop()
        for generator in generators:
            other = int(table[generator, one])
            if other not in group:
                group.add(other)
                fresh.append(other)
    return frozenset(group)
