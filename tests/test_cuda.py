"""Both trainings and the sampler on a GPU; skipped where there is none."""

import csv
import math
import sys

import ase.db
import pytest
import torch
from layers import h_on_metal
from torch_geometric.data import InMemoryDataset

import optimization
import pretrain_dimenet
import structure_generator
from data.build.prototypes import PROTOTYPES
from models.datasets.graphs import layer_graph
from models.datasets.lmdb_data import write_lmdb
from models.infra.files import read_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
NAMES = ("graphene", "MoS2-2H", "CdI2-1T", "GaSe", "SnS", "FeOCl", "MXene-M2X", "silicene")


def finite(rows: list[dict], names: tuple[str, ...]) -> bool:
    return all(math.isfinite(float(row[name])) for row in rows for name in names)


def test_dimenet_trains_and_resumes_on_the_gpu(tmp_path):
    metals = ("Pt", "Cu", "Ag", "Au", "Ni", "Pd", "Rh", "Ir", "Al", "Pb")
    write_lmdb(tmp_path / "h.lmdb", [h_on_metal(m, h, f"{m}{h}") for m in metals for h in (1.2, 1.5)])
    command = (
        f"--lmdb {tmp_path}/h.lmdb --out {tmp_path}/m.pt --device cuda --hidden-channels 8 --batch-size 8"
    )
    command = [*command.split(), *"--int-emb-size 8 --out-emb-channels 8 --cutoff 3.5 --epochs 2".split()]
    pretrain_dimenet.main(command)
    rows = read_rows(tmp_path / "m.log.csv")
    assert len(rows) == 2 and finite(rows, ("train_mae_eV", "val_mae_eV"))
    pretrain_dimenet.main([*command, "--resume"])
    assert read_rows(tmp_path / "m.log.csv") == rows


def test_the_generator_trains_and_samples_on_the_gpu(tmp_path, monkeypatch):
    (tmp_path / "processed").mkdir()
    atoms = {p.name: p.atoms() for p in PROTOTYPES}
    layers = [atoms[name] for name in NAMES]
    graphs = [layer_graph(x, f"{k}", e_hull=0.02 * k, delta_g_h=0.1 * k) for k, x in enumerate(layers)]
    InMemoryDataset.save(graphs[:6], tmp_path / "processed" / "train.pt")
    InMemoryDataset.save(graphs[6:], tmp_path / "processed" / "val.pt")
    with ase.db.connect(tmp_path / "templates.db") as db:
        for k, x in enumerate(layers):
            db.write(x, uid=f"layer-{k}", prototype=f"prototype-{k}", ehull=0.02 * k, hform=-0.5)
    small = "--channels 16 --vectors 4 --trunk 1 --conditional 1 --neighbours 8 --epochs 2 --batch-atoms 24"
    files = f"--data {tmp_path} --out {tmp_path}/m.pth --figure {tmp_path}/loss.png --device cuda"
    optimization.main([*small.split(), *files.split(), "--off-equilibrium", ""])
    assert finite(read_rows(tmp_path / "m.log.csv"), ("train_total", "val_total"))

    command = (
        f"--db {tmp_path}/templates.db --checkpoint {tmp_path}/m.pth --out {tmp_path}/cifs --device cuda"
    )
    monkeypatch.setattr(
        sys, "argv", ["structure_generator.py", *command.split(), *"--num 2 --best-of 1 --steps 5".split()]
    )
    structure_generator.main()
    assert len(list((tmp_path / "cifs").glob("*.cif"))) == 2
    with (tmp_path / "cifs" / "generated.csv").open() as file:
        assert finite(list(csv.DictReader(file)), ("head_e_hull_eV_per_atom",))
