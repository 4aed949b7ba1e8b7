"""Layers against ASE's neighbour list and crystals of known dimension; matching against 1T and 2H MoS2."""

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.build import bulk, molecule, mx2
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from layers import PROTOTYPE, disguised, known

from models.crystals.layer import (
    NotALayer,
    bond_ratios,
    components,
    dimension,
    extract_layer,
    flipped,
    layer_atoms,
    layer_group_of,
    min_distance_ratio,
    primitive_layer,
    reduce_plane,
    symmetry_of,
)
from models.crystals.matching import MATCHER, Fingerprint, Register, layer_group, rmsd
from models.crystals.thresholds import LAYER_VACUUM

LAYERS = ["graphene", "h-BN", "1H-MoS2", "1T-MoS2", "phosphorene"]


def distances(atoms: Atoms, cutoff: float = 5.13) -> dict:
    """Sorted neighbour distances by element pair, by ASE (the cutoff falls between shells)."""
    i, j, d = neighbor_list("ijd", atoms, cutoff)
    pairs = [tuple(sorted(pair)) for pair in zip(atoms.numbers[i], atoms.numbers[j])]
    return {pair: np.sort(d[[p == pair for p in pairs]]) for pair in sorted(set(pairs))}


def assert_same_distances(one: Atoms, other: Atoms):
    left, right = distances(one), distances(other)
    assert left.keys() == right.keys()
    for pair in left:
        assert len(left[pair]) == len(right[pair]), pair
        np.testing.assert_allclose(left[pair], right[pair], atol=1e-6)


def assert_convention(atoms: Atoms):
    (a, b, c), z = atoms.cell.array, atoms.positions[:, 2]
    assert atoms.pbc.tolist() == [True, True, False]
    assert np.allclose([a[1], a[2], b[2], c[0], c[1]], 0, atol=1e-9) and a[0] > 0 and b[1] > 0
    assert np.linalg.norm(a) <= np.linalg.norm(b) + 1e-6
    assert a @ b <= 1e-6 and abs(a @ b) <= a @ a / 2 + 1e-6  # obtuse or right, and reduced
    assert c[2] == pytest.approx(np.ptp(z) + LAYER_VACUUM)
    assert z.min() + z.max() == pytest.approx(c[2])


# --- extract_layer


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("repeat", [(1, 1, 1), (2, 2, 1), (1, 3, 1)])
def test_extract_layer_in_any_description(name, repeat):
    layer = known(name)
    wanted = layer.repeat(repeat)
    for seed in range(3):
        found = extract_layer(disguised(wanted, seed))
        assert_convention(found.atoms)
        assert sorted(found.atoms.numbers) == sorted(wanted.numbers)
        assert_same_distances(found.atoms, wanted)
        assert found.thickness == pytest.approx(np.ptp(layer.positions[:, 2]), abs=1e-6)
        assert found.vacuum == pytest.approx(layer.cell[2, 2] - found.thickness, abs=1e-6)
        area = np.linalg.norm(np.cross(*wanted.cell.array[:2]))
        assert np.linalg.norm(np.cross(*found.atoms.cell.array[:2])) == pytest.approx(area)


@pytest.mark.parametrize("name", LAYERS)
def test_disguise_really_disguises(name):
    """The test above would be empty if the disguise left c along z or the layer in one piece."""
    layer = known(name)
    disguises = [disguised(layer, seed) for seed in range(3)]
    assert all(abs(d.cell.array[:2, 2]).max() > 0.5 for d in disguises)
    split = layer.copy()
    split.pbc = True
    split.positions[:, 2] += layer.cell[2, 2] / 2
    split.wrap()
    if np.ptp(layer.positions[:, 2]) > 1:
        assert np.ptp(split.positions[:, 2]) > 10
    assert_same_distances(extract_layer(split).atoms, layer)


def test_extract_layer_is_idempotent_and_keeps_handedness():
    layer = known("PdSe2")
    layer.rattle(0.1, seed=1)  # no mirror left
    volume = lambda a: np.linalg.det(a.get_distances(0, [1, 2, 3], mic=True, vector=True))
    once = extract_layer(layer).atoms
    twice = extract_layer(once).atoms
    np.testing.assert_allclose(once.cell.array, twice.cell.array, atol=1e-9)
    np.testing.assert_allclose(once.positions, twice.positions, atol=1e-9)
    assert volume(once) == pytest.approx(volume(layer), abs=1e-6)
    swapped = layer.copy()
    swapped.set_cell(layer.cell.array[[1, 0, 2]])  # a left-handed description of the same crystal
    assert volume(extract_layer(swapped).atoms) == pytest.approx(volume(layer), abs=1e-6)


def test_extract_layer_without_a_cell_vector_across():
    sheet = mx2("MoS2")  # ASE gives it no c
    assert sheet.cell.rank == 2
    found = extract_layer(sheet)
    assert_convention(found.atoms)
    assert found.vacuum == np.inf and found.thickness == pytest.approx(3.19)


def test_reduce_plane_finds_the_shortest_vectors():
    rng = np.random.default_rng(0)
    for _ in range(50):
        basis = rng.normal(size=(2, 3)) * 3
        a, b = reduce_plane(basis)
        n = np.array([(i, j) for i in range(-12, 13) for j in range(-12, 13) if (i, j) != (0, 0)])
        lengths = np.sort(np.linalg.norm(n @ basis, axis=1))
        if lengths[0] > 0.3 * lengths[2]:  # else the shortest may lie outside the range searched
            assert np.linalg.norm(a) == pytest.approx(lengths[0])
        assert np.linalg.norm(a) <= np.linalg.norm(b) + 1e-9 and a @ b <= 1e-9
        assert np.linalg.norm(np.cross(a, b)) == pytest.approx(np.linalg.norm(np.cross(*basis)))


# --- confusion table


def bilayer(name="graphene", gap=3.4, c=25.0) -> Atoms:
    one = known(name)
    two = one.copy()
    two.positions[:, 2] += np.ptp(one.positions[:, 2]) + gap
    both = one + two
    both.cell[2] = (0, 0, c)
    both.pbc = True
    return both


def interpenetrating() -> Atoms:
    """Zn(CN)2 (a = 5.9 Å): two diamond nets that a lattice translation maps onto each other."""
    a, d = 5.9, np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    along = d / np.sqrt(3)
    positions = np.vstack([[[0, 0, 0]], [[a / 2] * 3], along * 1.97, along * 3.14])
    return Atoms("Zn2C4N4", positions, cell=[a] * 3, pbc=True)


def chain() -> Atoms:
    """Polyyne."""
    return Atoms("C2", [(0, 0, 0), (1.25, 0, 0)], cell=[2.55, 15, 15], pbc=True)


def water() -> Atoms:
    atoms = molecule("H2O", vacuum=6)
    atoms.pbc = True
    return atoms


def graphite() -> Atoms:
    """AA-stacked, one layer a cell."""
    atoms = known("graphene")
    atoms.cell[2] = (0.4, 0, 3.35)
    atoms.pbc = True
    return atoms


MONOLAYERS = list(PROTOTYPE)
OTHERS = {
    "bilayer": (bilayer(), (2, 2)),
    "bilayer of MoS2": (bilayer("1H-MoS2", gap=2.9), (2, 2)),
    "molecule": (water(), (1, 0)),
    "two molecules": (water().repeat((2, 1, 1)), (2, 0)),
    "atom": (Atoms("Ar", cell=[12] * 3, pbc=True), (1, 0)),
    "chain": (chain(), (1, 1)),
    "layer and molecule": (
        known("graphene").repeat((4, 4, 1)) + Atoms("H2", [(3, 3, 13), (3, 3, 13.74)]),
        (2, 2),
    ),
    "fcc": (bulk("Cu"), (1, 3)),
    "diamond": (bulk("C"), (1, 3)),
    "rocksalt": (bulk("NaCl", "rocksalt", a=5.64), (1, 3)),
    "interpenetrating": (interpenetrating(), (2, 3)),
}


@pytest.mark.parametrize("name", MONOLAYERS)
def test_monolayers_are_one_2d_component(name):
    layer = PROTOTYPE[name].atoms()
    assert dimension(layer) == (1, 2)
    assert dimension(disguised(layer, 5)) == (1, 2)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_monolayer_is_not_called_one(name):
    atoms, wanted = OTHERS[name]
    assert dimension(atoms) == wanted
    with pytest.raises(NotALayer, match=str(wanted[0])):
        extract_layer(atoms)


def test_layered_bulk_is_a_layer_with_little_vacuum():
    found = extract_layer(graphite())
    assert dimension(graphite()) == (1, 2)
    assert found.vacuum == pytest.approx(3.35)
    assert found.thickness == pytest.approx(0, abs=1e-9)


def test_interpenetrating_copies_are_counted_in_a_larger_cell_too():
    """The larger cell holds each net's own period, so there the copies are separate components."""
    atoms = interpenetrating()
    assert [part.copies for part in components(atoms)] == [2]
    doubled = atoms.repeat((2, 2, 2))
    assert dimension(doubled) == (2, 3)
    assert [part.copies for part in components(doubled)] == [1, 1]


# --- bonds


def overlapping_pair(distance: float) -> Atoms:
    return Atoms("MoS", [(1, 1, 1), (1, 1, 1 + distance)], cell=[9, 10, 11], pbc=True)


@pytest.mark.parametrize("scale", [1.3, 2.0])
@pytest.mark.parametrize("name", ["graphene", "phosphorene", "PdSe2", "CrI3", "fcc", "skewed"])
def test_bond_ratios_against_ase(name, scale):
    if name == "fcc":
        atoms = bulk("Cu")  # one atom: all neighbours are its own images
    elif name == "skewed":
        atoms = disguised(known("1H-MoS2"), 3)
        atoms.set_cell(-atoms.cell.array[[1, 0, 2]] * [[1], [1], [-1]])  # left-handed
    else:
        atoms = known(name)
    radii = covalent_radii[atoms.numbers]
    i, j, d, shift = neighbor_list("ijdS", atoms, 2 * scale * radii.max())
    ratio = d / (radii[i] + radii[j])
    keep = ratio <= scale
    wanted = sorted(zip(i[keep], j[keep], *shift[keep].T, ratio[keep].round(8)))
    i, j, shift, ratio = bond_ratios(atoms, scale)
    assert len(wanted) > 0
    np.testing.assert_allclose(sorted(zip(i, j, *shift.T, ratio.round(8))), wanted, atol=1e-7)


def test_bond_ratios_of_atoms_outside_the_cell():
    """Across the direction without period an atom may lie anywhere; its neighbours stay its neighbours."""
    atoms = known("1H-MoS2")
    wanted = np.sort(bond_ratios(atoms, 1.3)[3])
    atoms.positions[:, 2] += 100
    np.testing.assert_allclose(np.sort(bond_ratios(atoms, 1.3)[3]), wanted)


def test_min_distance_ratio_of_known_pairs():
    assert min_distance_ratio(overlapping_pair(1.295)) == pytest.approx(1.295 / (1.54 + 1.05))
    assert min_distance_ratio(overlapping_pair(0.0)) == 0.0
    assert min_distance_ratio(Atoms("Ar", cell=[20] * 3, pbc=True)) == 2.0
    assert min_distance_ratio(known("graphene")) == pytest.approx(2.46 / np.sqrt(3) / 1.52)
    across = Atoms(
        "H2", [(0.2, 1, 1), (8.8, 1, 1)], cell=[9, 9, 9], pbc=True
    )  # 0.4 Å apart through the boundary
    assert min_distance_ratio(across) == pytest.approx(0.4 / 0.62)


# --- the same material or not


def test_1t_and_2h_are_two_materials():
    one_t, two_h = Fingerprint(known("1T-MoS2")), Fingerprint(known("1H-MoS2"))
    assert one_t.formula == two_h.formula
    assert not one_t.same(two_h) and not two_h.same(one_t)
    register = Register()
    register.add("1T", one_t)
    assert register.find(two_h) is None
    register.add("2H", two_h)
    assert register.find(Fingerprint(disguised_layer("1H-MoS2", 4))) == "2H"
    assert register.find(Fingerprint(disguised_layer("1T-MoS2", 4))) == "1T"


def disguised_layer(name, seed):
    return extract_layer(disguised(known(name), seed)).atoms


@pytest.mark.parametrize("name", PROTOTYPE)
def test_copies_are_the_same_material(name):
    layer = PROTOTYPE[name].atoms()
    fingerprint = Fingerprint(layer)
    copies = {
        "another description": extract_layer(disguised(layer, 1)).atoms,
        "2x1": extract_layer(disguised(layer.repeat((2, 1, 1)), 2)).atoms,
        "upside down": flipped(layer),
        "strained 1 %": layer_atoms(layer.numbers, layer.positions * 1.01, layer.cell.array[:2, :2] * 1.01),
    }
    for seed in range(3):
        copies[f"rattled {seed}"] = layer.copy()
        copies[f"rattled {seed}"].rattle(0.03, seed=seed)
    wrong = [kind for kind, copy in copies.items() if not fingerprint.same(Fingerprint(copy))]
    assert wrong == []


def test_other_elements_or_another_face_are_other_materials():
    janus = known("Janus-MoSSe")
    assert not Fingerprint(janus).same(Fingerprint(known("1H-MoS2")))
    alloy = known("1H-MoS2").repeat((2, 1, 1))  # MoSSe again, but S and Se share each face
    alloy.symbols = ["Mo", "S", "S", "Mo", "Se", "Se"]
    assert Fingerprint(alloy).formula == Fingerprint(janus).formula
    assert not Fingerprint(alloy).same(Fingerprint(janus))


def test_buckled_and_planar_silicene_are_two_materials():
    """pymatgen's tolerances alone merge them; the layer groups (p-3m1, p6/mmm) do not."""
    buckled = PROTOTYPE["honeycomb-A"].atoms()
    planar = buckled.copy()
    planar.positions[:, 2] = planar.cell[2, 2] / 2
    one, other = Fingerprint(buckled), Fingerprint(planar)
    assert MATCHER.fit(one.structure, other.structure)
    assert not one.same(other)


def test_layer_groups_of_known_layers():
    """International tables E: p6/mmm graphene, p-6m2 h-BN and 1H, p-3m1 1T, pman phosphorene, p4/nmm FeSe,
    p-31m CrI3.
    """
    groups = {
        "graphene": "p6/mmm",
        "h-BN": "p-6m2",
        "1H-MoS2": "p-6m2",
        "1T-TiS2": "p-3m1",
        "Janus-MoSSe": "p3m1",
        "FeSe": "p4/nmm",
        "phosphorene": "pman",
        "CrI3": "p-31m",
    }
    assert {name: layer_group(known(name)) for name in groups} == groups


def test_primitive_layer_undoes_a_supercell():
    for name in ("graphene", "FeSe", "phosphorene", "CrI3"):
        layer = known(name)
        for repeat in ((1, 1, 1), (2, 1, 1), (3, 2, 1)):
            found = primitive_layer(layer.repeat(repeat), 0.05)
            assert len(found) == len(layer)
            assert_same_distances(found, layer)


# --- displacement


def test_rmsd_ignores_drift_and_strain():
    start = known("1H-MoS2").repeat((2, 2, 1))
    end = start.copy()
    end.positions += (1.3, -0.7, 0.4)
    assert rmsd(start, end) == pytest.approx(0, abs=1e-9)
    end.wrap()
    assert rmsd(start, end) == pytest.approx(0, abs=1e-9)
    end.set_cell(end.cell.array @ np.array([[1.05, 0.02, 0], [-0.03, 0.97, 0], [0, 0, 1]]), scale_atoms=True)
    assert rmsd(start, end) == pytest.approx(0, abs=1e-9)


def test_rmsd_of_a_known_displacement():
    start = known("h-BN")
    end = start.copy()
    end.positions[0] += (0.3, 0, 0)  # less the mean: +0.15 and -0.15
    assert rmsd(start, end) == pytest.approx(0.15)
    end.positions[1] += (0, 0, 0.4)  # z: -0.2 and +0.2
    assert rmsd(start, end) == pytest.approx(np.sqrt(0.15**2 + 0.2**2))
    moved = start.repeat((2, 1, 1))
    displaced = moved.copy()
    displaced.positions[2] += (0, 0.5, 0)  # mean 0.125: (3 × 0.125² + 0.375²) / 4
    displaced.wrap()
    assert rmsd(moved, displaced) == pytest.approx(np.sqrt((3 * 0.125**2 + 0.375**2) / 4))


@pytest.mark.parametrize("raises", [True, False])
def test_what_spglib_finds_nothing_in_has_no_symmetry_whoever_set_it_to_raise(monkeypatch, raises):
    """Importing phonopy has spglib raise where it returned None before: two atoms on one place."""
    monkeypatch.setattr(spglib.error, "OLD_ERROR_HANDLING", not raises)
    layer = layer_atoms([42, 16, 16], np.zeros((3, 3)) + [[0, 0, 0], [1, 1, 0], [1, 1, 0]], np.eye(2) * 3.2)
    assert layer_group_of(layer, 0.1) is None and symmetry_of(layer, 0.1) is None
