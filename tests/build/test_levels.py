"""The builder's rows of hydrogen: positions and energies against EMT, and against the evaluator's oracle."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from layers import Springs, energy_by, square_metal

from data.build import levels, pack
from models.crystals.layer import extract_layer, pack_atoms
from models.crystals.sites import adsorption_sites, shortest_bond, with_hydrogen
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
