"""H on layers as energy: ΔE_H and ΔG_H against their formulas, with EMT and with springs."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.optimize import BFGS
from layers import Springs, energy_by, square_metal

from models.crystals.layer import NotALayer, extract_layer, flipped
from models.crystals.sites import Site, abstracts, adsorption_flag, adsorption_sites, roomy, with_hydrogen
from models.physics.hydrogen import CORRECTION, RECONSTRUCTED, HydrogenOracle, HydrogenResult
from models.physics.parallel import OracleSettings, label_one
from models.physics.potentials import relax_layer, single_point


def emt_energy(atoms: Atoms) -> float:
    """EMT without any of the project's code; nothing it sees reaches across the vacuum."""
    return energy_by(EMT(), atoms)


@pytest.fixture(scope="module")
def copper():
    """Three layers of Cu(111), and their energy in eV."""
    layer = extract_layer(fcc111("Cu", (1, 1, 3), vacuum=7.5)).atoms
    return layer, single_point(layer, EMT())


@pytest.fixture(scope="module")
def oracle():
    return HydrogenOracle(EMT())


# --- H alone


def test_hydrogen_molecule(oracle):
    lengths = np.linspace(0.6, 1.2, 601)
    energies = [emt_energy(Atoms("H2", [(0, 0, 0), (0, 0, d)])) for d in lengths]
    assert oracle.half_h2 == pytest.approx(min(energies) / 2, abs=1e-3)


def test_delta_e_is_the_formula(copper, oracle):
    layer, energy = copper
    assert energy == pytest.approx(emt_energy(layer))
    results = oracle.adsorb(layer, energy)
    tried = [(result.site.label, tuple(result.site.position)) for result in results]
    assert sorted(tried) == sorted((site.label, tuple(site.position)) for site in adsorption_sites(layer))
    assert len(tried) == 4
    for result in results:
        cells = (len(result.end) - 1) // len(layer)
        assert cells > 1 and emt_energy(result.start[:-1]) == pytest.approx(cells * energy)
        assert result.slab_energy == pytest.approx(cells * energy)
        wanted = emt_energy(result.end) - emt_energy(result.end[:-1]) - oracle.half_h2
        assert result.delta_e == pytest.approx(wanted, abs=1e-6)
        assert not result.end.constraints and result.end.get_tags()[-1] == 2
        assert np.abs(result.end.positions - result.start.positions)[:-1].max() < 1e-9
        end = result.end.copy()
        end.calc = EMT()
        assert result.converged == (np.linalg.norm(end.get_forces()[-1]) < 0.05)


def test_relaxing_lowers_the_energy_and_top_takes_the_best_scans(copper, oracle):
    layer, energy = copper
    results = oracle.adsorb(layer, energy)
    for result in results:
        assert emt_energy(result.end) <= emt_energy(result.start) + 1e-9
    best = oracle.adsorb(layer, energy, top=2)
    assert [r.delta_e for r in best] == pytest.approx([r.delta_e for r in results[:2]])


def test_delta_g_is_the_minimum_over_sites_plus_the_correction(copper, oracle):
    layer, energy = copper
    every = oracle.adsorb(layer, energy)
    kept = [result for result in every if not result.flag]
    found = HydrogenOracle(EMT(), relaxed=False).delta_g(layer)
    assert CORRECTION == 0.27
    assert found.delta_g_h == pytest.approx(min(r.delta_e for r in kept) + 0.27)
    assert found.rigid_delta_g_h == found.delta_g_h and found.slab_change is None
    assert sum(found.flags.values()) == len(every) and found.relaxed_flags == {}
    lower = HydrogenOracle(EMT(), correction=0.24, relaxed=False).delta_g(layer)
    assert lower.delta_g_h == pytest.approx(found.delta_g_h - 0.03)
    slab_energy = (len(found.pose) - 1) // 3 * energy
    by_hand = emt_energy(found.pose) - slab_energy - oracle.half_h2 + 0.27
    assert by_hand == pytest.approx(found.delta_g_h)


def test_both_faces_of_a_layer_are_tried(oracle):
    """Cu on one face and Al on the other: the energies of the faces differ, and each equals that of the
    flipped layer.
    """
    slab = fcc111("Cu", (1, 1, 3), vacuum=7.5)
    slab.symbols[0] = "Al"
    layer = extract_layer(slab).atoms
    energies = {}
    for key, atoms in (("as is", layer), ("turned", flipped(layer))):
        results = oracle.adsorb(atoms, emt_energy(layer))
        for face in (1, -1):
            energies[key, face] = sorted(result.delta_e for result in results if result.site.face == face)
    assert len(energies["as is", 1]) == len(energies["as is", -1]) == 4
    assert energies["as is", 1] != pytest.approx(energies["as is", -1], abs=0.05)
    assert energies["as is", 1] == pytest.approx(energies["turned", -1], abs=5e-3)
    assert energies["as is", -1] == pytest.approx(energies["turned", 1], abs=5e-3)


def test_a_layer_without_any_adsorbing_site_says_so(copper, oracle, monkeypatch):
    layer, _ = copper
    far = [Site("ontop", 1, np.array([0, 0, layer.positions[:, 2].max() + 6.0]))]
    monkeypatch.setattr("models.physics.hydrogen.adsorption_sites", lambda atoms: far)
    assert oracle.delta_g(layer) == HydrogenResult(flags={"desorbed": 1})


# --- everything relaxed, and H taken off again


@pytest.fixture(scope="module")
def springs():
    return HydrogenOracle(Springs())


@pytest.fixture(scope="module")
def rigid_springs():
    return HydrogenOracle(Springs(), relaxed=False)


def test_everything_relaxes_at_the_best_site_and_the_slab_comes_back(springs, rigid_springs):
    """A stable slab: the relaxed ΔG_H is that of ASE's own relaxation, below the rigid one; without H the
    slab is what it was.
    """
    slab = square_metal(2.5, 2)
    rigid, found = rigid_springs.delta_g(slab), springs.delta_g(slab)
    assert found.rigid_delta_g_h == pytest.approx(rigid.delta_g_h) and found.flags == rigid.flags
    assert found.relaxed_flags == {"adsorbed": 1} and found.site == rigid.site
    assert found.delta_g_h < rigid.delta_g_h - 0.1 and abs(found.slab_change) < 0.01
    slab_energy = (len(rigid.pose) - 1) // 2 * energy_by(Springs(), slab)
    delta_g = lambda pose: energy_by(Springs(), pose) - slab_energy - springs.half_h2 + 0.27
    pose = rigid.pose.copy()
    pose.calc = Springs()
    BFGS(pose, logfile=None).run(fmax=0.01)
    assert found.delta_g_h == pytest.approx(delta_g(pose), abs=0.01)
    assert found.delta_g_h == pytest.approx(delta_g(found.pose), abs=1e-6)


def test_a_slab_that_falls_lower_without_its_hydrogen_is_no_adsorption(springs, rigid_springs):
    """A flat sheet pressed together sits on a saddle, where its symmetry holds it until H comes; rigid,
    nobody would notice.
    """
    slab = square_metal(2.1, 1)
    assert rigid_springs.delta_g(slab).delta_g_h < 0
    found = springs.delta_g(slab)
    assert found.delta_g_h is None and found.pose is None and found.site is None
    assert found.rigid_delta_g_h < 0 and found.relaxed_flags == {"reconstructed": 1}
    assert found.slab_change < -RECONSTRUCTED and found.reconstructed


def test_the_next_site_is_tried_where_hydrogen_does_not_stay():
    found = HydrogenOracle(Springs(), sites=2).delta_g(square_metal(3.0, 2))
    assert found.flags == {"adsorbed": 2} and found.relaxed_flags == {"sunk": 1, "adsorbed": 1}
    assert found.flags_text == "adsorbed:2 then adsorbed:1 sunk:1"
    assert found.delta_g_h is not None and -RECONSTRUCTED < found.slab_change


def test_the_next_site_is_tried_where_hydrogen_abstracts_a_surface_atom(monkeypatch):
    """At the best site H leaves with the atom that it sits on; the answer is that of the second best."""
    slab, left = square_metal(2.5, 2), []

    def lifting(atoms, calculator, **limits):
        """Relaxes; the first time that H and slab move together, both leave the slab."""
        relaxed = relax_layer(atoms, calculator, **limits)
        if atoms.symbols[-1] == "H" and not atoms.constraints and not left:
            pose = relaxed.atoms
            host = pose.get_distances(-1, range(len(pose) - 1), mic=True).argmin()
            away = np.sign(pose.positions[-1, 2] - pose.positions[:-1, 2].mean())
            pose.positions[[host, -1], 2] += 8.0 * away
            left.append(adsorption_flag(pose, away))
        return relaxed

    oracle = HydrogenOracle(Springs())
    second = sorted(oracle.adsorb(slab, energy_by(Springs(), slab)), key=lambda result: result.delta_e)[1]
    monkeypatch.setattr("models.physics.hydrogen.relax_layer", lifting)
    found = oracle.delta_g(slab)
    assert left == ["abstracted"] and found.relaxed_flags == {"abstracted": 1, "adsorbed": 1}
    assert found.site == second.site.label and not abstracts(found.pose)
    alone = oracle.release(second.end, second.site.face, second.slab_energy)
    assert found.delta_g_h == pytest.approx(alone.delta_e + CORRECTION, abs=1e-6)


def test_a_slab_that_has_not_come_to_rest_without_its_hydrogen_has_no_delta_g(monkeypatch):
    """The slab without H is still on its way down when the steps run out: nobody knows that it comes back."""
    slab, oracle = square_metal(2.5, 2), HydrogenOracle(Springs())
    assert oracle.delta_g(slab).relaxed_flags == {"adsorbed": 1}

    def hasty(atoms, calculator, **limits):
        bare = atoms.symbols[-1] != "H"
        return relax_layer(atoms, calculator, **(limits | {"steps": 0, "fmax": 1e-9} if bare else limits))

    monkeypatch.setattr("models.physics.hydrogen.relax_layer", hasty)
    found = oracle.delta_g(slab)
    assert found.delta_g_h is None and set(found.relaxed_flags) == {"not converged"}


def test_release_flags_hydrogen_that_never_bound(springs):
    slab = square_metal(2.5, 2)
    pose = roomy(with_hydrogen(slab, adsorption_sites(slab)[0]))
    pose.positions[-1, 2] += 4.4
    whole = energy_by(Springs(), pose[:-1])
    free = springs.release(pose, 1, whole)
    assert free.outcome == "desorbed" and free.slab_change == pytest.approx(0, abs=0.01)
    assert free.delta_e == pytest.approx(energy_by(Springs(), free.end) - whole - springs.half_h2, abs=1e-6)


# --- another method's geometry


def test_a_layer_is_relaxed_by_the_oracles_own_potential_first(oracle):
    """Copper 3 % too wide: the label is that of the layer that EMT makes of it, not of the one given."""
    wide = extract_layer(fcc111("Cu", (1, 1, 3), a=3.75, vacuum=7.5)).atoms
    layer, energy = oracle.own_layer(wide)
    assert energy == pytest.approx(emt_energy(layer), abs=1e-6) and energy < emt_energy(wide) - 0.01
    few_sites = HydrogenOracle(EMT(), sites=3)
    label = label_one(wide, few_sites)
    assert label["delta_g_h"] == pytest.approx(few_sites.delta_g(layer).delta_g_h, abs=1e-9)
    assert label["delta_g_h"] != pytest.approx(few_sites.delta_g(wide).delta_g_h, abs=1e-3)
    assert label["h_site"] and len(label["h_position"]) == 3 and label["relaxed_flags"] == {"adsorbed": 1}


def test_a_layer_that_does_not_relax_or_is_none_is_an_error(copper, oracle):
    layer, _ = copper
    strained = layer.copy()
    strained.set_cell(layer.cell.array * [[1.04], [1.0], [1]], scale_atoms=True)
    with pytest.raises(ValueError, match="relaxation: not converged in 1 steps"):
        oracle.own_layer(strained, steps=1)
    apart = Atoms("Cu", [(0, 0, 7)], cell=[9, 9, 14], pbc=(True, True, False))  # atoms 9 Å apart
    with pytest.raises(NotALayer):
        oracle.own_layer(apart)
    assert label_one(apart, oracle)["error"].startswith("NotALayer: 1 component(s)")


def test_settings_make_the_oracle_that_they_name():
    made = OracleSettings("ase.calculators.emt:EMT", correction=0.24, sites=2, relaxed=False).load()
    assert isinstance(made.calculator, EMT)
    assert (made.correction, made.sites, made.relaxed) == (0.24, 2, False)
