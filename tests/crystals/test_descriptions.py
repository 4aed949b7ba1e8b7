"""One crystal, however it is described: the same verdict, fingerprint, sites and slabs.

Whatever basis, supercell, vacuum, origin, wrap, order of atoms, rotation or mirror image hypothesis draws.
"""

from collections import Counter

import numpy as np
import pytest
from ase import Atoms
from hypothesis import HealthCheck, given, settings
from layers import known
from strategies import descriptions

from models.crystals.gates import gates
from models.crystals.layer import extract_layer, primitive_layer, wrapped
from models.crystals.matching import Fingerprint
from models.crystals.sites import adsorption_sites, with_hydrogen

NAMES = ("graphene", "h-BN", "1H-MoS2", "1T-TiS2", "Janus-MoSSe", "phosphorene", "FeSe", "PdSe2")
QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def kinds(atoms: Atoms) -> Counter:
    """How many sites of each kind, per pair of faces: which face is the top is free."""
    top = Counter(site.kind for site in adsorption_sites(atoms) if site.face > 0)
    bottom = Counter(site.kind for site in adsorption_sites(atoms) if site.face < 0)
    return Counter({tuple(sorted(face.items())): 1 for face in (top, bottom)})


def slab_distances(atoms: Atoms) -> np.ndarray:
    """Sorted distances from H to the slab, of every site: alike for two descriptions of one layer."""
    found = []
    for site in adsorption_sites(atoms):
        slab = with_hydrogen(atoms, site)
        distances = np.sort(slab.get_distances(-1, range(len(slab) - 1), mic=True))
        found.append([len(slab), *distances[:6].round(3)])
    return np.array(sorted(found))


@given(descriptions(NAMES))
@QUICK
def test_the_verdict_and_the_measures_do_not_depend_on_the_description(case):
    name, atoms = case
    wanted, layer, _ = gates(known(name))
    row, found, why = gates(atoms)
    assert (row["verdict"], row["two_d"], row["valid"], why) == ("2D", True, True, "")
    assert row["formula"] == wanted["formula"] and row["layer_group"] == wanted["layer_group"]
    assert row["thickness_A"] == pytest.approx(wanted["thickness_A"], abs=1e-6)
    assert len(found) % len(layer) == 0


@given(descriptions(NAMES))
@QUICK
def test_the_primitive_layer_is_small_and_inside_its_cell(case):
    name, atoms = case
    found = primitive_layer(extract_layer(atoms).atoms, 0.05)
    assert sorted(found.symbols) == sorted(known(name).symbols)
    frac = found.positions[:, :2] @ np.linalg.inv(found.cell.array[:2, :2])
    assert (frac > -1e-4).all() and (frac < 1 + 1e-4).all()
    np.testing.assert_allclose(found.positions[:, 2], wrapped(found).positions[:, 2])


@given(descriptions(NAMES))
@settings(QUICK, max_examples=25)
def test_the_fingerprint_does_not_depend_on_the_description(case):
    name, atoms = case
    assert Fingerprint(extract_layer(atoms).atoms).same(Fingerprint(known(name)))


@given(descriptions(NAMES))
@settings(QUICK, max_examples=25)
def test_sites_and_slabs_do_not_depend_on_the_description(case):
    """Before, the atoms of a shuffled supercell stood cells away from the primitive cell, and the metal of
    MoS2 counted as surface: 7 to 10 sites in the place of 4.
    """
    name, atoms = case
    layer = extract_layer(atoms).atoms
    assert kinds(layer) == kinds(known(name))
    np.testing.assert_allclose(slab_distances(layer), slab_distances(known(name)), atol=2e-2)
