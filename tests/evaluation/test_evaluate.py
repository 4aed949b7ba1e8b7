"""The evaluator: verdicts on a set broken on purpose, rates and intervals, and one run through both of its
scripts.
"""

import json
import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import ase.db
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.geometry import find_mic
from ase.io import read, write
from layers import disguised, known

from data.build.pack import adsorption_records, evaluated_rows
from geo_utils import evaluate
from models.crystals.gates import gates
from models.crystals.layer import dimension, extract_layer
from models.crystals.matching import rmsd
from models.crystals.structure_files import read_structures
from models.evaluation import columns, tasks
from models.evaluation.known import write_known
from models.evaluation.metrics import aggregate
from models.evaluation.outputs import NULLS, headline
from models.evaluation.rows import join, read_table, table
from models.evaluation.schema import COLUMNS, SUMMARY
from models.evaluation.settings import Settings
from models.evaluation.tasks import computed, item_key
from models.evaluation.verdicts import GATES
from models.infra.files import ROOT
from models.infra.shards import Shard
from models.networks.synthesis import Forest, SynthesisModel, save_synthesis
from models.physics.hull import relax_phase
from models.physics.hydrogen import HydrogenOracle, hydrogen_energy
from models.physics.phonons import phonon_stability
from models.physics.potentials import relax_layer

BASELINE = Path(os.environ.get("HER2D_REFERENCE_DATA", ROOT / "../shared/data")) / "baseline_cifs"


# --- gates
# -----------------------------------------------------------------------------------------------------------


def periodic(atoms: Atoms, c: float | None = None) -> Atoms:
    atoms = atoms.copy()
    if c:
        atoms.cell[2] = (0, 0, c)
    atoms.pbc = True
    return atoms


def bilayer() -> Atoms:
    one, two = known("1H-MoS2"), known("1H-MoS2")
    two.positions[:, 2] += 6.2
    return periodic(one + two, 30)


def overlapping() -> Atoms:
    atoms = known("1H-MoS2").repeat((2, 2, 1))
    atoms.positions[1] += (atoms.positions[0] - atoms.positions[1]) * 0.5  # a S half way to its Mo
    return periodic(atoms)


def water() -> Atoms:
    return periodic(molecule("H2O", vacuum=8))


def thick() -> Atoms:
    return periodic(extract_layer(fcc111("Pt", (1, 1, 7), vacuum=10)).atoms)


# name: structure, (components, periodic directions), two_d, short distances allowed, what the reason says
BROKEN = {
    "monolayer": (periodic(known("1H-MoS2")), (1, 2), True, True, ""),
    "monolayer in disguise": (disguised(known("1H-MoS2"), 3), (1, 2), True, True, ""),
    "overlapping atoms": (overlapping(), (1, 2), True, False, "overlap as submitted"),
    "molecule": (water(), (1, 0), False, True, "molecule"),
    "3D crystal": (bulk("NaCl", "rocksalt", a=5.64), (1, 3), False, True, "3D network"),
    "bilayer": (bilayer(), (2, 2), False, True, "2 component"),
    "layered bulk": (
        periodic(known("1H-MoS2"), 3.12 + 3.5),
        (1, 2),
        False,
        True,
        "3.50 Å between the layers",
    ),
    "vacuum of 9.9": (periodic(known("graphene"), 9.9), (1, 2), False, True, "9.90 Å between the layers"),
    "vacuum of 10.1": (periodic(known("graphene"), 10.1), (1, 2), True, True, ""),
    "thick slab": (thick(), (1, 2), False, True, "thick"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_gates_on_a_broken_set(name):
    atoms, size, two_d, apart, reason = BROKEN[name]
    row, layer, why = gates(atoms)
    assert (row["components"], row["periodic_directions"]) == size
    assert row["two_d"] is two_d and (layer is not None) is two_d
    assert (row["min_dist_ratio"] >= 0.7) is apart
    assert not (row["valid"] and not apart)
    assert reason in why and bool(reason) == bool(why)
    assert row["n_atoms"] == len(atoms) and set(row) <= set(COLUMNS)


def test_valid_needs_sensible_composition_and_distances():
    assert gates(periodic(known("1H-MoS2")))[0]["valid"]
    odd = periodic(known("1H-MoS2"))
    odd.symbols = ["Na", "F", "F"]  # no oxidation states add up
    row = gates(odd)[0]
    assert row["smact_valid"] is False and row["valid"] is False


@pytest.mark.skipif(not BASELINE.is_dir(), reason=f"{BASELINE} is missing: set HER2D_REFERENCE_DATA")
def test_the_baseline_is_not_two_dimensional():
    """By the bond graph 3 of the 52 are one 2D component, and those are 1 to 3.6 Å from their next image."""
    structures = read_structures(BASELINE)
    assert len(structures) == 52 and not any(isinstance(atoms, str) for _, atoms in structures)
    assert sum(dimension(atoms) == (1, 2) for _, atoms in structures) == 3
    rows = [gates(atoms)[0] for _, atoms in structures]
    assert not any(row["two_d"] for row in rows)
    rates = aggregate(table(rows))
    assert rates["two_d_rate"]["value"] == 0
    assert rates["one_2d_component_rate"]["value"] == pytest.approx(3 / 52)


def test_unreadable_files_are_named_and_cost_one_row(tmp_path):
    (tmp_path / "b.cif").write_text("this is no CIF")
    (tmp_path / "c.cif").write_text("")
    write(tmp_path / "a.cif", bulk("Cu"))
    found = dict(read_structures(tmp_path))
    assert list(found) == ["a", "b", "c"]
    assert isinstance(found["a"], Atoms) and "unreadable" in found["b"] and "unreadable" in found["c"]
    with pytest.raises(FileNotFoundError, match="--cifs"):
        read_structures(tmp_path / "none")


def test_files_that_differ_in_their_ending_alone_are_two_structures(tmp_path):
    write(tmp_path / "a.cif", bulk("Cu"))
    (tmp_path / "a.cif").rename(tmp_path / "a.CIF")
    write(tmp_path / "a.cif", bulk("Al"))
    found = dict(read_structures(tmp_path))
    assert {name: str(atoms.symbols) for name, atoms in found.items()} == {"a.cif": "Al", "a.CIF": "Cu"}


# --- what a result depends on
# ------------------------------------------------------------------------------------------


def test_item_key_changes_with_all_that_a_row_depends_on():
    settings, layer = Settings(), known("h-BN")
    moved, strained = layer.copy(), layer.copy()
    moved.positions[0, 2] += 0.01
    strained.set_cell(layer.cell.array * 1.001, scale_atoms=True)
    keys = [
        item_key(("x", layer), settings, "a note"),
        item_key(("y", layer), settings, "a note"),
        item_key(("x", moved), settings, "a note"),
        item_key(("x", strained), settings, "a note"),
        item_key(("x", "unreadable"), settings, "a note"),
        item_key(("x", layer), settings, "another checkpoint"),
        *(
            item_key(("x", layer), replace(settings, **change), "a note")
            for change in (
                {"correction": 0.24},
                {"oracle": "rigid"},
                {"oracle_sites": 1},
                {"fmax": 0.01},
                {"relax_steps": 7},
            )
        ),
    ]
    assert len(set(keys)) == len(keys)
    assert (
        item_key(("x", layer.copy()), replace(settings, jobs=7, seed=5, dimenet=Path("other.pt")), "a note")
        == keys[0]
    )


# --- one run through both scripts
# ------------------------------------------------------------------------------------


def sheet(a: float = 2.6, metal: str = "Al") -> Atoms:
    """Buckled, strained Cu3M sheet with c of 18 Å: all that EMT can relax."""
    cell = [[2 * a, 0, 0], [-a, a * np.sqrt(3), 0], [0, 0, 18]]
    atoms = Atoms(
        "Cu3" + metal,
        scaled_positions=[[0, 0, 0.5], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]],
        cell=cell,
        pbc=True,
    )
    atoms.rattle(0.03, seed=3)
    return atoms


@pytest.fixture(scope="module")
def run(tmp_path_factory, untrained_dimenet):
    """The same CIFs through test.py and evaluate_external.py, on EMT, with a DimeNet++ and a classifier of no
    training.
    """
    folder = tmp_path_factory.mktemp("evaluate")
    cifs = folder / "cifs"
    cifs.mkdir()
    structures = {
        "a_sheet": sheet(),
        "b_twin": disguised(sheet(), 1),
        "c_platinum": sheet(metal="Pt"),
        "d_bulk": bulk("Cu", cubic=True),
        "f_no_reference": sheet(metal="Au"),
    }
    for name, atoms in structures.items():
        write(cifs / f"{name}.cif", atoms)
    (cifs / "e_broken.cif").write_text("data_nothing\n_cell_length_a what\n")

    references = ase.db.connect(folder / "references.db")
    for atoms in (bulk("Cu"), bulk("Al"), bulk("Pt"), bulk("Cu", "sc", a=2.4)):
        atoms, energy, _ = relax_phase(atoms, EMT())
        references.write(atoms, energy_eV=energy)
    references.metadata = {"potential": "ase.calculators.emt:EMT"}
    layer = relax_layer(
        extract_layer(sheet(2.57)).atoms, EMT()
    )  # from another start; below fmax 0.03 it would buckle
    ase.db.connect(folder / "known.db").write(layer.atoms, uid="known")
    copper = sheet(metal="Cu")  # of a formula that no structure of the set has
    ase.db.connect(folder / "templates.db").write(copper, uid="template")
    write_known(folder / "learned.json.gz", [folder / "templates.db"])

    forests = [Forest(1, 1, 1), Forest(1, 1, 1)]
    for forest in forests:
        forest.share += 0.7
    save_synthesis(folder / "synthesis.pt", SynthesisModel(*forests))

    flags = [
        "--cifs",
        cifs,
        "--potential",
        "ase.calculators.emt:EMT",
        "--dimenet",
        untrained_dimenet,
        "--jobs",
        1,
        "--synthesis",
        folder / "synthesis.pt",
        "--references",
        folder / "references.db",
        "--novelty-db",
        folder / "known.db",
        "--template-db",
        folder / "templates.db",
        "--learned",
        folder / "learned.json.gz",
        "--second-potential",
        "layers:scaled_emt",
        "--hull-phases",
        0,
        "--shortlist",
        2,
        "--phonons",
        0,
        "--device",
        "cpu",
    ]
    patch = pytest.MonkeyPatch()
    patch.chdir(ROOT)
    for script, other in (("test.py", []), ("evaluate_external.py", [folder / "test.py" / "metrics.csv"])):
        patch.setattr(
            sys, "argv", [script, *map(str, [*flags, "--out", folder / script, "--compare", *other])]
        )
        runpy.run_path(str(ROOT / script))["main"]()
    patch.undo()
    return folder


def rows_of(folder: Path, script: str = "test.py") -> pd.DataFrame:
    """metrics.csv by material_id."""
    return read_table(folder / script / "metrics.csv").set_index("material_id")


def test_the_oracle_may_be_kept_for_stable_layers(run, monkeypatch):
    """--oracle-for stable: the same numbers for those (here the two sheets of one formula), and no hydrogen
    on the others.
    """
    seen = []

    def noted(task, items, *rest):
        seen.append((task.__name__, len(items)))
        return computed(task, items, *rest)

    monkeypatch.setattr(columns, "computed", noted)
    monkeypatch.setattr(columns, "is_stable", lambda rows: (rows["formula"] == "AlCu3").to_numpy())
    monkeypatch.chdir(ROOT)
    flags = json.loads((run / "test.py" / "config.json").read_text())
    settings = {name: flags[name] for name in Settings.__dataclass_fields__}
    settings |= {"oracle_for": "stable", "second_potential": "none"}
    files = "dimenet synthesis references novelty_db template_db learned validation gap dft_correction"
    for name in files.split():
        settings[name] = Path(settings[name])
    found = evaluate(read_structures(run / "cifs"), Settings(**settings), run / "test.py", resume=True)
    before, after = rows_of(run)["delta_g_h_oracle_eV"], found.rows.set_index("material_id")
    assert seen == [("relax_one", 6), ("adsorb_one", 2)]
    twins = ["a_sheet", "b_twin"]
    assert after["delta_g_h_oracle_eV"][twins].equals(before[twins])
    assert after["delta_g_h_oracle_eV"].drop(twins).isna().all() and before["c_platinum"] < 9
    assert "stable layers only" in found.provenance["oracle"]


def test_both_scripts_give_identical_rows(run):
    one, other = (
        (run / script / "metrics.csv").read_bytes() for script in ("test.py", "evaluate_external.py")
    )
    assert one == other
    assert list(rows_of(run).index) == [
        "a_sheet",
        "b_twin",
        "c_platinum",
        "d_bulk",
        "e_broken",
        "f_no_reference",
    ]
    metrics = [
        json.loads((run / script / "metrics.json").read_text())
        for script in ("test.py", "evaluate_external.py")
    ]
    assert metrics[0]["metrics"] == metrics[1]["metrics"] and metrics[0]["n"] == 6


def test_a_bad_cif_costs_one_row(run):
    rows = rows_of(run)
    assert "unreadable" in rows["error"]["e_broken"]
    assert "3D network" in rows["error"]["d_bulk"] and not rows["two_d"]["d_bulk"]
    energies = [name for name in COLUMNS if name.endswith(("eV", "per_atom"))]
    refused = rows.loc[["d_bulk", "e_broken"], [*energies, "p_synth", "novel", "rank"]]
    assert len(energies) > 6 and refused.isna().all(axis=None)
    lonely = rows.loc["f_no_reference"]
    assert "Au" in lonely["error"] and np.isnan(lonely["e_hull_eV_per_atom"])
    assert np.isfinite(lonely["delta_g_h_oracle_eV"])
    assert rows["two_d"][["a_sheet", "c_platinum"]].all() and rows["error"]["a_sheet"] == ""


def test_the_numbers_of_a_row_by_hand(run):
    """Relaxed and weighed again with ASE and the formulas."""
    found = rows_of(run).loc["a_sheet"]
    start = extract_layer(read(run / "cifs" / "a_sheet.cif")).atoms
    relaxed = relax_layer(start, EMT(), fmax=0.05)
    atoms = relaxed.atoms.copy()
    atoms.calc = EMT()
    energy = atoms.get_potential_energy()
    mu = {"Cu": relax_phase(bulk("Cu"), EMT())[1], "Al": relax_phase(bulk("Al"), EMT())[1]}
    e_form = (energy - 3 * mu["Cu"] - mu["Al"]) / 4
    assert found["converged"]
    assert found["e_form_eV_per_atom"] == pytest.approx(e_form, abs=1e-3)
    assert found["e_hull_eV_per_atom"] == pytest.approx(e_form, abs=1e-3)  # no compound in the references
    assert found["hull_compounds"] == 0
    assert found["stability_score"] == pytest.approx(np.exp(-max(0, e_form)), abs=1e-3)
    assert found["rmsd_relaxed_A"] == pytest.approx(rmsd(start, relaxed.atoms), abs=1e-3)
    assert "Al" in found["aqueous_products"] and found["e_pourbaix_eV_per_atom"] > 0.3  # Al dissolves in acid
    assert not found["aqueous"] and found["stopped_by"] == "stable"
    assert found["p_synth"] == pytest.approx(0.7)


def test_delta_g_of_a_row_is_that_of_its_pose(run):
    """The stored pose of H, weighed with EMT alone, gives the oracle's column."""
    lines = lambda name: [json.loads(line) for line in (run / "test.py" / name).read_text().splitlines()]
    layers = {row["key"].split(":")[0]: row["relaxed"] for row in lines("relaxed.jsonl")}
    shard = lines("adsorbed.jsonl")
    for row in shard:
        layer, pose = Atoms(**layers[row["key"].split(":")[0]]), Atoms(**row["pose"])
        energies = []
        for atoms in (pose, layer):
            atoms.calc = EMT()
            energies.append(atoms.get_potential_energy())
        assert pose.symbols[-1] == "H" and (len(pose) - 1) % len(layer) == 0
        delta_e = energies[0] - (len(pose) - 1) // len(layer) * energies[1] - hydrogen_energy(EMT())
        assert row["row"]["delta_g_h_oracle_eV"] == pytest.approx(delta_e + 0.27, abs=5e-3)
        assert row["row"]["delta_g_h_oracle_eV"] <= row["row"]["delta_g_h_rigid_eV"] + 0.01
        assert row["row"]["slab_change_eV"] > -0.1 and "then adsorbed:1" in row["row"]["h_flags"]
    assert len(shard) == 4


def test_what_the_oracle_says_becomes_training_data(run):
    """ΔE_H of the row, H beginning on the site that it ended at, everything free to move."""
    energies = rows_of(run)["delta_g_h_oracle_eV"].dropna()
    rows = evaluated_rows(run / "test.py" / "adsorbed.jsonl")
    assert len(rows) == 4 and len({row["key"] for row in rows}) < 4  # twins are one host
    for row, energy in zip(rows, energies):
        (record,), dropped = adsorption_records(row, 0)
        assert not dropped and record.y_relaxed + 0.27 == pytest.approx(energy, abs=1e-4)
        start, end = (
            Atoms(record.atomic_numbers, pos, cell=record.cell[0], pbc=(1, 1, 0))
            for pos in (record.pos, record.pos_relaxed)
        )
        assert record.tags.tolist() == [1] * (len(start) - 1) + [2] and not record.fixed.any()
        moved = find_mic(end.positions[-1] - start.positions[-1], start.cell, start.pbc)[1]
        assert moved < 1.5 and start.get_distances(-1, range(len(start) - 1), mic=True).min() > 1.2


def test_twins_and_known_layers_are_found(run):
    rows = rows_of(run).loc[["a_sheet", "b_twin", "c_platinum"]]
    assert rows["unique"][:2].sum() == 1 and rows["unique"]["c_platinum"], "one of the twins, the stabler"
    assert list(rows["novel"]) == [False, False, True]
    assert list(rows["known_as"]) == ["known (known)", "known (known)", ""]
    energies = rows[["e_form_eV_per_atom", "delta_g_h_oracle_eV", "delta_g_h_dimenet_eV"]].to_numpy()
    np.testing.assert_allclose(energies[0], energies[1], atol=0.02)
    assert (abs(energies[0] - energies[2]) > 0.03).any(), "another sheet has other energies"


def test_the_files_are_there_and_say_where_they_come_from(run):
    out = run / "evaluate_external.py"
    for name in (
        "her_performance",
        "stability_curve",
        "baseline_comparison",
        "generated_structures",
        "funnel",
    ):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads((out / "metrics.json").read_text())
    assert "EMT" in content["provenance"]["potential"] and content["provenance"]["seed"] == 0
    assert content["metrics"]["two_d_rate"]["value"] == pytest.approx(4 / 6)
    assert content["metrics"]["synthesis_rate"]["value"] == pytest.approx(4 / 6)
    promised = "two_d_rate valid_rate mae_delta_g_h_dimenet_eV mae_delta_g_h_oracle_eV stability_score "
    promised += "synthesis_rate stable_rate"
    assert set(f"{promised} unique_rate novel_rate sun_rate".split()) <= set(content["metrics"])
    assert set(content) == set(SUMMARY), "docs/outputs.md names every key"
    assert content["hit_gates"][:5] == list(GATES)[:5] and "aqueous" in content["hit_gates"]
    assert [gate["proven"] for gate in content["funnels"]["cifs"]][:3] == [4, 4, 0]
    assert "| stable | 0 |" in (out / "comparison.md").read_text()
    assert {"shortlist.csv", "comparison.md", "comparison.csv", "report.html"} <= {
        path.name for path in out.iterdir()
    }
    for word in ("RMSE against DFT", "single-atom catalysts"):
        assert word in content["provenance"]["oracle_error_from"]


def test_the_shortlist_has_a_second_opinion_and_inputs_for_dft(run):
    """The second potential is EMT with every energy 1.25 times as large: so is ΔE_H."""
    rows, out = rows_of(run), run / "test.py"
    shortlist, best = read_table(out / "shortlist.csv"), rows[rows["rank"].notna()].sort_values("rank")
    assert list(shortlist["material_id"]) == list(best.index[:2]) and len(best) == 4
    chosen = best[:2]
    np.testing.assert_allclose(
        chosen["delta_g_h_second_eV"] - 0.27, 1.25 * (chosen["delta_g_h_oracle_eV"] - 0.27), atol=0.05
    )
    for name in shortlist["material_id"]:
        pose = read(out / "dft" / name / "slab_H" / "POSCAR")
        assert (pose.numbers == 1).sum() == 1
    assert best["delta_g_h_second_eV"][2:].isna().all()
    opinion = json.loads((out / "metrics.json").read_text())["second_opinion"]["both_within_0.2eV"]
    apart = abs(chosen["delta_g_h_second_eV"] - chosen["delta_g_h_oracle_eV"])
    assert opinion["n"] == 2 and opinion["value"] == (apart <= 0.2).mean()


def test_a_set_compared_with_itself_does_not_differ(run):
    out = run / "evaluate_external.py"
    other = json.loads((out / "metrics.json").read_text())["compared"]["generated"]
    tested = {name: metric for name, metric in other.items() if "difference" in metric}
    assert {"two_d_rate", "hit_rate_0.2eV", "mae_delta_g_h_oracle_eV", "sun_rate"} <= set(tested)
    for metric in tested.values():
        low, high = metric["difference_ci95"]
        assert metric["difference"] == 0 and metric["p_value"] == 1 and low <= 0 <= high
    long = pd.read_csv(out / "comparison.csv")
    assert set(long["set"]) == {"cifs", "generated"}
    found = long[long["set"] == "generated"].set_index("metric").loc["two_d_rate"]
    assert found["value"] == pytest.approx(4 / 6) and found["p_value"] == 1
    assert "cifs minus another set" in (out / "comparison.md").read_text()


def test_the_best_get_phonons_and_a_lost_worker_costs_a_verdict(monkeypatch, tmp_path):
    """A square sheet of copper falls into a close-packed one; the second candidate's worker dies."""
    square = Atoms("Cu", [(0, 0, 7.5)], cell=[2.4, 2.4, 15], pbc=(1, 1, 0))
    layers = dict.fromkeys(("square", "lost"), relax_layer(square, EMT(), 0.005).atoms)
    oracle = HydrogenOracle(EMT())
    monkeypatch.setattr(
        columns,
        "computed",
        lambda task, items, settings, *_: [task(items[0], oracle, settings), {"lost": "killed"}],
    )
    found = columns.phonons(layers, None, Settings(), Shard(tmp_path / "x.jsonl"))
    rows = join(table([{"material_id": name} for name in ("square", "lost", "last")]), found)
    assert list(rows["phonons"]) == ["unstable", "failed", ""] and rows["elastic"][0] == "unstable"
    lowest = phonon_stability(layers["square"], EMT())["lowest_frequency_THz"]
    assert rows["lowest_frequency_THz"][0] == lowest < -0.5 and rows["lowest_frequency_THz"][1:].isna().all()


# --- the headline
# ----------------------------------------------------------------------------------------------------


def test_headline_counts_and_refuses():
    kinds = ["3D network"] * 3 + ["layers too close", "", "2D"]
    rows = [{"material_id": str(k), "verdict": kind, "two_d": False} for k, kind in enumerate(kinds)]
    rows[3] |= {"components": 1, "periodic_directions": 2}
    rows[5] |= {"components": 1, "periodic_directions": 2, "two_d": True}
    rows = table(rows)
    nothing = {"value": None, "ci95": [None, None], "n": 0}
    content = {
        "n": 6,
        "metrics": aggregate(rows),
        "hit_gates": ["2D", "stable"],
        "shortlist": [],
        "sensitivity_to_correction": {},
        "second_opinion": {"both_within_0.2eV": nothing},
        "provenance": {
            "potential": "P",
            "second_potential": "none",
            "synthesizability": "S",
            "dft_correction": "none",
        },
    }
    lines = headline(content, rows)
    assert lines[0].startswith("2D: 2/6 ") and "1/6" in lines[0]
    assert lines[1] == "refused as 2D catalysts: 5 (3 3D network, 1 layers too close, 1 unreadable)"


def test_shipped_baselines_are_called_so():
    assert all((ROOT / "results_external" / name).is_dir() for name in NULLS)


def test_kept_results_are_those_of_the_present_code(monkeypatch, tmp_path):
    """A key changes when a statement of the code does, and not when its docstrings and comments do."""
    (tmp_path / "models/crystals").mkdir(parents=True)
    code = tmp_path / "models/crystals/layer.py"
    monkeypatch.setattr(tasks, "ROOT", tmp_path)
    keys = []
    for text in ('"""Doc."""\nX = 1.3\n', '"""Other doc."""\nX = 1.3  # Å\n', "X = 1.4\n"):
        code.write_text(text)
        tasks.code_version.cache_clear()
        keys.append(item_key(("x", known("h-BN")), Settings(), "a note"))
    tasks.code_version.cache_clear()
    assert keys[0] == keys[1] != keys[2]
