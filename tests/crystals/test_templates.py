"""Templates, and the model-free baseline: related elements, the nearest prototype, bonds of the new elements'
lengths.
"""

import ase.db
import numpy as np
import pytest
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii
from layers import disguised, known
from pymatgen.core import Composition, Element

from models.crystals.split import split_of
from models.crystals.templates import (
    Templates,
    by_substitution,
    chemical_distance,
    nearest_prototypes,
    prototype_name,
    related_formula,
    relatives,
    substitute,
)


@pytest.fixture(scope="module")
def templates():
    layers = [
        ("2H", known("1H-MoS2")),
        ("1T", known("1T-TiS2")),
        ("honeycomb", known("h-BN")),
        ("MXene", known("Ti2CO2")),
        ("Janus", known("Janus-MoSSe")),
        ("2H", substitute(known("1H-MoS2"), {"Mo": "W"})),
        ("CrI3", known("CrI3")),
    ]
    return Templates(layers)


def test_relatives_are_the_periodic_group():
    elements = "O S Se Te Mo W Cr Ti I".split()
    assert relatives("S", elements) == ["O", "S", "Se", "Te"] and relatives("Mo", elements) == [
        "Mo",
        "W",
        "Cr",
    ]
    assert chemical_distance("Mo", "W") < chemical_distance("Mo", "Ti") < chemical_distance("Mo", "S")


def test_nearest_prototype_is_the_chemical_neighbour_and_keeps_the_slots(templates):
    found = list(nearest_prototypes(templates, "CrSe2"))
    assert [name for name, _ in found] == ["2H", "1T"]  # MoS2, which stands for WS2 too, before TiS2
    for _, layer in found:
        assert layer.get_chemical_formula(empirical=True) == "CrSe2"
    layer, start = found[0][1], known("1H-MoS2")
    ratio = sum(covalent_radii[atomic_numbers[s]] for s in ("Cr", "Se")) / sum(
        covalent_radii[atomic_numbers[s]] for s in ("Mo", "S")
    )
    bond = lambda atoms: np.sort(atoms.get_all_distances(mic=True)[0])[1]
    assert bond(layer) / bond(start) == pytest.approx(layer.cell[0, 0] / start.cell[0, 0])
    assert layer.cell[0, 0] / start.cell[0, 0] == pytest.approx(ratio, abs=0.05)


def test_prototype_names_tell_polymorphs_apart_and_decorations_not():
    name = lambda label: prototype_name(known(label))
    assert name("1H-MoS2") != name("1T-TiS2") != name("Janus-MoSSe")
    assert name("1H-MoS2") == prototype_name(substitute(known("1H-MoS2"), {"Mo": "Nb", "S": "Te"}))
    assert name("1H-MoS2") == "AB2 p-6m2 1|2" and name("graphene") == "A p6/mmm 2"


def test_slots_of_equal_amount_go_to_the_most_alike(templates):
    _, layer = next(nearest_prototypes(templates, "PAl"))
    start = known("h-BN")
    assert [layer.symbols[list(start.symbols).index(old)] for old in "BN"] == ["Al", "P"]
    _, layer = next(nearest_prototypes(templates, "WSTe"))
    start = known("Janus-MoSSe")
    swapped = dict(zip(start.symbols, layer.symbols))
    assert swapped == {"Mo": "W", "S": "S", "Se": "Te"}


def test_a_known_formula_is_predicted_from_the_others(templates):
    """MoS2 from WS2, not from itself; what no other layer has the amounts of cannot be predicted."""
    (_, layer), *_ = nearest_prototypes(templates, "MoS2")
    assert layer.cell[0, 0] == pytest.approx(templates.structures[5][1].cell[0, 0] * 1.0, rel=0.06)
    assert len(list(nearest_prototypes(templates, "MoS2"))) == 2
    with pytest.raises(ValueError, match="CrI3"):
        next(nearest_prototypes(templates, "CrI3"))
    with pytest.raises(ValueError, match="Mo7S5"):
        next(nearest_prototypes(templates, "Mo7S5"))


def test_related_formulas_are_new_and_group_by_group(templates):
    known_formulas = {Composition(a.get_chemical_formula()).reduced_formula for _, a in templates.structures}
    pools = [
        sorted(sorted((Element(e).group, n) for e, n in Composition(formula).as_dict().items()))
        for formula in known_formulas
    ]
    rng = np.random.default_rng(0)
    for _ in range(30):
        formula = related_formula(templates, rng)
        assert formula not in known_formulas
        assert sorted((Element(e).group, n) for e, n in Composition(formula).as_dict().items()) in pools


def test_substitution_repeats_by_seed_and_takes_a_formula(templates):
    formulas = lambda seed: [
        a.get_chemical_formula() for _, a in by_substitution(templates, 6, np.random.default_rng(seed))
    ]
    assert formulas(1) == formulas(1) != formulas(2)
    found = by_substitution(templates, 5, np.random.default_rng(0), "CrSe2")
    assert len(found) == 5 and {a.get_chemical_formula(empirical=True) for _, a in found} == {"CrSe2"}


def test_held_out_layers_are_real_and_of_the_test_split():
    """Of MX2 with sixty choices of elements, those whose formula's hash says test; each once, untouched."""
    choices = [
        (metal, x) for metal in "Ti Zr Hf V Nb Ta Cr Mo W Pt".split() for x in "O S Se Te Cl Br".split()
    ]
    layers = [(f"{metal}{x}2", substitute(known("1T-TiS2"), {"Ti": metal, "S": x})) for metal, x in choices]
    unseen = {name: atoms for name, atoms in layers if split_of(name) == "test"}
    assert 0 < len(unseen) < 20
    assert dict(Templates(layers).held_out(len(unseen), np.random.default_rng(0))) == unseen
    with pytest.raises(ValueError, match="--num"):
        Templates(layers).held_out(len(unseen) + 1, np.random.default_rng(0))


# --- read and selected


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Rows in C2DB's schema, of which three are templates: stable enough, small enough, and layers."""
    path = tmp_path_factory.mktemp("templates") / "layers.db"
    bulk_copper = bulk("Cu", cubic=True)
    with ase.db.connect(path) as rows:
        rows.write(known("1T-TiS2"), ehull=0.25, prototype="1T")
        rows.write(known("1H-MoS2"), ehull=0.0)
        rows.write(disguised(known("h-BN"), 3), ehull=0.1, prototype="honeycomb")
        rows.write(known("FeSe"), ehull=0.31)
        rows.write(known("graphene").repeat((4, 3, 1)), ehull=0.0)
        rows.write(bulk_copper, ehull=0.0)
    return path


def test_templates_are_the_small_stable_layers_of_a_database_the_stablest_first(database, tmp_path):
    found = Templates.read(database)
    names = [(name, atoms.get_chemical_formula(empirical=True)) for name, atoms in found.structures]
    assert names == [("AB2 p-6m2 1|2", "MoS2"), ("honeycomb", "BN"), ("1T", "S2Ti")]
    for _, atoms in found.structures:
        assert atoms.pbc.tolist() == [True, True, False] and atoms.cell[2, 2] > 14.9
    fewer = Templates.read(database, max_atoms=2, max_e_hull=0.2)
    assert [name for name, _ in fewer.structures] == ["honeycomb"]
    assert found.elements() == ["B", "Mo", "N", "S", "Ti"]
    with pytest.raises(FileNotFoundError, match="--db"):
        Templates.read(tmp_path / "none.db")


def test_templates_are_selected_by_formula_name_and_number_of_atoms(templates):
    names = lambda found: [name for name, _ in found.structures]
    assert names(templates.select("WSe2")) == ["2H", "1T", "2H"]  # anything of two and one
    assert names(templates.select("CrTe2", name="1T")) == ["1T"]
    assert names(templates.select(num_atoms=2)) == ["honeycomb"]
    assert names(templates.select()) == names(templates)
    with pytest.raises(ValueError, match="formula=WSe2 template=CrI3 num_atoms=None"):
        templates.select("WSe2", name="CrI3")
