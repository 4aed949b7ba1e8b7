"""Hydrogen on a layer, as geometry: symmetry-distinct sites, supercells, starting poses, and what became of a
pose.

The sites are ours, not pymatgen's AdsorbateSiteFinder: that one wants a slab with Miller indices and a z
window for its surface, and triangulates without the period of a layer's primitive cell. Here a site is a
vertex, an edge or a corner of the periodic Voronoi diagram of the atoms that a probe touches.
"""

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.data import covalent_radii
from scipy.spatial import QhullError, Voronoi

from models.crystals.layer import components, flipped, primitive_layer, reduce_plane, symmetry_of, wrapped
from models.crystals.thresholds import EXACT_SYMPREC, LAYER_VACUUM, SITE_SYMPREC

H_SPACING = 6.0  # Å, least distance between a hydrogen and its periodic images
MAX_CELLS = 400  # cells of a supercell tried; graphene needs 9, a lattice of 1 Å would need 36
# Å at which a probe coming down touches an atom, one for all elements: what is surface is geometry, not
# species
CONTACT = 2.6
CONTACT_REACH = 8.0  # Å of images around the cell that the probe can touch, three times CONTACT
VORONOI_REACH = 12.0  # Å of images around the cell: its own Voronoi cells are those of the endless layer
START_SCALE = 1.1  # first guess of an H bond, in sums of covalent radii
MIN_CLEARANCE = 0.5  # Å above the atoms around a site, where no bond of that length fits
SAME_RING = 0.3  # Å: atoms as far from a site as the nearest one but for this surround it
DESORBED_SCALE = 1.35  # shortest H bond beyond this is no adsorption (design, section 4)
H2_BOND = 1.0  # Å; 0.74 in the molecule
SAME_SITE = 0.25  # Å, distance under which two sites are one
SUNK_MARGIN = 0.01  # Å: H right in the middle of a symmetric layer is sunk, whatever the rounding says
SUNK_SHELL = 1.5  # Å beyond the shortest H bond: the atoms whose mean height H must stay above
H_RADIUS = covalent_radii[1]
KINDS = ("ontop", "bridge", "hollow")  # of two points within SAME_SITE the first kind stays


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
    def label(self) -> str:
        """E.g. "ontop-top"."""
        return f"{self.kind}-{'top' if self.face > 0 else 'bottom'}"


def spaced_supercell(atoms: Atoms, spacing: float = H_SPACING) -> Atoms:
    """The supercell of fewest atoms whose in-plane lattice vectors are all at least `spacing` Å long.

    Raises:
        ValueError: none of up to MAX_CELLS cells is wide enough.
    """
    plane = atoms.cell.array[:2]
    for cells in range(1, MAX_CELLS):
        transform = _widest_transform(plane, cells, spacing)
        if transform is None:
            continue
        reduced = reduce_plane(transform @ plane)
        if np.cross(*reduced) @ atoms.cell.array[2] < 0:  # right-handed, as VASP wants it
            reduced = reduced[::-1]
        full = np.eye(3, dtype=int)
        full[:2, :2] = np.round(reduced @ np.linalg.pinv(plane)).astype(int)
        return make_supercell(atoms, full, wrap=True)
    raise ValueError(f"{atoms.get_chemical_formula()}: no supercell with images {spacing} Å apart")


def _widest_transform(plane: np.ndarray, cells: int, spacing: float) -> np.ndarray | None:
    """Of the supercells of so many cells the one with the longest shortest vector; None if all are narrower
    than `spacing` Å.

    Args:
        plane: [2, 3] lattice rows, Å.

    Returns:
        [2, 2] integers in Hermite normal form, of which every sublattice has exactly one.
    """
    best, widest = None, spacing - 1e-6
    for p in range(1, cells + 1):
        if cells % p:
            continue
        for q in range(p):
            transform = np.array([[p, 0], [q, cells // p]])
            shortest = np.linalg.norm(reduce_plane(transform @ plane)[0])
            if shortest >= widest:
                best, widest = transform, shortest + 1e-6  # a tie goes to the first
    return best


def _images(atoms: Atoms, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """All in-plane images of a cell's atoms within `reach` Å of it: indices [M] and positions [M, 3] Å."""
    inverse_heights = np.linalg.norm(np.linalg.inv(atoms.cell.array[:2, :2]), axis=0)
    na, nb = np.ceil(reach * inverse_heights).astype(int)
    shifts = np.array([[a, b] for a in range(-na, na + 1) for b in range(-nb, nb + 1)])
    positions = (shifts @ atoms.cell.array[:2])[:, None] + atoms.positions[None]  # [shifts, N, 3]
    return np.tile(np.arange(len(atoms)), len(shifts)), positions.reshape(-1, 3)


def _contact_height(xy: np.ndarray, positions: np.ndarray, radii: np.ndarray) -> float:
    """Height at which a probe coming down at `xy` touches the first sphere (−inf where it falls through)."""
    lateral = ((positions[:, :2] - xy) ** 2).sum(1)
    inside = radii**2 > lateral
    return max(positions[inside, 2] + np.sqrt(radii[inside] ** 2 - lateral[inside]), default=-np.inf)


def surface_atoms(atoms: Atoms) -> np.ndarray:
    """Indices of the atoms that a probe coming down from above touches first at their own place."""
    atoms = wrapped(atoms)
    _, positions = _images(atoms, CONTACT_REACH)
    radii = np.full(len(positions), CONTACT)
    top = np.array([_contact_height(p[:2], positions, radii) for p in atoms.positions])
    return np.flatnonzero(atoms.positions[:, 2] + CONTACT >= top - 1e-6)


def _start_height(xy: np.ndarray, surface: np.ndarray, positions: np.ndarray, numbers: np.ndarray) -> float:
    """Starting height of H at `xy`: on bonds of START_SCALE covalent sums, never sunk between the `surface`
    atoms [M, 3].

    Args:
        positions, numbers: of all atoms around, [K, 3] Å and [K].
    """
    bonds = START_SCALE * (covalent_radii[numbers] + H_RADIUS)
    near = np.linalg.norm(surface[:, :2] - xy, axis=1)
    around = surface[near < near.min() + SAME_RING, 2].max()
    return max(_contact_height(xy, positions, bonds), around + MIN_CLEARANCE)


def _top_points(face: Atoms) -> list[tuple[str, np.ndarray]]:
    """(kind, xy) over atoms, edges and corners of the Voronoi diagram of a face, in the order of KINDS."""
    index, positions = _images(face, VORONOI_REACH)
    home = set()  # rows of `positions` that are the cell's own atoms
    for k, position in enumerate(face.positions):
        own = (index == k) & (np.linalg.norm(positions - position, axis=1) < 1e-6)
        home.add(int(np.flatnonzero(own)[0]))
    points = {"ontop": [p[:2] for p in face.positions], "bridge": [], "hollow": []}
    try:
        diagram = Voronoi(positions[:, :2])
    except QhullError:  # all atoms on one line: no corners, and the sites over the atoms remain
        return [("ontop", xy) for xy in points["ontop"]]
    for pair, ridge in zip(diagram.ridge_points, diagram.ridge_vertices):
        if home.isdisjoint(pair) or -1 in ridge:  # between images only, or open to infinity
            continue
        ends = diagram.vertices[ridge]
        if np.linalg.norm(ends[0] - ends[1]) > SAME_SITE:
            points["bridge"].append(positions[pair, :2].mean(0))
        points["hollow"] += list(ends)
    return [(kind, xy) for kind in KINDS for xy in points[kind]]


def _top_sites(atoms: Atoms) -> list[Site]:
    """Sites of the top face of a layer with its atoms inside the cell."""
    face = atoms[surface_atoms(atoms)]
    _, surface = _images(face, VORONOI_REACH)
    index, everything = _images(atoms, CONTACT_REACH)
    sites = []
    for kind, xy in _top_points(face):
        height = _start_height(xy, surface, everything, atoms.numbers[index])
        sites.append(Site(kind, +1, np.array([*xy, height])))
    return sites


def _layer_operations(atoms: Atoms, symprec: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotations [R, 3, 3] and translations [R, 3] of the layer that keep the plane and its normal apart."""
    found = symmetry_of(atoms, symprec)
    if found is None:
        return np.eye(3, dtype=int)[None], np.zeros((1, 3))
    rotations = found["rotations"]
    mixes = rotations[:, 2, :2].any(1) | rotations[:, :2, 2].any(1)
    return rotations[~mixes], found["translations"][~mixes]


def adsorption_sites(atoms: Atoms, symprec: float = SITE_SYMPREC) -> list[Site]:
    """Symmetry-distinct ontop, bridge and hollow sites on both faces of a layer.

    Args:
        atoms: a layer in the project's convention (models.crystals.layer).
        symprec: tolerance in Å of the symmetry that makes sites equal.
    """
    atoms = primitive_layer(atoms, symprec)  # a supercell's own lattice would hide rotations
    mirror, height = np.array([1, 1, -1]), np.array([0, 0, atoms.cell[2, 2]])
    sites = _top_sites(atoms)
    for site in _top_sites(flipped(atoms)):
        sites.append(Site(site.kind, -1, site.position * mirror + height))
    rotations, translations = _layer_operations(atoms, symprec)
    inverse = np.linalg.inv(atoms.cell.array)
    kept, fractions = [], []
    for site in sites:
        frac = site.position @ inverse
        images = rotations @ frac + translations  # [R, 3]
        if not _any_near(images, fractions, atoms.cell.array):
            kept.append(site)
            fractions.append(frac)
    return kept


def _any_near(images: np.ndarray, others: list[np.ndarray], cell: np.ndarray) -> bool:
    """Whether an image [R, 3] is within SAME_SITE of one of the others, in fractions of the cell."""
    for other in others:
        delta = images - other
        delta -= np.round(delta)
        if np.linalg.norm(delta @ cell, axis=1).min() < SAME_SITE:
            return True
    return False


def with_hydrogen(atoms: Atoms, site: Site) -> Atoms:
    """Supercell of the layer with one H at the site (last atom, tag 2; the layer's atoms have tag 1).

    A supercell is taken apart first, so that the coverage of H does not depend on the description.
    """
    slab = spaced_supercell(primitive_layer(atoms, EXACT_SYMPREC))
    slab.set_tags(1)
    slab.append("H")
    slab.positions[-1] = site.position
    slab[-1].tag = 2
    slab.wrap(pbc=(True, True, False))
    return slab


def roomy(atoms: Atoms) -> Atoms:
    """A copy with LAYER_VACUUM Å beyond its outermost nuclei, centred in z: H must not see the layer's next
    image.
    """
    copy = atoms.copy()
    extent = np.ptp(copy.positions[:, 2])
    copy.cell[2] = (0, 0, extent + LAYER_VACUUM)
    middle = (copy.positions[:, 2].max() + copy.positions[:, 2].min()) / 2
    copy.positions[:, 2] += copy.cell[2, 2] / 2 - middle
    return copy


def shortest_bond(atoms: Atoms) -> float:
    """Shortest distance of the last atom (H) to the layer over the sum of covalent radii."""
    distance = atoms.get_distances(-1, range(len(atoms) - 1), mic=True)
    return float((distance / (covalent_radii[atoms.numbers[:-1]] + H_RADIUS)).min())


def adsorption_flag(pose: Atoms, face: int) -> str:
    """What became of H (last atom) on a face of a layer.

    Returns:
        "" for adsorbed, else "desorbed", "made H2" with a hydrogen of the layer, "abstracted" a surface atom,
        or "sunk".
    """
    if shortest_bond(pose) > DESORBED_SCALE:
        return "desorbed"
    distance = pose.get_distances(-1, range(len(pose) - 1), mic=True)
    if pose.numbers[distance.argmin()] == 1 and distance.min() < H2_BOND:
        return "made H2"
    if abstracts(pose):
        return "abstracted"
    height = face * (pose.positions[:, 2] - pose.positions[:-1, 2].mean())
    around = height[:-1][distance < distance.min() + SUNK_SHELL].mean()
    return "sunk" if height[-1] < around + SUNK_MARGIN else ""


def abstracts(pose: Atoms) -> bool:
    """Whether H (last) abstracts a surface atom: without H, what it sits on is a molecule or an atom that is
    bonded to the rest of the layer no more.
    """
    host = int(pose.get_distances(-1, range(len(pose) - 1), mic=True).argmin())
    for part in components(pose[:-1]):
        if host in part.members:
            return part.rank == 0
    return False
