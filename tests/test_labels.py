"""Stage 2 with labels by a potential, and DimeNet++'s labels checked against it: EMT on alloy films."""

import json
import sys

import ase.db
import numpy as np
import pytest
import torch
from ase.build import fcc111
from ase.calculators.emt import EMT
from layers import energy_by

import material_dataset
from models.crystals.layer import extract_layer
from models.crystals.split import split_of
from models.datasets.graphs import LayerGraphs
from models.infra.shards import Shard
from models.networks.dimenet import PeriodicDimeNetPlusPlus, save_dimenet
from models.physics.hydrogen import HydrogenOracle
from models.physics.parallel import LABEL_SITES

FILMS = {"Cu-Pt": ("Cu", "Pt"), "Al-Pd": ("Al", "Pd"), "Au-Cu": ("Au", "Cu")}


def film(skin: str, core: str):
    """Two layers of one metal about a layer of another."""
    slab = fcc111(core, (1, 1, 3), a=3.9, vacuum=7.5)
    slab.symbols = [skin, core, skin]
    return extract_layer(slab).atoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    with ase.db.connect(folder / "films.db") as database:
        for uid, metals in FILMS.items():
            database.write(film(*metals), uid=uid, hform=-0.1, ehull=0.0)
    torch.manual_seed(0)
    tiny = dict(hidden_channels=8, out_emb_channels=8, int_emb_size=4)
    save_dimenet(folder / "dimenet.pt", PeriodicDimeNetPlusPlus(**tiny, target_mean=-0.4))
    return folder


def run(folder, out: str, *more):
    """material_dataset.py into a folder of its own; its report."""
    flags = ["--db", folder / "films.db", "--dimenet", folder / "dimenet.pt", "--out", folder / out]
    emt = ["--potential", "ase.calculators.emt:EMT", "--jobs", 1, "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["material_dataset.py", *map(str, [*flags, *emt, *more])])
        material_dataset.main()
    return json.loads((folder / out / "report.json").read_text())


def test_labels_by_a_potential_are_those_of_its_relaxed_layers(folder):
    report = run(folder, "potential", "--labeller", "potential")
    rows = Shard(folder / "potential" / "delta_g_potential.jsonl").rows
    assert len(rows) == len(FILMS) and report["labelled"] > 0
    oracle = HydrogenOracle(EMT(), sites=LABEL_SITES)
    labels = {}
    for split in (path.stem for path in (folder / "potential" / "processed").glob("*.pt")):
        labels |= {graph.uid: graph.delta_g_h.item() for graph in LayerGraphs(folder / "potential", split)}
    for uid, metals in FILMS.items():
        layer, energy = oracle.own_layer(film(*metals))
        assert energy < energy_by(EMT(), film(*metals)) - 0.01  # relaxing it first matters
        wanted = oracle.delta_g(layer).delta_g_h
        assert labels[uid] == pytest.approx(np.nan if wanted is None else wanted, abs=1e-4, nan_ok=True), uid


def test_the_check_is_the_error_on_held_out_layers(folder):
    report = run(folder, "dimenet", "--check", 2)
    held_out = [
        uid for uid, metals in FILMS.items() if split_of(film(*metals).get_chemical_formula()) == "test"
    ]
    assert held_out, "choose films of which one falls into the test split"
    found = {}
    for labeller in ("dimenet", "potential"):
        rows = Shard(folder / "dimenet" / f"delta_g_{labeller}.jsonl").rows
        found[labeller] = {key.split(":")[0]: row["delta_g_h"] for key, row in rows.items()}
    assert set(found["potential"]) == set(held_out) and set(found["dimenet"]) == set(FILMS)
    errors = [found["dimenet"][uid] - found["potential"][uid] for uid in held_out]
    assert report["check"]["layers"] == report["check"]["H adsorbs"] == len(held_out)
    assert report["check"]["mae_eV"] == pytest.approx(np.abs(errors).mean())
    assert report["check"]["bias_eV"] == pytest.approx(np.mean(errors))
    assert (folder / "dimenet" / "label_check.png").read_bytes()[:4] == b"\x89PNG"
