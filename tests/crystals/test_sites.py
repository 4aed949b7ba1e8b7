"""Sites of hydrogen on layers, counted by hand; supercells by brute force, poses and flags by ASE."""

import itertools
from collections import Counter

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.data import covalent_radii
from layers import PROTOTYPE, disguised, known
from scipy.spatial.transform import Rotation

from models.crystals.layer import extract_layer
from models.crystals.sites import (
    DESORBED_SCALE,
    H_SPACING,
    abstracts,
    adsorption_flag,
    adsorption_sites,
    roomy,
    shortest_bond,
    spaced_supercell,
    surface_atoms,
    with_hydrogen,
)


def pt111(layers=4) -> Atoms:
    return extract_layer(fcc111("Pt", (1, 1, layers), vacuum=7.5)).atoms


def layer_of(name) -> Atoms:
    return pt111() if name == "Pt(111)" else known(name)


# Sites by hand, top face first. Where a symmetry of the layer swaps its faces only the top counts.
COUNTS = {
    "graphene": {"ontop-top": 1, "bridge-top": 1, "hollow-top": 1},
    "h-BN": {"ontop-top": 2, "bridge-top": 1, "hollow-top": 1},
    "1H-MoS2": {"ontop-top": 1, "bridge-top": 1, "hollow-top": 2},
    "Janus-MoSSe": {
        "ontop-top": 1,
        "bridge-top": 1,
        "hollow-top": 2,
        "ontop-bottom": 1,
        "bridge-bottom": 1,
        "hollow-bottom": 2,
    },
    "Pt(111)": {"ontop-top": 1, "bridge-top": 1, "hollow-top": 2},
    "FeSe": {"ontop-top": 1, "bridge-top": 1, "hollow-top": 1},
}
# Of the 1T layers the metal is within reach of the probe in the middle of three anions, and is called an
# ontop site.
TRIANGULAR = ["1H-MoS2", "1T-MoS2", "1T-TiS2", "Ti2CO2", "Janus-MoSSe", "Pt(111)"]


def site_counts(sites) -> dict:
    """How many sites of each label."""
    return dict(Counter(site.label for site in sites))


@pytest.mark.parametrize("name", COUNTS)
def test_site_counts_by_hand(name):
    assert site_counts(adsorption_sites(layer_of(name))) == COUNTS[name]


@pytest.mark.parametrize("name", ["graphene", "h-BN"])
def test_flat_sites_are_where_they_belong(name):
    """Over an atom, over the middle of a bond, over the middle of a ring of six."""
    layer = known(name)
    bond = layer.cell[0, 0] / np.sqrt(3)
    for site in adsorption_sites(layer):
        tall = layer.repeat((5, 5, 1))
        centre = site.position + 2 * layer.cell.array[:2].sum(0)
        lateral = np.sort(np.linalg.norm((tall.positions - centre)[:, :2], axis=1))
        wanted = {
            "ontop": [0, bond],
            "bridge": [bond / 2] * 2 + [bond * np.sqrt(7) / 2],
            "hollow": [bond] * 6 + [2 * bond],
        }[site.kind]
        np.testing.assert_allclose(lateral[: len(wanted)], wanted, atol=1e-6)


@pytest.mark.parametrize("name", TRIANGULAR)
def test_three_fold_positions_are_all_covered(name):
    """A hexagonal layer has three three-fold axes (over the top atom, and the two hollows): each face gets a
    site on each, once.
    """
    layer = layer_of(name)
    sites = adsorption_sites(layer)
    axes = np.array([(0, 0), (1 / 3, 2 / 3), (2 / 3, 1 / 3)])
    origin = layer.get_scaled_positions()[0, :2]  # every atom of these layers sits on one of the axes
    for face in {site.face for site in sites}:
        found = []
        for site in (s for s in sites if s.face == face):
            delta = np.linalg.solve(layer.cell.array[:2, :2].T, site.position[:2]) - origin - axes
            delta -= np.round(delta)
            on = np.linalg.norm(delta @ layer.cell.array[:2, :2], axis=1) < 1e-3
            found += np.flatnonzero(on).tolist()
        assert sorted(found) == [0, 1, 2]
        assert len([s for s in sites if s.face == face]) == 4  # and one bridge


def test_ontop_sites_of_an_oxygen_terminated_mxene_are_oxygen():
    layer = known("Ti2CO2")
    assert set(layer.symbols[surface_atoms(layer)]) == {"O"}


@pytest.mark.parametrize("name", ["1H-MoS2", "Janus-MoSSe", "phosphorene", "CrI3"])
def test_surface_atoms_are_the_outermost(name):
    layer = known(name)
    z = layer.positions[:, 2]
    assert set(surface_atoms(layer)) == set(np.flatnonzero(z > z.max() - 0.1))


@pytest.mark.parametrize("name", [*COUNTS, "1T-TiS2", "Ti2CO2", "phosphorene", "CrI3", "PdSe2"])
def test_counts_do_not_depend_on_the_description(name):
    layer = layer_of(name)
    wanted = sorted(site_counts(adsorption_sites(layer)).values())
    kinds = lambda atoms: sorted(
        site_counts(adsorption_sites(atoms)).values()
    )  # (which face is the top is free)
    assert kinds(extract_layer(disguised(layer, 1)).atoms) == wanted
    assert kinds(layer.repeat((2, 1, 1))) == wanted
    assert kinds(extract_layer(disguised(layer.repeat((2, 1, 1)), 2)).atoms) == wanted
    assert kinds(layer.repeat((2, 2, 1))) == wanted
    turned = layer.copy()
    rotation = Rotation.from_euler("z", 0.7).as_matrix()
    turned.set_cell(layer.cell.array @ rotation.T)
    turned.positions = layer.positions @ rotation.T
    assert kinds(turned) == wanted


def test_symmetry_of_the_layer_decides_not_of_its_lattice():
    """One S of a 2x2 MoS2 sheet is replaced: the faces differ, and so do S atoms at different distances."""
    layer = known("1H-MoS2").repeat((2, 2, 1))
    top = np.argmax(layer.positions[:, 2])
    layer.symbols[top] = "Se"
    counts = site_counts(adsorption_sites(layer))
    assert (
        counts["ontop-top"] == 2 and counts["ontop-bottom"] == 2
    )  # Se, and three S that a three-fold axis joins


# --- supercells


def closest_image(cell: np.ndarray) -> float:
    n = np.array([(i, j) for i in range(-6, 7) for j in range(-6, 7) if (i, j) != (0, 0)])
    return np.linalg.norm(n @ cell[:2], axis=1).min()


@pytest.mark.parametrize("name", ["graphene", "1H-MoS2", "phosphorene", "PdSe2", "CrI3", "Pt(111)", "skewed"])
def test_supercell_is_the_smallest_by_brute_force(name):
    layer = layer_of(name) if name != "skewed" else extract_layer(disguised(known("phosphorene"), 1)).atoms
    if name == "skewed":
        layer.set_cell(layer.cell.array @ np.array([[1, 0, 0], [0.23, 1, 0], [0, 0, 1]]), scale_atoms=True)
    found = spaced_supercell(layer)
    count = len(found) // len(layer)
    assert closest_image(found.cell.array) >= H_SPACING - 1e-6
    assert np.linalg.det(found.cell.array) > 0  # VASP refuses a left-handed cell
    smaller = [
        (p, q, r) for p, r in itertools.product(range(1, count), repeat=2) if p * r < count for q in range(p)
    ]
    assert all(
        closest_image(np.array([[p, 0], [q, r]]) @ layer.cell.array[:2]) < H_SPACING for p, q, r in smaller
    )


@pytest.mark.parametrize("name", ["graphene", "Janus-MoSSe", "PdSe2", "Pt(111)"])
def test_hydrogen_images_by_ase(name):
    layer = layer_of(name)
    for site in adsorption_sites(layer):
        slab = with_hydrogen(layer, site)
        assert slab.symbols[-1] == "H" and slab.get_tags().tolist() == [1] * (len(slab) - 1) + [2]
        two = slab.repeat((2, 2, 1))
        hydrogens = [k for k in range(len(two)) if two.get_tags()[k] == 2]
        assert min(two.get_distances(hydrogens[0], hydrogens[1:], mic=True)) >= H_SPACING - 1e-6
        spacing = min(layer.get_all_distances(mic=True)[np.triu_indices(len(layer), 1)], default=1.0)
        inner = slab[:-1].get_all_distances(mic=True)[np.triu_indices(len(slab) - 1, 1)].min()
        assert (
            inner >= min(spacing, np.linalg.norm(layer.cell[0])) - 1e-6
        )  # the layer was repeated, not squeezed


# --- starting poses


def _under(layer, site):
    """Index of the layer's atom nearest to a site."""
    slab = with_hydrogen(layer, site)
    return slab.get_distances(-1, range(len(slab) - 1), mic=True).argmin() % len(layer)


@pytest.mark.parametrize("name", PROTOTYPE)
def test_starting_heights(name):
    """By ASE: bonds of H between 0.8 and 1.9 covalent sums; H outside the surface atoms of the right face."""
    layer = PROTOTYPE[name].atoms()
    for site in adsorption_sites(layer):
        slab = with_hydrogen(layer, site)
        d = slab.get_distances(-1, range(len(slab) - 1), mic=True)
        ratio = d / (covalent_radii[slab.numbers[:-1]] + covalent_radii[1])
        assert 0.8 <= ratio.min() <= 1.9, site.label  # between the terminal O rows of MoO3: 1.81
        lateral = slab.get_distances(-1, range(len(slab) - 1), mic=True, vector=True)
        heights = -site.face * lateral[:, 2]  # of H over each atom
        assert heights.max() > 0.49 and heights[np.argmin(ratio)] > 0, site.label
        if site.kind == "ontop":
            assert adsorption_flag(slab, site.face) == (
                "made H2" if layer.numbers[_under(layer, site)] == 1 else ""
            ), site.label
        assert shortest_bond(slab) == pytest.approx(ratio.min())


def test_roomy_keeps_the_structure_and_makes_room():
    layer = known("1H-MoS2")
    slab = with_hydrogen(layer, adsorption_sites(layer)[0])
    room = roomy(slab)
    np.testing.assert_allclose(room.get_all_distances(mic=True), slab.get_all_distances(mic=True), atol=1e-9)
    assert room.cell[2, 2] - np.ptp(room.positions[:, 2]) == pytest.approx(15)


# --- flags


def with_h_at(layer: Atoms, xy, z) -> Atoms:
    slab = layer.repeat((3, 3, 1))
    slab.append("H")
    slab.positions[-1] = (*(np.asarray(xy) @ layer.cell.array[:2, :2]), z)
    return slab


@pytest.mark.parametrize("face", [1, -1])
def test_flags_of_hydrogen_far_away_on_top_and_inside(face):
    layer = known("1H-MoS2")
    s = layer.get_scaled_positions()[np.argmax(face * layer.positions[:, 2])]
    metal = layer.get_scaled_positions()[list(layer.symbols).index("Mo")]
    ring = 3 - (s + metal)  # the three axes of the cell add up to a lattice vector: the empty one
    middle = layer.cell[2, 2] / 2
    bond = covalent_radii[16] + covalent_radii[1]
    top = lambda height: with_h_at(layer, s[:2] + 1, s[2] * layer.cell[2, 2] + face * height)
    assert adsorption_flag(top(bond), face) == ""
    assert adsorption_flag(top(DESORBED_SCALE * bond - 0.01), face) == ""
    assert adsorption_flag(top(DESORBED_SCALE * bond + 0.01), face) == "desorbed"
    assert adsorption_flag(top(4.0), face) == "desorbed"
    for depth in (-0.3, -1e-9, 0.0, 1e-9, 0.005):
        assert adsorption_flag(with_h_at(layer, ring[:2], middle + face * depth), face) == "sunk", depth
    assert adsorption_flag(top(bond), -face) == "sunk"  # it went through to the other side


def test_hydrogen_in_the_plane_of_graphene_is_sunk():
    layer = known("graphene")
    hollow = layer.get_scaled_positions()[0, :2] * 2 - layer.get_scaled_positions()[1, :2] + 1
    assert adsorption_flag(with_h_at(layer, hollow, layer.cell[2, 2] / 2), 1) == "sunk"


# --- H abstracts a surface atom


def lifted(layer: Atoms, atoms: list[int], rise: float) -> Atoms:
    """A pose of H 1.35 Å over the first of these atoms, all of them lifted with it by `rise` Å."""
    pose = layer + Atoms("H", [layer.positions[atoms[0]] + [0, 0, 1.35]])
    pose.positions[[*atoms, -1], 2] += rise
    return pose


def test_hydrogen_that_leaves_with_its_atom():
    """H on a S of 1H-MoS2; the same with that S lifted out of its bonds, which are 2.4 Å and end at 1.3 Σ
    r_cov = 3.4 Å.
    """
    layer = known("1H-MoS2").repeat((2, 2, 1))
    top = int(layer.positions[:, 2].argmax())
    for rise, expected in ((0.0, False), (0.5, False), (2.5, True)):
        pose = lifted(layer, [top], rise)
        assert abstracts(pose) is expected
        assert adsorption_flag(pose, 1) == ("abstracted" if expected else "")


def test_hydrogen_that_leaves_with_a_group_makes_a_molecule():
    """H takes an OH of brucite along: water, whose O is bonded to the other H and to nothing of the layer."""
    layer = PROTOTYPE["brucite"].atoms().repeat((2, 2, 1))
    hydrogen = int(layer.positions[:, 2].argmax())
    oxygen = int(layer.get_distances(hydrogen, range(len(layer)), mic=True)[layer.symbols == "O"].argmin())
    oxygen = np.flatnonzero(layer.symbols == "O")[oxygen]
    pose = layer + Atoms("H", [layer.positions[oxygen] + [0.9, 0, 0.3]])
    assert not abstracts(pose)
    pose.positions[[hydrogen, oxygen, -1], 2] += 3.0
    assert abstracts(pose) and adsorption_flag(pose, 1) == "abstracted"
