"""Known materials and a set broken on purpose, through the evaluator with the real potential, hull and
novelty database.
"""

import json

import ase.db
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import write
from layers import disguised, known
from test_evaluate import bilayer, overlapping, periodic, water

from benchmarks.gates import confusion, confusion_table, labelled_structures
from geo_utils import evaluate, read_cifs
from models.crystals.gates import VERDICTS
from models.evaluation.settings import Settings
from models.evaluation.shortlist import oracle_error
from models.infra.files import ROOT
from models.networks.dimenet import PeriodicDimeNetPlusPlus, save_dimenet

KNOWN = ("graphene", "h-BN", "1H-MoS2", "1T-TiS2", "Ti2CO2", "phosphorene")
LITERATURE = {"graphene": 1.67, "1H-MoS2": 2.0, "Ti2CO2": 0.358}  # eV, ΔG_H, data/literature_delta_g_h.csv
BROKEN = {"overlapping": "2D", "molecule": "molecule", "crystal": "3D network", "bilayer": "several layers"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows by id; H on the rigid layer at one site, which is enough for verdicts and the size of ΔG_H."""
    folder = tmp_path_factory.mktemp("known")
    structures = {f"a_{name}": periodic(known(name)) for name in KNOWN}
    structures |= {"b_twin": disguised(known("1H-MoS2"), 4), "b_1T-MoS2": periodic(known("1T-MoS2"))}
    broken = {
        "overlapping": overlapping(),
        "molecule": water(),
        "crystal": bulk("NaCl", "rocksalt", a=5.64),
        "bilayer": bilayer(),
    }
    structures |= {f"c_{name}": atoms for name, atoms in broken.items()}
    for name, atoms in structures.items():
        write(folder / f"{name}.cif", atoms)
    torch.manual_seed(0)
    save_dimenet(
        folder / "dimenet.pt", PeriodicDimeNetPlusPlus(hidden_channels=8, out_emb_channels=8, int_emb_size=4)
    )
    settings = Settings(
        potential="sevennet",
        second_potential="none",
        dimenet=folder / "dimenet.pt",
        oracle="rigid",
        oracle_sites=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {row["material_id"]: row for row in evaluate(read_cifs(folder), settings, folder / "out").rows}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_material_is_a_stable_known_layer(rows, name):
    row = rows[f"a_{name}"]
    error = json.loads((ROOT / "data/validation.json").read_text())["c2db"]["ehull"]["mae"]
    assert (
        row["verdict"] == "2D" and row["two_d"] and row["valid"] and row["converged"] and row["error"] == ""
    )
    assert abs(row["e_hull_eV_per_atom"]) < error
    assert row["novel"] is False and row["known_as"] and row["unique"]
    assert row["rmsd_relaxed_A"] < 0.15


@pytest.mark.parametrize("name", LITERATURE)
def test_hydrogen_on_a_known_material_is_within_the_oracles_error(rows, name):
    sigma, _ = oracle_error(ROOT / "data/validation.json")
    assert abs(rows[f"a_{name}"]["delta_g_h_oracle_eV"] - LITERATURE[name]) < 2 * sigma


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_structure_gets_its_verdict(rows, name):
    row = rows[f"c_{name}"]
    assert row["verdict"] == BROKEN[name]
    assert row["two_d"] is (name == "overlapping") and row["valid"] is (name != "overlapping")
    if name != "overlapping":
        assert (
            row["delta_g_h_oracle_eV"] == row["p_active"] == row["candidate_class"] == ""
            and "not 2D" in row["error"]
        )


def test_a_duplicate_is_one_material_and_a_polymorph_another(rows):
    assert rows["a_1H-MoS2"]["unique"] and not rows["b_twin"]["unique"]
    assert rows["b_twin"]["known_as"] == rows["a_1H-MoS2"]["known_as"] == "MoS2-2H:Mo-S"
    assert rows["b_1T-MoS2"]["unique"] and rows["b_1T-MoS2"]["known_as"] == "CdI2-1T:Mo-S"
    assert rows["b_1T-MoS2"]["e_hull_eV_per_atom"] > rows["a_1H-MoS2"]["e_hull_eV_per_atom"] + 0.1


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
