"""Drawn layer groups and orbits: spglib finds at least the group, pyxtal's tables know the positions."""

from collections import Counter

import numpy as np
import pytest
import spglib
from groups import GENERAL, example
from pyxtal.symmetry import Group

from data.build.prototypes import PROTOTYPES
from models.crystals.layer import coincident, primitive_layer
from models.crystals.orbits import GroupStatistics, Orbits, occupied
from models.crystals.symmetry import layer_operations
from models.crystals.templates import Templates, prototype_name
from models.networks.proposals import with_formula

DATABASE = [(p.name, p.atoms()) for p in PROTOTYPES]
DRAWS = 5


@pytest.fixture(scope="module")
def orbits():
    return Orbits(DATABASE)


def by_spglib(atoms, symprec=1e-3):
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    return spglib.get_layergroup(cell, aperiodic_dir=2, symprec=symprec)


def holds_operations(drawn, host) -> bool:
    """Whether every operation of the host's group is one of the drawn layer, in the same cell."""
    found, wanted = by_spglib(drawn), by_spglib(host, 0.01)
    for rotation, shift in zip(wanted.rotations, wanted.translations):
        away = (found.translations - shift)[(found.rotations == rotation).all((1, 2)), :2]
        if not (abs(away - np.round(away)) < 1e-3).all(1).any():
            return False
    return True


@pytest.mark.parametrize("name, host", DATABASE, ids=[name for name, _ in DATABASE])
def test_spglib_finds_at_least_the_group_that_was_drawn(name, host, orbits):
    """In the host's cell, with its numbers of atoms, and no two atoms on one place."""
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        named, drawn = orbits.draw([(name, host)], rng)
        assert Counter(drawn.numbers.tolist()) == Counter(host.numbers.tolist())
        np.testing.assert_allclose(drawn.cell.array[:2], host.cell.array[:2])
        assert holds_operations(drawn, host) and not coincident(drawn)
        assert named == prototype_name(drawn)


@pytest.mark.parametrize("number", range(1, 81))
def test_positions_of_every_layer_group(number):
    """One general and one most special orbit by pyxtal's tables, found again at other coordinates."""
    host = primitive_layer(example(number, (GENERAL[0], (16, GENERAL[1][1], -1))), 0.01)
    own = layer_operations(host, 0.01)
    assert own.number == number
    drawn = Orbits([("", host)]).draw([("", host)], np.random.default_rng(number))[1]
    found = layer_operations(drawn)
    assert by_spglib(drawn).number == number and holds_operations(drawn, host)
    assert sorted(found.wyckoff) == sorted(own.wyckoff)
    size = {letter: count for letter, _, count in occupied(drawn, found)}
    centring = 2 if found.group.startswith("c") else 1  # the tables hold the conventional cell
    table = {position.letter: position.multiplicity for position in Group(number, dim=2)}
    for letter, count in size.items():
        assert centring * count == table[letter]
    moved = np.abs(drawn.positions - host.positions).max()
    assert moved > 0.1 or number == 1  # the free coordinates are drawn, not copied


def test_prototypes_that_no_row_holds(orbits):
    """Recombined occupations; every pair of positions occurs together in some layer of the group."""
    templates, rng = Templates(DATABASE), np.random.default_rng(1)
    assert all(templates.holds_prototype(atoms) for _, atoms in DATABASE)
    fresh = 0
    for _ in range(60):
        _, drawn = orbits.draw(DATABASE, rng)
        fresh += not templates.holds_prototype(drawn)
    assert fresh >= 2


def test_positions_that_never_occur_together_are_not_combined():
    """One atom on a or b, two on d or e; a goes with d or e, b with e alone."""
    group = GroupStatistics()
    group.fillings[1] = Counter({("a",): 1, ("b",): 1})
    group.fillings[2] = Counter({("d",): 3, ("e",): 1})
    group.together = {("a", "d"), ("a", "e"), ("b", "e")}
    rng = np.random.default_rng(0)
    found = Counter()
    for _ in range(1000):
        (one,), (other,) = group.occupation([1, 2], rng)
        found[one + other] += 1
    # weights 3, 1, 1 of those that are left
    assert set(found) == {"ad", "ae", "be"} and abs(found["ad"] / 1000 - 0.6) < 0.06
    assert group.occupation([1, 1], rng) is None  # a and b are never occupied together


def test_a_supercell_is_no_other_prototype():
    layer = dict(DATABASE)["MoS2-2H"]
    double = layer.repeat((2, 1, 1))
    assert prototype_name(double) == prototype_name(layer) == "AB2 p-6m2 1|2"
    assert not Orbits([("", double)]).groups  # its own translations say nothing of positions
    with pytest.raises(ValueError, match="none of 100 layers"):
        Orbits([("", layer)]).draw([("", double)], np.random.default_rng(0))


def test_a_formula_takes_the_orbits():
    rng = np.random.default_rng(0)
    _, drawn = Orbits(DATABASE).draw(Templates(DATABASE).select("WSe2").structures, rng)
    assert with_formula(drawn, "WSe2", rng).get_chemical_formula(empirical=True) == "Se2W"
