"""The five scripts in order, as a user runs them, each on the output of the one before, on a little of the
embedded data.
"""

import json
import os
import subprocess
import sys

import pytest
from ase.io import read
from PIL import Image
from pymatgen.core import Structure

from models.evaluation.rows import is_true, read_table
from models.evaluation.schema import COLUMNS, GENERATED
from models.infra.files import ROOT

FIGURES = ("her_performance", "stability_curve", "generated_structures", "baseline_comparison", "funnel")
METRICS = (
    "two_d_rate valid_rate mae_delta_g_h_dimenet_eV mae_delta_g_h_oracle_eV stability_score synthesis_rate "
    "stable_rate unique_rate novel_rate sun_rate"
).split()


def run(script, *arguments):
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, f"{script}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which the five scripts have run."""
    out = tmp_path_factory.mktemp("pipeline")
    run(
        "pretrain_dimenet.py",
        "--lmdb",
        ROOT / "data/her2d_h_val.lmdb",
        ROOT / "data/her2d_h_test.lmdb",
        "--epochs",
        1,
        "--hidden-channels",
        16,
        "--blocks",
        1,
        "--out",
        out / "dimenet.pt",
    )
    run(
        "material_dataset.py",
        "--db",
        ROOT / "data/her2d.db",
        "--dimenet",
        out / "dimenet.pt",
        "--limit",
        60,
        "--out",
        out / "layers",
    )
    run(
        "optimization.py",
        "--data",
        out / "layers",
        "--epochs",
        1,
        "--channels",
        16,
        "--vectors",
        4,
        "--neighbours",
        8,
        "--out",
        out / "egnn.pth",
        "--figure",
        out / "loss_curve.png",
    )
    run(
        "structure_generator.py",
        "--checkpoint",
        out / "egnn.pth",
        "--num",
        2,
        "--num-atoms",
        3,
        "--noise-level",
        0.2,
        "--steps",
        5,
        "--out",
        out / "cifs",
    )
    quick = [
        "--dimenet",
        out / "dimenet.pt",
        "--potential",
        "sevennet",
        "--oracle-sites",
        1,
        "--oracle",
        "rigid",
        "--relax-steps",
        4,
        "--jobs",
        1,
        "--hull-phases",
        0,
        "--shortlist",
        1,
        "--phonons",
        0,
    ]
    run("evaluate_external.py", "--cifs", out / "cifs", *quick, "--out", out / "external", "--compare")
    run(
        "test.py",
        "--cifs",
        out / "cifs",
        *quick,
        "--out",
        out / "results",
        "--compare",
        out / "external/metrics.csv",
    )
    return out


def test_every_stage_left_what_it_promises(made):
    assert (made / "dimenet.pt").exists() and (made / "egnn.pth").exists()
    assert {"train.pt", "val.pt"} <= {path.name for path in (made / "layers/processed").iterdir()}
    for path in [made / "loss_curve.png", *(made / f"results/{name}.png" for name in FIGURES)]:
        assert Image.open(path).size[0] > 500, path.name


def test_every_cif_reads_back_with_ase_and_pymatgen(made):
    paths = sorted((made / "cifs").glob("*.cif"))
    assert len(paths) == 2
    for path in paths:
        atoms, structure = read(path), Structure.from_file(path)
        assert len(atoms) == len(structure) == 3
        assert atoms.cell.cellpar() == pytest.approx(structure.lattice.parameters, abs=1e-3)


def test_metrics_keep_the_output_contract(made):
    rows = read_table(made / "results/metrics.csv")
    drawn = read_table(made / "cifs/generated.csv", GENERATED)
    assert list(rows.columns) == list(COLUMNS) and len(rows) == 2
    assert set(rows["material_id"]) == set(drawn["material_id"][is_true(drawn["kept"])])
    metrics = json.loads((made / "results/metrics.json").read_text())
    assert metrics["n"] == 2 and set(METRICS) <= set(metrics["metrics"])
    for name in METRICS:
        value, (low, high) = metrics["metrics"][name]["value"], metrics["metrics"][name]["ci95"]
        assert low is None or low <= value <= high, name
    assert set(metrics["compared"]) == {"cifs"} and metrics["nulls"] == {}  # no model-free baseline
    assert metrics["provenance"]["potential"] == "SevenNet 7net-l3i5"
    assert "classifier" in metrics["provenance"]["synthesizability"]


def test_both_evaluation_scripts_give_the_same_rows(made):
    assert (made / "results/metrics.csv").read_text() == (made / "external/metrics.csv").read_text()
