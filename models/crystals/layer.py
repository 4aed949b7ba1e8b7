"""Two-dimensional crystals: the bond graph, the layer in it, and the convention that every stage keeps.

Convention: pbc (T, T, F); lattice rows a, b in the xy plane with a along x, |a| <= |b| and an obtuse or right
angle between them; c along z and nothing but vacuum; the layer centred in z.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import spglib
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from matscipy.neighbours import neighbour_list

from models.crystals.thresholds import BOND_SCALE, COINCIDENT_SCALE, HEAVIEST, LAYER_VACUUM, TOO_HEAVY

MAX_LENGTH = 1000.0  # Å; moiré cells of magic-angle graphene are 130 Å wide
MIN_LATTICE = 1.0  # Å; the shortest period of any crystal is a bond, and H2's 0.74 Å is none of a lattice
MIN_VOLUME = 0.5  # Å^3 an atom; solid hydrogen at 500 GPa has 1.5
EDGE = 1e-6  # of a lattice vector: an atom on the cell's edge stays there, whatever the rounding says


class NotALayer(ValueError):
    """The structure is not one connected component that is periodic in exactly two directions."""


class NotAStructure(ValueError):
    """No crystal can look like this: cell or positions are absurd."""


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
    def rank(self) -> int:
        """Number of directions in which it is periodic."""
        return len(self.basis)


def check_geometry(atoms: Atoms) -> None:
    """Refuses at once what would cost minutes or gigabytes in a neighbour list.

    Raises:
        NotAStructure: no atoms; an element beyond HEAVIEST, whose radius nobody knows; a cell or positions
            that are not finite or beyond MAX_LENGTH; lattice vectors shorter than any bond; less volume than
            any solid has.
    """
    cell, positions = atoms.cell.array, atoms.positions
    if len(atoms) == 0:
        raise NotAStructure("no atoms")
    if atoms.numbers.max() > HEAVIEST:
        raise NotAStructure(f"{TOO_HEAVY}: {chemical_symbols[atoms.numbers.max()]}")
    if not (np.isfinite(cell).all() and np.isfinite(positions).all()):
        raise NotAStructure("cell or positions are not finite numbers")
    longest = max(np.abs(cell).max(), np.abs(positions).max())
    if longest > MAX_LENGTH:
        raise NotAStructure(f"a length of {longest:.3g} Å in cell or positions, more than {MAX_LENGTH:g}")
    lengths = np.linalg.norm(cell, axis=1)
    shortest = min(lengths[lengths > 0], default=np.inf)
    if shortest < MIN_LATTICE:
        raise NotAStructure(f"a lattice vector of {shortest:.3g} Å, less than {MIN_LATTICE:g}")
    volume = abs(np.linalg.det(cell))
    if atoms.cell.rank == 3 and volume < MIN_VOLUME * len(atoms):
        raise NotAStructure(f"{volume / len(atoms):.3g} Å^3 an atom, less than {MIN_VOLUME:g}")


def bond_ratios(atoms: Atoms, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All neighbour pairs within `scale` times the sum of covalent radii.

    Returns:
        i [E], j [E], shift [E, 3] in lattice vectors, ratio [E] = distance / (r_i + r_j).

    Raises:
        NotAStructure: as check_geometry.
    """
    check_geometry(atoms)
    atoms = completed(atoms)
    radii = covalent_radii[atoms.numbers]
    i, j, distance, shift = neighbour_list("ijdS", atoms, cutoff=2 * scale * radii.max())
    ratio = distance / (radii[i] + radii[j])
    keep = ratio <= scale
    return i[keep], j[keep], shift[keep], ratio[keep]


def reduced_formula(atoms: Atoms) -> str:
    """Reduced formula in pymatgen's order, e.g. MoS2."""
    from pymatgen.core import Composition  # late: most users of this file need no pymatgen

    return Composition(atoms.get_chemical_formula()).reduced_formula


def min_distance_ratio(atoms: Atoms) -> float:
    """Shortest distance over the sum of covalent radii; 2.0 stands for "nothing within twice that"."""
    return float(min(bond_ratios(atoms, 2.0)[3], default=2.0))


def coincident(atoms: Atoms) -> bool:
    """Whether two atoms lie on one place; an absurd cell says nothing of it."""
    try:
        return len(bond_ratios(atoms, COINCIDENT_SCALE)[0]) > 0
    except NotAStructure:
        return False


def components(atoms: Atoms, scale: float = BOND_SCALE) -> list[Component]:
    """Connected components of the periodic bond graph, each with the lattice of translations it repeats
    under.

    Ours, not pymatgen's get_dimensionality: the same search gives the contiguous layer and its own basis,
    whatever cell describes it, and counts copies that a lattice translation maps onto each other.
    """
    i, j, shift, _ = bond_ratios(atoms, scale)
    neighbours = [[] for _ in atoms]
    for a, b, s in zip(i, j, shift):
        neighbours[a].append((b, s))
    offsets = np.zeros((len(atoms), 3), int)
    seen = np.zeros(len(atoms), bool)
    found = []
    for root in range(len(atoms)):
        if not seen[root]:
            found.append(_component(root, neighbours, offsets, seen))
    return found


def _component(root: int, neighbours: list, offsets: np.ndarray, seen: np.ndarray) -> Component:
    """Breadth-first search from an atom; fills `offsets` [N, 3] and `seen` [N] of its component.

    Where the search meets an atom again in another cell, the difference is a translation of the component.
    """
    seen[root] = True
    members, cycles = [root], set()
    for a in members:  # grows while it is walked
        for b, shift in neighbours[a]:
            if seen[b]:
                cycles.add(tuple(offsets[a] + shift - offsets[b]))
            else:
                seen[b] = True
                offsets[b] = offsets[a] + shift
                members.append(b)
    basis = _integer_basis(cycles)
    return Component(np.array(members), offsets, basis, _index(basis))


def _integer_basis(vectors: Iterable[tuple[int, int, int]]) -> np.ndarray:
    """Row echelon basis [rank, 3] of the lattice that integer vectors span, by Euclid's algorithm."""
    rows = np.array([v for v in vectors if any(v)], int).reshape(-1, 3)
    done = 0
    for column in range(3):
        while np.count_nonzero(rows[done:, column]) > 1:
            entries = abs(rows[done:, column])
            pivot = done + np.argmin(np.where(entries, entries, np.iinfo(int).max))
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


def dimension(atoms: Atoms, scale: float = BOND_SCALE) -> tuple[int, int]:
    """(number of components, largest number of periodic directions of one of them)."""
    parts = components(atoms, scale)
    return sum(part.copies for part in parts), max(part.rank for part in parts)


def completed(atoms: Atoms) -> Atoms:
    """A copy whose missing lattice vectors are filled in, with room for the atoms; a layer may come without
    c.
    """
    copy = atoms.copy()
    cell = atoms.cell.complete().array.copy()
    for axis in np.flatnonzero(~atoms.cell.any(1)):  # the filled-in ones are unit vectors
        cell[axis] *= np.ptp(atoms.positions @ cell[axis]) + LAYER_VACUUM
    copy.cell = cell
    return copy


def extract_layer(atoms: Atoms) -> Layer:
    """Finds the layer in a structure, whatever its orientation, and puts it into the convention.

    Raises:
        NotALayer: with the reason, if the bond graph is not one component periodic in two directions.
        NotAStructure: as check_geometry.
    """
    open_ended = atoms.cell.rank < 3
    atoms = completed(atoms)
    parts = components(atoms)
    count, rank = sum(part.copies for part in parts), max(part.rank for part in parts)
    if count != 1 or rank != 2:
        kind = {0: "a molecule or an atom", 1: "a chain", 2: "a layer", 3: "a 3D network"}[rank]
        raise NotALayer(f"{count} component(s), the largest is {kind}")
    part = parts[0]
    plane = reduce_plane(part.basis @ atoms.cell.array)
    normal = np.cross(*plane)
    area = np.linalg.norm(normal)
    positions = atoms.positions + part.offsets @ atoms.cell.array  # [N, 3], one contiguous piece
    heights = positions @ normal / area  # [N] along the normal
    thickness = float(np.ptp(heights))
    vacuum = np.inf if open_ended else float(atoms.cell.volume / area - thickness)
    x = plane[0] / np.linalg.norm(plane[0])
    frame = np.array([x, np.cross(normal / area, x), normal / area])  # rows: the axes of the convention
    layer = layer_atoms(atoms.numbers, positions @ frame.T, plane @ frame.T[:, :2])
    return Layer(layer, vacuum, thickness)


def layer_atoms(
    numbers: Sequence[int], positions: np.ndarray, plane: np.ndarray, vacuum: float = LAYER_VACUUM
) -> Atoms:
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
    """The layer with the smallest in-plane cell that its own translations allow, where it stands in space,
    its atoms inside that cell.

    Args:
        atoms: a layer in the convention.
        symprec: Å within which a translation maps the layer onto itself.
    """
    translations = _own_translations(atoms, symprec)  # [T, 2]
    order = len(translations)
    steps = {(order, 0, 0), (0, order, 0)}
    for x, y in np.rint(translations * order).astype(int):  # every one is a multiple of 1/order
        steps.add((int(x), int(y), 0))
    plane = reduce_plane(_integer_basis(steps)[:, :2] / order @ atoms.cell.array[:2])
    cell = np.array([*plane, atoms.cell[2]])
    kept = _one_of_each(atoms, cell, 3 * symprec)
    if len(kept) * order != len(atoms):  # distorted so that the translations do not pair the atoms
        return wrapped(atoms)
    primitive = atoms[kept]
    primitive.cell = cell
    return wrapped(primitive)


def symmetry_of(atoms: Atoms, symprec: float) -> dict | None:
    """spglib's operations of a structure; None where it finds none (two atoms on one place, for instance)."""
    return _asked(spglib.get_symmetry, atoms, symprec)


def layer_group_of(atoms: Atoms, symprec: float):
    """spglib's dataset of a layer with c along z; None where it finds none."""
    return _asked(spglib.get_layergroup, atoms, symprec, aperiodic_dir=2)


def _asked(question: Callable, atoms: Atoms, symprec: float, **options):
    """spglib returns None where it finds nothing, or raises once a library asked it to, as phonopy does."""
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    try:
        return question(cell, symprec=symprec, **options)
    except spglib.SpglibError:
        return None


def _own_translations(atoms: Atoms, symprec: float) -> np.ndarray:
    """In-plane translations [T, 2] in lattice vectors that map the layer onto itself, zero among them."""
    found = symmetry_of(atoms, symprec)
    if found is None:
        return np.zeros((1, 2))
    is_translation = (found["rotations"] == np.eye(3, dtype=int)).all((1, 2))
    return found["translations"][is_translation, :2]


def _one_of_each(atoms: Atoms, cell: np.ndarray, tolerance: float) -> list[int]:
    """Indices of atoms of which no two are in-plane images of each other in `cell`, within `tolerance` Å."""
    kept = []
    for k, position in enumerate(atoms.positions):
        frac = (atoms.positions[kept] - position) @ np.linalg.inv(cell)
        frac[:, :2] -= np.round(frac[:, :2])
        near = np.linalg.norm(frac @ cell, axis=1) < tolerance
        if not (near & (atoms.numbers[kept] == atoms.numbers[k])).any():
            kept.append(k)
    return kept


def wrapped(atoms: Atoms) -> Atoms:
    """A copy with every atom inside the cell in the plane; heights stay.

    Whoever looks at images within reach of the cell relies on it: an atom cells away has no neighbours there.
    """
    copy = atoms.copy()
    frac = copy.positions[:, :2] @ np.linalg.inv(copy.cell.array[:2, :2])
    copy.positions[:, :2] -= np.floor(frac + EDGE) @ copy.cell.array[:2, :2]
    return copy


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
