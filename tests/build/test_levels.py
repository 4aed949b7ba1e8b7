"""The builder's rows of hydrogen: positions and energies against EMT, and against the evaluator's oracle."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from layers import Springs, energy_by, known, square_metal

from data.build import levels, pack
from models.crystals.layer import extract_layer, pack_atoms
from models.crystals.sites import adsorption_sites, shortest_bond, with_hydrogen
from models.datasets.lmdb_data import LmdbDataset, safe_loads, write_lmdb
from models.physics.hydrogen import HydrogenOracle


def test_records_keep_hydrogen_on_its_site(monkeypatch):
    """Every pose of a row is stored against one slab: H must stand there where it stood in its own pose."""
    slab = fcc111("Cu", (1, 1, 3), vacuum=7.5)
    slab.symbols[0] = "Al"
    host = extract_layer(slab).atoms
    oracle, host_energy = HydrogenOracle(EMT()), energy_by(EMT(), host)
    row = levels.adsorb_on({"key": "x", "atoms": pack_atoms(host), "energy": host_energy}, oracle)
    assert {site["face"] for site in row["sites"]} == {1, -1}
    for site in row["sites"]:
        site["converged"] = True
    monkeypatch.setattr(pack, "adsorption_flag", lambda *_: "")  # keep them all
    records, _ = pack.adsorption_records(row | {"key": "x", "reason": ""}, 0)
    wanted = sorted(shortest_bond(with_hydrogen(host, site)) for site in adsorption_sites(host))
    found = []
    for record, site in zip(records, row["sites"]):
        assert record.y_relaxed == site["delta_e"]
        start, end = (
            Atoms(record.atomic_numbers.numpy(), pos.numpy(), cell=record.cell[0].numpy(), pbc=(1, 1, 0))
            for pos in (record.pos, record.pos_relaxed)
        )
        found.append(shortest_bond(start))
        slab_energy = (len(end) - 1) // 3 * host_energy
        delta_e = energy_by(EMT(), end) - slab_energy - oracle.half_h2
        assert site["delta_e"] == pytest.approx(delta_e, abs=2e-3)
    np.testing.assert_allclose(sorted(found), wanted, atol=1e-4)


def test_a_packed_set_loses_what_is_no_adsorption_any_more(tmp_path, monkeypatch):
    """H 1.35 Å over a S of 1H-MoS2, and the same with this S lifted 2.5 Å out of its bonds: one record stays,
    with all its fields.
    """
    layer = known("1H-MoS2").repeat((2, 2, 1))
    top, poses = int(layer.positions[:, 2].argmax()), []
    for rise in (0.0, 2.5, 0.2):
        pose = layer + Atoms("H", [layer.positions[top] + [0, 0, 1.35]])
        pose.positions[[top, -1], 2] += rise
        poses.append(pose)
    sites = [
        {"kind": "ontop", "face": 1, "start": pose.positions[-1], "end": pose.positions.tolist()}
        | {"delta_e": rank / 4, "converged": True, "flag": ""}
        for rank, pose in enumerate(poses)
    ]
    row = {"key": "x", "reason": "", "slab": pack_atoms(layer), "sites": sites}
    _, dropped = pack.adsorption_records(row, 0)
    assert dropped == {"abstracted": 1}  # a set packed today does not hold it
    path = tmp_path / "old.lmdb"
    with monkeypatch.context() as patch:
        patch.setattr(pack, "adsorption_flag", lambda *_: "")
        records, _ = pack.adsorption_records(row, 0)
    write_lmdb(path, records)
    before = [safe_loads(LmdbDataset([path]).raw(index)) for index in range(3)]
    assert pack.rejudge(path) == {"file": "old.lmdb", "kept": 2, "dropped": {"abstracted": 1}}
    after = [safe_loads(LmdbDataset([path]).raw(index)) for index in range(2)]
    for kept, old in zip(after, (before[0], before[2])):
        assert kept["y_relaxed"] == old["y_relaxed"] and kept["site"] == old["site"] == "ontop-top"
        np.testing.assert_array_equal(kept["pos_relaxed"], old["pos_relaxed"])
    assert pack.rejudge(path)["dropped"] == {}


def test_the_builder_relaxes_as_the_evaluator_does():
    slab, oracle = square_metal(2.5, 2), HydrogenOracle(Springs())
    item = {"key": "x", "atoms": pack_atoms(slab), "energy": energy_by(Springs(), slab)}
    found = levels.relax_adsorbed({"key": "x", "row": levels.adsorb_on(item, oracle)}, oracle)["sites"][0]
    wanted = oracle.delta_g(slab)
    assert found["flag"] == ""
    assert found["rigid_delta_e"] + 0.27 == pytest.approx(wanted.rigid_delta_g_h, abs=1e-3)
    assert found["delta_e"] + 0.27 == pytest.approx(wanted.delta_g_h, abs=2e-3)


def test_one_bad_item_costs_one_row():
    row = levels.guarded((levels.adsorb_on, {"key": "x", "atoms": None}), HydrogenOracle(EMT()))
    assert "Error" in row["reason"] and row["seconds"] >= 0
