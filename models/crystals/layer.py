"""Two-dimensional crystals: the bond graph, the layer in it, and the convention that every stage keeps.

Convention: pbc (T, T, F); lattice rows a, b in the xy plane with a along x, |a| <= |b| and an obtuse or right
angle between them; c along z and nothing but vacuum; the layer centred in z.
"""

from dataclasses import dataclass

import numpy as np
import spglib
from ase import Atoms
from ase.data import covalent_radii
from matscipy.neighbours import neighbour_list
from pymatgen.core import Composition

from models.crystals.thresholds import BOND_SCALE, LAYER_VACUUM


class NotALayer(ValueError):
    """The structure is not one connected component that is periodic in exactly two directions."""


@dataclass(frozen=True)
class Component:
    """One connected component of the bond graph.

    Attributes:
        members: [n] indices of its atoms.
        offsets: [N, 3] lattice translations that make the component contiguous (rows of members only).
        basis: [rank, 3] integer basis of the translations under which it repeats.
        copies: how many disjoint copies of it one lattice point carries.
    """

    members: np.ndarray
    offsets: np.ndarray
    basis: np.ndarray
    copies: int

    @property
    def rank(self):
        return len(self.basis)


def bond_ratios(atoms: Atoms, scale: float):
    """All neighbour pairs within `scale` times the sum of covalent radii.

    Returns:
        i [E], j [E], shift [E, 3] in lattice vectors, ratio [E] = distance / (r_i + r_j).
    """
    radii = covalent_radii[atoms.numbers]
    i, j, distance, shift = neighbour_list("ijdS", atoms, cutoff=2 * scale * radii.max())
    ratio = distance / (radii[i] + radii[j])
    keep = ratio <= scale
    return i[keep], j[keep], shift[keep], ratio[keep]


def reduced_formula(atoms: Atoms) -> str:
    """Reduced formula in pymatgen's order, e.g. MoS2."""
    return Composition(atoms.get_chemical_formula()).reduced_formula


def min_distance_ratio(atoms: Atoms) -> float:
    """Shortest distance over the sum of covalent radii; 2.0 stands for "nothing within twice that"."""
    return float(min(bond_ratios(atoms, 2.0)[3], default=2.0))


def components(atoms: Atoms, scale: float = BOND_SCALE) -> list[Component]:
    """Connected components of the periodic bond graph, each with the lattice of translations it repeats
    under.
    """
    i, j, shift, _ = bond_ratios(atoms, scale)
    neighbours = [[] for _ in atoms]
    for a, b, s in zip(i, j, shift):
        neighbours[a].append((b, s))
    offsets = np.zeros((len(atoms), 3), int)
    seen = np.zeros(len(atoms), bool)
    found = []
    for root in range(len(atoms)):
        if seen[root]:
            continue
        seen[root] = True
        members, cycles = [root], set()
        for a in members:
            for b, s in neighbours[a]:
                if seen[b]:
                    cycles.add(tuple(offsets[a] + s - offsets[b]))
                else:
                    seen[b] = True
                    offsets[b] = offsets[a] + s
                    members.append(b)
        basis = _integer_basis(cycles)
        found.append(Component(np.array(members), offsets, basis, _index(basis)))
    return found


def _integer_basis(vectors) -> np.ndarray:
    """Row echelon basis [rank, 3] of the lattice spanned by integer vectors."""
    rows = np.array([v for v in vectors if any(v)], int).reshape(-1, 3)
    done = 0
    for column in range(3):
        while np.count_nonzero(rows[done:, column]) > 1:
            pivot = done + np.argmin(
                np.where(rows[done:, column], abs(rows[done:, column]), np.iinfo(int).max)
            )
            rows[[done, pivot]] = rows[[pivot, done]]
            rows[done + 1 :] -= np.outer(rows[done + 1 :, column] // rows[done, column], rows[done])
        nonzero = np.flatnonzero(rows[done:, column])
        if len(nonzero):
            rows[[done, done + nonzero[0]]] = rows[[done + nonzero[0], done]]
            done += 1
    return rows[:done]


def _index(basis: np.ndarray) -> int:
    """Index of an integer lattice in the full lattice of its own span."""
    if len(basis) == 0:
        return 1
    if len(basis) == 1:
        return int(np.gcd.reduce(basis[0]))
    if len(basis) == 2:
        return int(np.gcd.reduce(np.cross(*basis)))
    return int(round(abs(np.linalg.det(basis))))


def reduce_plane(basis: np.ndarray) -> np.ndarray:
    """Gauss-reduced lattice rows of a plane: |a| <= |b|, a.b <= 0.

    Args:
        basis: [2, D] lattice rows, Å.
    """
    a, b = basis
    while True:
        if a @ a > b @ b + 1e-9:
            a, b = b, a
        n = np.round(a @ b / (a @ a) - 1e-9)
        if n == 0:
            break
        b = b - n * a
    return np.array([a, b if a @ b <= 1e-9 else -b])


@dataclass(frozen=True)
class Layer:
    """A layer in the project's convention, with what was measured on the way.

    Attributes:
        atoms: the layer, c = thickness + LAYER_VACUUM.
        vacuum: Å of empty space between the layer and its images in the input (inf without periodic images).
        thickness: Å between the outermost nuclei.
    """

    atoms: Atoms
    vacuum: float
    thickness: float


def dimension(atoms: Atoms) -> tuple[int, int]:
    """(number of components, largest number of periodic directions of one of them)."""
    parts = components(atoms)
    return sum(part.copies for part in parts), max(part.rank for part in parts)


def extract_layer(atoms: Atoms) -> Layer:
    """Finds the layer in a structure, whatever its orientation, and puts it into the convention.

    Raises:
        NotALayer: with the reason, if the bond graph is not one component periodic in two directions.
    """
    atoms = atoms.copy()
    open_ended = atoms.cell.rank < 3
    atoms.cell = atoms.cell.complete()
    parts = components(atoms)
    count, rank = sum(part.copies for part in parts), max(part.rank for part in parts)
    if count != 1 or rank != 2:
        kind = {0: "a molecule or an atom", 1: "a chain", 2: "a layer", 3: "a 3D network"}[rank]
        raise NotALayer(f"{count} component(s), the largest is {kind}")
    part = parts[0]
    plane = reduce_plane(part.basis @ atoms.cell.array)
    normal = np.cross(*plane)
    area = np.linalg.norm(normal)
    positions = atoms.positions + part.offsets @ atoms.cell.array
    heights = positions @ normal / area
    thickness = float(np.ptp(heights))
    vacuum = np.inf if open_ended else float(atoms.cell.volume / area - thickness)
    x = plane[0] / np.linalg.norm(plane[0])
    frame = np.array([x, np.cross(normal / area, x), normal / area])
    return Layer(layer_atoms(atoms.numbers, positions @ frame.T, plane @ frame.T[:, :2]), vacuum, thickness)


def layer_atoms(numbers, positions, plane, vacuum: float = LAYER_VACUUM) -> Atoms:
    """Atoms in the convention from positions [N, 3] Å and in-plane lattice rows [2, 2] Å."""
    z = positions[:, 2] - (positions[:, 2].max() + positions[:, 2].min()) / 2
    c = float(np.ptp(z)) + vacuum
    cell = np.zeros((3, 3))
    cell[:2, :2], cell[2, 2] = plane, c
    cell[abs(cell) < 1e-12] = 0.0
    frac = np.column_stack([positions[:, :2] @ np.linalg.inv(plane), z / c + 0.5])
    frac[:, :2] %= 1.0
    return Atoms(numbers, scaled_positions=frac, cell=cell, pbc=(True, True, False))


def primitive_layer(atoms: Atoms, symprec: float) -> Atoms:
    """The layer with the smallest in-plane cell that its own translations allow, where it stands in space.

    Args:
        symprec: Å within which a translation maps the layer onto itself.
    """
    found = spglib.get_symmetry(
        (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=symprec
    )
    if found is None:
        return atoms
    shifts = found["translations"][(found["rotations"] == np.eye(3, dtype=int)).all((1, 2))]
    order = len(shifts)
    steps = {(int(x), int(y), 0) for x, y in np.rint(shifts[:, :2] * order)} | {(order, 0, 0), (0, order, 0)}
    plane = reduce_plane(_integer_basis(steps)[:, :2] / order @ atoms.cell.array[:2])
    cell = np.array([*plane, atoms.cell.array[2]])
    kept = []
    for k, position in enumerate(atoms.positions):
        frac = (atoms.positions[kept] - position) @ np.linalg.inv(cell)
        frac[:, :2] -= np.round(frac[:, :2])
        twin = (np.linalg.norm(frac @ cell, axis=1) < 3 * symprec) & (atoms.numbers[kept] == atoms.numbers[k])
        if not twin.any():
            kept.append(k)
    primitive = atoms[kept]
    primitive.cell = cell
    return primitive if len(kept) * order == len(atoms) else atoms


def flipped(atoms: Atoms) -> Atoms:
    """The layer upside down (mirrored in z), so that its bottom face is on top."""
    mirrored = atoms.copy()
    mirrored.positions[:, 2] = atoms.cell[2, 2] - mirrored.positions[:, 2]
    return mirrored


def pack_atoms(atoms: Atoms | None) -> dict | None:
    """JSON of numbers [N], positions [N, 3] Å, cell [3, 3] Å and pbc, to 1e-5 Å."""
    if atoms is None:
        return None
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.round(5).tolist(),
        "cell": atoms.cell.array.round(5).tolist(),
        "pbc": atoms.pbc.tolist(),
    }


def unpack_atoms(packed: dict | None) -> Atoms | None:
    """Inverse of pack_atoms."""
    return None if packed is None else Atoms(**packed)
