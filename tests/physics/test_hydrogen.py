"""H on layers: sites counted by hand, supercells by brute force, ΔE_H against its formula with EMT."""

import itertools
from collections import Counter

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.data import covalent_radii
from ase.optimize import BFGS
from layers import PROTOTYPE, Springs, disguised, known
from scipy.spatial.transform import Rotation

from models.crystals.layer import extract_layer, flipped
from models.crystals.sites import (
    DESORBED_SCALE,
    H_SPACING,
    Site,
    adsorption_flag,
    adsorption_sites,
    carries_off,
    roomy,
    shortest_bond,
    spaced_supercell,
    surface_atoms,
    with_hydrogen,
)
from models.physics.hydrogen import (
    CORRECTION,
    RECONSTRUCTED,
    adsorb,
    hydrogen_energy,
    oracle_delta_g,
    relax_and_release,
)
from models.physics.potentials import single_point


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
    """One S of a 2x2 MoS2 sheet is replaced: the faces differ, and so do the S atoms at different distances."""
    layer = known("1H-MoS2").repeat((2, 2, 1))
    top = np.argmax(layer.positions[:, 2])
    layer.symbols[top] = "Se"
    counts = site_counts(adsorption_sites(layer))
    assert (
        counts["ontop-top"] == 2 and counts["ontop-bottom"] == 2
    )  # Se, and three S that a three-fold axis joins


# --- supercells
# ------------------------------------------------------------------------------------------------------


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
# --------------------------------------------------------------------------------------------------


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
# -----------------------------------------------------------------------------------------------------------


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


# --- ΔE_H
# ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copper():
    layer = extract_layer(fcc111("Cu", (1, 1, 3), vacuum=7.5)).atoms
    return layer, single_point(layer, EMT()), hydrogen_energy(EMT())


def emt_energy(atoms: Atoms) -> float:
    """EMT without any of the project's code; nothing it sees reaches across the vacuum."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    return atoms.get_potential_energy()


def test_hydrogen_molecule():
    lengths = np.linspace(0.6, 1.2, 601)
    energies = [emt_energy(Atoms("H2", [(0, 0, 0), (0, 0, d)])) for d in lengths]
    assert hydrogen_energy(EMT()) == pytest.approx(min(energies) / 2, abs=1e-3)


def test_delta_e_is_the_formula(copper):
    layer, energy, half_h2 = copper
    assert energy == pytest.approx(emt_energy(layer))
    sites = adsorption_sites(layer)
    results = adsorb(layer, EMT(), sites, energy, half_h2)
    assert len(results) == len(sites) == 4
    assert {id(result.site) for result in results} == {id(site) for site in sites}
    for result in results:
        cells = (len(result.end) - 1) // len(layer)
        assert cells > 1 and emt_energy(result.start[:-1]) == pytest.approx(cells * energy)
        wanted = emt_energy(result.end) - emt_energy(result.end[:-1]) - half_h2
        assert result.delta_e == pytest.approx(wanted, abs=1e-6)
        assert not result.end.constraints and result.end.get_tags()[-1] == 2
        assert np.abs(result.end.positions - result.start.positions)[:-1].max() < 1e-9
        end = result.end.copy()
        end.calc = EMT()
        assert result.converged == (np.linalg.norm(end.get_forces()[-1]) < 0.05)


def test_relaxing_lowers_the_energy_and_top_takes_the_best_scans(copper):
    layer, energy, half_h2 = copper
    sites = adsorption_sites(layer)
    results = adsorb(layer, EMT(), sites, energy, half_h2)
    for result in results:
        assert emt_energy(result.end) <= emt_energy(result.start) + 1e-9
    best = adsorb(layer, EMT(), sites, energy, half_h2, top=2)
    assert [r.delta_e for r in best] == pytest.approx([r.delta_e for r in results[:2]])


def test_delta_g_is_the_minimum_over_sites_plus_the_correction(copper):
    layer, energy, half_h2 = copper
    every = adsorb(layer, EMT(), adsorption_sites(layer), energy, half_h2)
    kept = [result for result in every if not result.flag]
    found = oracle_delta_g(layer, EMT(), half_h2, relaxed=False)
    assert CORRECTION == 0.27
    assert all(found["delta_g_h"] <= result.delta_e + 0.27 + 1e-9 for result in kept)
    assert found["delta_g_h"] == pytest.approx(min(r.delta_e for r in kept) + 0.27)
    assert sum(found["flags"].values()) == len(every)
    assert oracle_delta_g(layer, EMT(), half_h2, correction=0.24, relaxed=False)[
        "delta_g_h"
    ] == pytest.approx(found["delta_g_h"] - 0.03)
    assert emt_energy(found["pose"]) - (
        len(found["pose"]) - 1
    ) // 3 * energy - half_h2 + 0.27 == pytest.approx(found["delta_g_h"])


def test_both_faces_of_a_layer_are_tried():
    """Cu on one face and Al on the other: the energies of the faces differ, and each equals that of the
    flipped layer.
    """
    slab = fcc111("Cu", (1, 1, 3), vacuum=7.5)
    slab.symbols[0] = "Al"
    layer = extract_layer(slab).atoms
    half_h2, energy = hydrogen_energy(EMT()), emt_energy(layer)
    energies = {}
    for key, atoms in (("as is", layer), ("turned", flipped(layer))):
        results = adsorb(atoms, EMT(), adsorption_sites(atoms), energy, half_h2)
        for face in (1, -1):
            energies[key, face] = sorted(result.delta_e for result in results if result.site.face == face)
    assert len(energies["as is", 1]) == len(energies["as is", -1]) == 4
    assert energies["as is", 1] != pytest.approx(energies["as is", -1], abs=0.05)
    assert energies["as is", 1] == pytest.approx(energies["turned", -1], abs=5e-3)
    assert energies["as is", -1] == pytest.approx(energies["turned", 1], abs=5e-3)


def test_oracle_without_any_adsorbed_site_says_so(copper, monkeypatch):
    layer, _, half_h2 = copper
    far = [Site("ontop", 1, np.array([0, 0, layer.positions[:, 2].max() + 6.0]))]
    monkeypatch.setattr("models.delta_g.adsorption_sites", lambda atoms: far)
    found = oracle_delta_g(layer, EMT(), half_h2)
    assert found["delta_g_h"] is None and found["flags"] == {"desorbed": 1} and found["relaxed_flags"] == {}


# --- everything relaxed, and H taken off again
# -----------------------------------------------------------------------


HALF_H2 = -1.0  # eV; any number does


def square(a: float, layers: int) -> Atoms:
    """Square lattice of a metal of Springs, `a` Å wide, relaxed where there is a second layer to relax to."""
    positions = [(a / 2 * (k % 2), a / 2 * (k % 2), 10 + 1.8 * k) for k in range(layers)]
    slab = Atoms(["Cu"] * layers, positions, cell=[a, a, 22], pbc=(True, True, False))
    slab.calc = Springs()
    BFGS(slab, logfile=None).run(fmax=1e-3)
    slab.calc = None
    return slab


def energy_by(calculator, atoms: Atoms) -> float:
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy()


def test_everything_relaxes_at_the_best_site_and_the_slab_comes_back():
    """A stable slab: the relaxed ΔG_H is that of ASE's own relaxation, below the rigid one; without H the
    slab is what it was.
    """
    slab = square(2.5, 2)
    rigid = oracle_delta_g(slab, Springs(), HALF_H2, relaxed=False)
    found = oracle_delta_g(slab, Springs(), HALF_H2)
    assert found["rigid_delta_g_h"] == pytest.approx(rigid["delta_g_h"]) and found["flags"] == rigid["flags"]
    assert found["relaxed_flags"] == {"adsorbed": 1} and found["h_site"] == rigid["h_site"]
    assert found["delta_g_h"] < rigid["delta_g_h"] - 0.1 and abs(found["slab_change"]) < 0.01
    pose = rigid["pose"].copy()
    pose.calc = Springs()
    BFGS(pose, logfile=None).run(fmax=0.01)
    wanted = pose.get_potential_energy() - (len(pose) - 1) // 2 * energy_by(Springs(), slab) - HALF_H2 + 0.27
    assert found["delta_g_h"] == pytest.approx(wanted, abs=0.01)
    stored = (
        energy_by(Springs(), found["pose"])
        - (len(pose) - 1) // 2 * energy_by(Springs(), slab)
        - HALF_H2
        + 0.27
    )
    assert found["delta_g_h"] == pytest.approx(stored, abs=1e-6)


def test_a_slab_that_falls_lower_without_its_hydrogen_is_no_adsorption():
    """A flat sheet pressed together sits on a saddle, where its symmetry holds it until H comes; rigid,
    nobody would notice.
    """
    slab = square(2.1, 1)
    assert oracle_delta_g(slab, Springs(), HALF_H2, relaxed=False)["delta_g_h"] < 0
    found = oracle_delta_g(slab, Springs(), HALF_H2)
    assert found["delta_g_h"] is None and found["pose"] is None and found["h_site"] is None
    assert found["rigid_delta_g_h"] < 0 and found["relaxed_flags"] == {"reconstructed": 1}
    assert found["slab_change"] < -RECONSTRUCTED


def test_the_next_site_is_tried_where_hydrogen_does_not_stay():
    found = oracle_delta_g(square(3.0, 2), Springs(), HALF_H2, sites=2)
    assert found["flags"] == {"adsorbed": 2} and found["relaxed_flags"] == {"sunk": 1, "adsorbed": 1}
    assert found["delta_g_h"] is not None and -RECONSTRUCTED < found["slab_change"]


def test_release_flags_hydrogen_that_never_bound():
    slab = square(2.5, 2)
    pose = roomy(with_hydrogen(slab, adsorption_sites(slab)[0]))
    pose.positions[-1, 2] += 4.4
    whole = energy_by(Springs(), pose[:-1])
    free = relax_and_release(pose, 1, Springs(), whole, HALF_H2)
    assert free.flag == "desorbed" and free.slab_change == pytest.approx(0, abs=0.01)
    assert free.delta_e == pytest.approx(energy_by(Springs(), free.end) - whole - HALF_H2, abs=1e-6)


# --- the builder's rows
# ----------------------------------------------------------------------------------------------


def test_the_builders_records_keep_hydrogen_on_its_site(monkeypatch):
    """Every pose of a row is stored against one slab: H must stand there where it stood in its own pose."""
    from data import build, pack
    from models.crystals.layer import pack_atoms

    slab = fcc111("Cu", (1, 1, 3), vacuum=7.5)
    slab.symbols[0] = "Al"
    host = extract_layer(slab).atoms
    build._worker.update(calculator=EMT(), half_h2=hydrogen_energy(EMT()))
    row = build.adsorb_on({"key": "x", "atoms": pack_atoms(host), "energy": emt_energy(host)})
    assert {site["face"] for site in row["sites"]} == {1, -1}
    for site in row["sites"]:
        site["converged"] = True
    monkeypatch.setattr(pack, "adsorption_flag", lambda *_: "")  # keep them all
    records, _ = pack.adsorption_records(row | {"key": "x", "reason": ""}, 0)
    poses = [with_hydrogen(host, site) for site in adsorption_sites(host)]
    wanted = sorted(shortest_bond(pose) for pose in poses)
    found = []
    for record, site in zip(records, row["sites"]):
        assert record.y_relaxed == site["delta_e"]
        pose = Atoms(
            record.atomic_numbers.numpy(), record.pos.numpy(), cell=record.cell[0].numpy(), pbc=(1, 1, 0)
        )
        found.append(shortest_bond(pose))
        end = Atoms(
            record.atomic_numbers.numpy(),
            record.pos_relaxed.numpy(),
            cell=record.cell[0].numpy(),
            pbc=(1, 1, 0),
        )
        wanted_end = emt_energy(end) - (len(end) - 1) // 3 * emt_energy(host) - hydrogen_energy(EMT())
        assert site["delta_e"] == pytest.approx(wanted_end, abs=2e-3)
    np.testing.assert_allclose(sorted(found), wanted, atol=1e-4)


def test_the_builder_relaxes_as_the_evaluator_does():
    from data import build
    from models.crystals.layer import pack_atoms

    slab = square(2.5, 2)
    build._worker.update(calculator=Springs(), half_h2=HALF_H2)
    row = build.adsorb_on({"key": "x", "atoms": pack_atoms(slab), "energy": energy_by(Springs(), slab)})
    found = build.relax_adsorbed({"key": "x", "row": row})["sites"][0]
    wanted = oracle_delta_g(slab, Springs(), HALF_H2)
    assert found["flag"] == "" and found["rigid_delta_e"] + 0.27 == pytest.approx(
        wanted["rigid_delta_g_h"], abs=1e-3
    )
    assert found["delta_e"] + 0.27 == pytest.approx(wanted["delta_g_h"], abs=2e-3)


def test_hydrogen_that_leaves_with_its_atom():
    """H on a S of 1H-MoS2; the same with that S lifted out of its bonds, which are 2.4 Å and end at 1.3 Σ
    r_cov = 3.4 Å.
    """
    layer = known("1H-MoS2").repeat((2, 2, 1))
    top = int(layer.positions[:, 2].argmax())
    pose = layer + Atoms("H", [layer.positions[top] + [0, 0, 1.35]])
    assert not carries_off(pose)
    for lift, expected in ((0.5, False), (2.5, True)):
        lifted = pose.copy()
        lifted.positions[[top, -1], 2] += lift
        assert carries_off(lifted) is expected
