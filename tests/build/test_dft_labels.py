"""Labels at the level of DFT, held against EMT's energies by hand and against the shipped correction."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111, molecule
from ase.calculators.emt import EMT
from torch_geometric.data import Data

from data.build.dft_labels import key_of, label, slab_of, weigh
from models.infra.files import ROOT
from models.infra.shards import Shard
from models.physics.dft_correction import DftCorrection

EMT_NAME = "ase.calculators.emt:EMT"


def hydrogen_on_metal(metal: str, height: float, host: str) -> tuple[Data, Atoms, Atoms]:
    """A record whose slab moved when H came, its slab and its pose."""
    slab = fcc111(metal, (2, 2, 1), vacuum=8.0, periodic=True)
    start = slab + Atoms("H", [slab.positions[0] + [0, 0, 1.5]])
    pose = slab + Atoms("H", [slab.positions[0] + [0, 0, height]])
    pose.positions[0, 2] += 0.1
    record = Data(
        pos=torch.tensor(start.positions, dtype=torch.float32),
        pos_relaxed=torch.tensor(pose.positions, dtype=torch.float32),
        cell=torch.tensor(slab.cell.array, dtype=torch.float32)[None],
        atomic_numbers=torch.tensor(pose.numbers),
        natoms=len(pose),
        y_relaxed=-0.3,
        host_uid=host,
        sid=1,
    )
    return record, slab, pose


def energy(atoms: Atoms) -> float:
    atoms = atoms.copy()
    atoms.calc = EMT()
    return atoms.get_potential_energy()


def relaxed_molecule() -> Atoms:
    from ase.optimize import BFGS

    atoms = molecule("H2")
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=0.01)
    return atoms


def test_the_second_potential_weighs_pose_and_bare_slab(tmp_path):
    record, slab, pose = hydrogen_on_metal("Pt", 1.7, "fcc111:Pt")
    shard = Shard(tmp_path / "second.jsonl")
    weigh([record], shard, EMT_NAME, 1.0)
    expected = energy(pose) - energy(slab) - energy(relaxed_molecule()) / 2
    assert shard.rows[key_of(record)]["delta_e"] == pytest.approx(expected, abs=2e-3)
    weigh([record], shard, "no potential of this name", 1.0)  # nothing is missing: nothing is asked


def test_labels_are_the_corrections_and_metals_have_no_gap(tmp_path):
    record, slab, _ = hydrogen_on_metal("Pt", 1.7, "fcc111:Pt")
    other = hydrogen_on_metal("Au", 1.7, "fcc111:Au")[0]
    shard = Shard(tmp_path / "second.jsonl")
    shard.append(key_of(record), {"delta_e": -0.1})
    shard.append(key_of(other), {"reason": "a hole"})
    assert label([record, other], shard) == 1
    correction = DftCorrection.load(ROOT / "models/weights/dft_correction.json")
    mean, std = correction.delta_e(*np.array([[-0.3], [-0.1], [0.0], [0.0]]))
    assert record.y_dft == pytest.approx(mean[0], abs=1e-4)
    assert record.y_dft_std == pytest.approx(std[0], abs=1e-4) and std[0] > 0.1
    assert "y_dft" not in other
    assert slab_of(record).positions == pytest.approx(slab.positions, abs=1e-5)


def test_a_key_is_of_the_pose_and_not_of_its_place_in_a_file():
    record, other = (hydrogen_on_metal("Pt", height, "a")[0] for height in (1.7, 1.75))
    assert key_of(record) != key_of(other)
    other = record.clone()
    other.sid, other.host_uid = 7, "b"
    assert key_of(record) == key_of(other)
