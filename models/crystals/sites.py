"""Hydrogen on a layer, as geometry: symmetry-distinct sites, supercells, starting poses, and what became of a
pose.
"""

from dataclasses import dataclass

import numpy as np
import spglib
from ase import Atoms
from ase.build import make_supercell
from ase.data import covalent_radii
from scipy.spatial import QhullError, Voronoi

from models.crystals.layer import flipped, primitive_layer, reduce_plane
from models.crystals.thresholds import BOND_SCALE, LAYER_VACUUM, SITE_SYMPREC

H_SPACING = 6.0  # Å, least distance between a hydrogen and its periodic images
# Å at which a probe coming down touches an atom, one for all elements: what is surface is geometry, not
# species
CONTACT = 2.6
START_SCALE = 1.1  # first guess of an H bond, in sums of covalent radii
MIN_CLEARANCE = 0.5  # Å above the atoms around a site, where no bond of that length fits
DESORBED_SCALE = 1.35  # shortest H bond beyond this is no adsorption (design, section 4)
H2_BOND = 1.0  # Å; 0.74 in the molecule
SAME_SITE = 0.25  # Å, distance under which two sites are one
SUNK_MARGIN = 0.01  # Å: H right in the middle of a symmetric layer is sunk, whatever the rounding says
H_RADIUS = covalent_radii[1]


@dataclass(frozen=True)
class Site:
    """An adsorption site of a layer.

    Attributes:
        kind: "ontop", "bridge" or "hollow".
        face: +1 for the top (+z) face, −1 for the bottom.
        position: [3] Å, starting position of H.
    """

    kind: str
    face: int
    position: np.ndarray

    @property
    def label(self):
        return f"{self.kind}-{'top' if self.face > 0 else 'bottom'}"


def spaced_supercell(atoms: Atoms, spacing: float = H_SPACING) -> Atoms:
    """The supercell of fewest atoms whose in-plane lattice vectors are all at least `spacing` Å long."""
    plane = atoms.cell.array[:2]
    for determinant in range(1, 400):
        best = None
        for p in (d for d in range(1, determinant + 1) if determinant % d == 0):
            for q in range(p):
                transform = np.array([[p, 0], [q, determinant // p]])
                shortest = np.linalg.norm(reduce_plane(transform @ plane)[0])
                if shortest >= spacing - 1e-6 and (best is None or shortest > best[0] + 1e-6):
                    best = shortest, transform
        if best:
            reduced = reduce_plane(best[1] @ plane)
            if np.cross(*reduced) @ atoms.cell.array[2] < 0:  # right-handed, as VASP wants it
                reduced = reduced[::-1]
            full = np.eye(3, dtype=int)
            full[:2, :2] = np.round(reduced @ np.linalg.pinv(plane)).astype(int)
            return make_supercell(atoms, full, wrap=True)
    raise ValueError(f"{atoms.get_chemical_formula()}: no supercell with images {spacing} Å apart")


def _images(atoms: Atoms, reach: float):
    """Indices and positions of all in-plane images of the atoms within `reach` Å of the cell."""
    inverse_heights = np.linalg.norm(np.linalg.inv(atoms.cell.array[:2, :2]), axis=0)
    na, nb = np.ceil(reach * inverse_heights).astype(int)
    shifts = np.array([[a, b] for a in range(-na, na + 1) for b in range(-nb, nb + 1)])
    positions = (shifts @ atoms.cell.array[:2])[:, None] + atoms.positions[None]
    return np.tile(np.arange(len(atoms)), len(shifts)), positions.reshape(-1, 3)


def _contact_height(xy, positions, radii):
    """Height at which a probe coming down at `xy` touches the first sphere (−inf where it falls through)."""
    lateral = ((positions[:, :2] - xy) ** 2).sum(1)
    inside = radii**2 > lateral
    return max(positions[inside, 2] + np.sqrt(radii[inside] ** 2 - lateral[inside]), default=-np.inf)


def surface_atoms(atoms: Atoms) -> np.ndarray:
    """Indices of the atoms that a probe coming down from above touches first at their own place."""
    _, positions = _images(atoms, 8.0)
    radii = np.full(len(positions), CONTACT)
    top = [_contact_height(p[:2], positions, radii) for p in atoms.positions]
    return np.flatnonzero(atoms.positions[:, 2] + CONTACT >= np.array(top) - 1e-6)


def _start_height(xy, surface, positions, numbers):
    """Starting height of H at `xy`: on bonds of START_SCALE covalent sums, never sunk between the `surface`
    atoms [M, 3].
    """
    bonds = START_SCALE * (covalent_radii[numbers] + H_RADIUS)
    near = np.linalg.norm(surface[:, :2] - xy, axis=1)
    around = surface[near < near.min() + 0.3, 2].max()
    return max(_contact_height(xy, positions, bonds), around + MIN_CLEARANCE)


def _top_sites(atoms: Atoms) -> list[Site]:
    """Ontop, bridge and hollow sites of the top face: vertices, edges and corners of its Voronoi diagram."""
    face = atoms[surface_atoms(atoms)]
    index, positions = _images(face, 12.0)
    everywhere, everything = _images(atoms, 8.0)
    home = [
        np.flatnonzero((index == k) & (np.linalg.norm(positions - p, axis=1) < 1e-6))[0]
        for k, p in enumerate(face.positions)
    ]
    points = [("ontop", p[:2]) for p in face.positions]
    try:
        diagram = Voronoi(positions[:, :2])
    except QhullError:
        diagram = None
    if diagram is not None:
        for pair, ridge in zip(diagram.ridge_points, diagram.ridge_vertices):
            if not set(pair) & set(home) or -1 in ridge:
                continue
            ends = diagram.vertices[ridge]
            if np.linalg.norm(ends[0] - ends[1]) > SAME_SITE:
                points.append(("bridge", positions[pair, :2].mean(0)))
            points += [("hollow", end) for end in ends]
    points.sort(
        key=lambda point: ("ontop", "bridge", "hollow").index(point[0])
    )  # of two within SAME_SITE the first kind stays
    return [
        Site(kind, +1, np.array([*xy, _start_height(xy, positions, everything, atoms.numbers[everywhere])]))
        for kind, xy in points
    ]


def _layer_operations(atoms: Atoms, symprec: float):
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    found = spglib.get_symmetry(cell, symprec=symprec)
    if found is None:
        return np.eye(3, dtype=int)[None], np.zeros((1, 3))
    keeps_c = np.all(found["rotations"][:, 2, :2] == 0, axis=1) & np.all(
        found["rotations"][:, :2, 2] == 0, axis=1
    )
    return found["rotations"][keeps_c], found["translations"][keeps_c]


def adsorption_sites(atoms: Atoms, symprec: float = SITE_SYMPREC) -> list[Site]:
    """Symmetry-distinct ontop, bridge and hollow sites on both faces of a layer.

    Args:
        atoms: a layer in the project's convention (models.crystals.layer).
        symprec: tolerance in Å of the symmetry that makes sites equal.
    """
    atoms = primitive_layer(atoms, symprec)  # a supercell's own lattice would hide rotations
    top = _top_sites(atoms)
    mirror = np.array([1, 1, -1])
    height = np.array([0, 0, atoms.cell[2, 2]])
    bottom = [Site(s.kind, -1, s.position * mirror + height) for s in _top_sites(flipped(atoms))]
    rotations, translations = _layer_operations(atoms, symprec)
    inverse = np.linalg.inv(atoms.cell.array)
    kept, kept_frac = [], []
    for site in top + bottom:
        frac = site.position @ inverse
        images = rotations @ frac + translations
        for other in kept_frac:
            delta = images - other
            delta -= np.round(delta)
            if np.linalg.norm(delta @ atoms.cell.array, axis=1).min() < SAME_SITE:
                break
        else:
            kept.append(site)
            kept_frac.append(frac)
    return kept


def with_hydrogen(atoms: Atoms, site: Site) -> Atoms:
    """Supercell of the layer with one H at the site (last atom, tag 2; the layer's atoms have tag 1)."""
    slab = spaced_supercell(atoms)
    slab.set_tags(1)
    slab.append("H")
    slab.positions[-1] = site.position
    slab[-1].tag = 2
    slab.wrap(pbc=(True, True, False))
    return slab


def roomy(atoms: Atoms) -> Atoms:
    """A copy with LAYER_VACUUM Å beyond its outermost nuclei, centred in z: H must not see the layer's next image."""
    copy = atoms.copy()
    extent = np.ptp(copy.positions[:, 2])
    copy.cell[2] = (0, 0, extent + LAYER_VACUUM)
    copy.positions[:, 2] += (
        copy.cell[2, 2] / 2 - (copy.positions[:, 2].max() + copy.positions[:, 2].min()) / 2
    )
    return copy


def shortest_bond(atoms: Atoms) -> float:
    """Shortest distance of the last atom (H) to the layer over the sum of covalent radii."""
    distance = atoms.get_distances(-1, range(len(atoms) - 1), mic=True)
    return float((distance / (covalent_radii[atoms.numbers[:-1]] + H_RADIUS)).min())


def adsorption_flag(atoms: Atoms, face: int) -> str:
    """What became of H (last atom): "" for adsorbed, else "desorbed", "made H2" with a hydrogen of the layer,
    or "sunk".
    """
    if shortest_bond(atoms) > DESORBED_SCALE:
        return "desorbed"
    distance = atoms.get_distances(-1, range(len(atoms) - 1), mic=True)
    if atoms.numbers[distance.argmin()] == 1 and distance.min() < H2_BOND:
        return "made H2"
    height = face * (atoms.positions[:, 2] - atoms.positions[:-1, 2].mean())
    around = height[:-1][distance < distance.min() + 1.5].mean()
    return "sunk" if height[-1] < around + SUNK_MARGIN else ""


def carries_off(pose: Atoms) -> bool:
    """Whether the atom that H (last) sits on is bonded to nothing else of the layer any more: H is leaving
    with it.
    """
    layer = range(len(pose) - 1)
    host = int(pose.get_distances(-1, layer, mic=True).argmin())
    others = [k for k in layer if k != host]
    reach = BOND_SCALE * (covalent_radii[pose.numbers[host]] + covalent_radii[pose.numbers[others]])
    return bool((pose.get_distances(host, others, mic=True) > reach).all())
