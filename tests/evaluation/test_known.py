"""Known materials and a set broken on purpose, through the evaluator with the real potential, hull and
novelty database: what a wrong oracle or a wrong hull would fail.
"""

from collections.abc import Callable
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.io import write
from layers import disguised, known
from pymatgen.core import Composition
from scipy.stats import spearmanr
from test_evaluate import bilayer, overlapping, periodic, water

from benchmarks.gates.study import confusion, confusion_table, labelled_structures
from geo_utils import evaluate
from models.crystals.gates import VERDICTS
from models.crystals.layer import extract_layer
from models.crystals.structure_files import read_structures
from models.evaluation.settings import Settings
from models.infra.files import ROOT
from models.physics.hull import Hull

KNOWN = ("graphene", "h-BN", "1H-MoS2", "1T-TiS2", "Ti2CO2", "phosphorene")
# ΔG_H in eV of the literature (data/literature_delta_g_h.csv; metals: Nørskov et al. 2005): two surfaces that
# evolve hydrogen, two inert ones, and gold between them.
ACTIVITY = {"Ti2CO2": 0.358, "Pt(111)": -0.09, "Au(111)": 0.45, "graphene": 1.67, "1H-MoS2": 2.0}
# Formation energies in eV/atom of C2DB: PBE, not the potential.
FORMATION = {"h-BN": -1.292, "1H-MoS2": -0.921, "1T-MoS2": -0.644, "1T-TiS2": -1.309, "Ti2CO2": -2.061}
BROKEN = {"overlapping": "2D", "molecule": "molecule", "crystal": "3D network", "bilayer": "several layers"}


def surface(name: str):
    """A known layer, or three layers of a metal: thin enough for the gate, and metallic all through."""
    metal = name.removesuffix("(111)")
    if metal == name:
        return periodic(known(name))
    return periodic(extract_layer(fcc111(metal, (1, 1, 3), vacuum=10)).atoms)


def evaluated(structures: dict, folder: Path, **settings):
    """Table by id, with the real potential and databases."""
    for name, atoms in structures.items():
        write(folder / f"{name}.cif", atoms)
    quick = Settings(potential="sevennet", second_potential="none", hull_phases=0, phonons=0, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return evaluate(read_structures(folder), quick, folder / "out").rows.set_index("material_id")


@pytest.fixture(scope="module")
def rows(tmp_path_factory, untrained_dimenet):
    """Known layers, a duplicate and a polymorph, and broken structures, without hydrogen."""
    structures = {f"a_{name}": surface(name) for name in (*KNOWN, "1T-MoS2")}
    structures["b_twin"] = disguised(known("1H-MoS2"), 4)
    structures |= {
        "c_overlapping": overlapping(),
        "c_molecule": water(),
        "c_crystal": bulk("NaCl", "rocksalt", a=5.64),
        "c_bilayer": bilayer(),
    }
    folder = tmp_path_factory.mktemp("known")
    return evaluated(structures, folder, dimenet=untrained_dimenet, oracle="none")


@pytest.fixture(scope="module")
def activity(tmp_path_factory, untrained_dimenet) -> dict[str, float]:
    """ΔG_H (eV) of the surfaces of ACTIVITY by the oracle, at one site."""
    folder = tmp_path_factory.mktemp("activity")
    structures = {name: surface(name) for name in ACTIVITY}
    found = evaluated(structures, folder, dimenet=untrained_dimenet, oracle_sites=1)
    return found["delta_g_h_oracle_eV"].to_dict()


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_material_is_a_known_layer_at_its_minimum(rows, name):
    row = rows.loc[f"a_{name}"]
    assert row["verdict"] == "2D" and row["two_d"] and row["valid"] and row["converged"]
    assert row["error"] == "" and not row["novel"] and row["known_as"]
    assert row["rmsd_relaxed_A"] < 0.15


# --- the oracle
# ------------------------------------------------------------------------------------------------------


def check_activity(delta_g: dict[str, float]) -> None:
    """What ΔG_H (eV) of known surfaces must satisfy, by a potential with an RMSE of 0.5 eV against DFT."""
    found = np.array([delta_g[name] for name in ACTIVITY])
    published = np.array(list(ACTIVITY.values()))
    assert spearmanr(found, published).statistic >= 0.6, "the order of the surfaces"
    assert delta_g["1H-MoS2"] - delta_g["Ti2CO2"] > 0.8, (
        "an inert basal plane, an active MXene: 1.6 eV by DFT"
    )
    assert 0.1 < delta_g["Au(111)"] - delta_g["Pt(111)"] < 0.9, "gold binds H 0.54 eV less than platinum"
    assert abs(delta_g["Pt(111)"] - ACTIVITY["Pt(111)"]) < 0.35, "platinum is nearly thermoneutral"
    assert abs(np.mean(found - published)) < 0.45, "bias"


def test_the_oracle_tells_active_from_inert_surfaces(activity):
    check_activity(activity)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda x: 1.0, id="always 1.0 eV"),
        pytest.param(lambda x: 0.0, id="always 0"),
        pytest.param(lambda x: x + 0.6, id="shifted up"),
        pytest.param(lambda x: x - 0.5, id="shifted down"),
        pytest.param(lambda x: -x, id="wrong sign"),
        pytest.param(lambda x: 0.3 * x, id="compressed"),
    ],
)
def test_a_wrong_oracle_fails_these_checks(activity, wrong: Callable[[float], float]):
    with pytest.raises(AssertionError):
        check_activity({name: wrong(value) for name, value in activity.items()})


# --- the hull
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATION)
def test_formation_energies_are_those_of_dft(rows, name):
    """Within twice the MAE against C2DB (0.07 eV/atom): a shifted reference or a wrong +U scale fails."""
    assert rows["e_form_eV_per_atom"][f"a_{name}"] == pytest.approx(FORMATION[name], abs=0.14)


def test_a_metastable_polymorph_lies_where_dft_puts_it(rows):
    """1T-MoS2: 0.277 eV/atom above the hull (C2DB), whose phase is the stable polymorph, not itself."""
    assert rows["e_hull_eV_per_atom"]["a_1T-MoS2"] == pytest.approx(0.277, abs=0.06)


@pytest.mark.parametrize("name", ["h-BN", "1H-MoS2", "1T-TiS2"])
def test_ground_states_lie_below_a_hull_that_does_not_hold_their_formula(rows, name):
    """Leave-one-out: all else that the hull knows of these elements is less stable than a real compound."""
    formula, e_form = rows["formula"][f"a_{name}"], rows["e_form_eV_per_atom"][f"a_{name}"]
    hull = Hull.read(ROOT / "data/reference_phases.db")
    for elements, entries in hull.systems.items():
        hull.systems[elements] = [e for e in entries if e.composition.reduced_formula != formula]
    composition = Composition(formula)
    diagram = hull.diagram(frozenset(composition.elements))
    elements = [
        diagram.el_refs[el].energy_per_atom * share
        for el, share in composition.fractional_composition.items()
    ]
    without = diagram.get_hull_energy_per_atom(composition) - sum(elements)
    assert e_form - without < -0.02, "more stable than every decomposition"
    assert rows["e_hull_eV_per_atom"][f"a_{name}"] < 0.05, "and on the hull that holds its bulk"


# --- gates
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_structure_gets_its_verdict(rows, name):
    row = rows.loc[f"c_{name}"]
    assert row["verdict"] == BROKEN[name]
    assert row["two_d"] == (name == "overlapping") and row["valid"] == (name != "overlapping")
    if name != "overlapping":
        assert row[["delta_g_h_oracle_eV", "p_active", "candidate_class"]].isna().all()
        assert "not 2D" in row["error"]


def test_a_duplicate_is_one_material_and_a_polymorph_another(rows):
    assert rows["unique"][["a_1H-MoS2", "b_twin"]].sum() == 1
    assert rows["known_as"]["b_twin"] == rows["known_as"]["a_1H-MoS2"] == "MoS2-2H:Mo-S (her2d)"
    assert rows["unique"]["a_1T-MoS2"] and rows["known_as"]["a_1T-MoS2"] == "CdI2-1T:Mo-S (her2d)"


# --- the confusion table of the 2D gate
# ------------------------------------------------------------------------------


def test_confusion_table_of_the_gate(tmp_path):
    """Nothing but a monolayer is called two-dimensional, however it is described; the count of every kind
    adds up.
    """
    with ase.db.connect(tmp_path / "layers.db") as db:
        for name in (*KNOWN, "FeSe", "CrI3", "PdSe2", "Janus-MoSSe", "1T-MoS2"):
            db.write(disguised(known(name), 5), uid=name)
    labelled = labelled_structures(tmp_path / "layers.db", 40, np.random.default_rng(0))
    found = confusion(labelled)
    assert {kind: counts.total() for kind, counts in found.items()} == {
        kind: len(some) for kind, some in labelled.items()
    }
    assert found["monolayer"]["2D"] == 11 and found["bilayer"]["several layers"] == 11
    assert found["thick slab"]["layer too thick"] == found["thick slab"].total() > 0
    for kind, right in (("molecule", "molecule"), ("chain", "chain")):
        assert found[kind][right] == found[kind].total() > 20
    assert found["bulk"]["2D"] == 0 and found["bulk"]["3D network"] > 25
    lines = confusion_table(found).splitlines()
    assert (
        len(lines) == 2 + len(found) and all(name in lines[0] for name in VERDICTS) and "| 11 |" in lines[2]
    )
