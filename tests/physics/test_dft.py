"""DFT: k-points that fold, settings' key, the second attempt, and, where GPAW is installed, H2 and one small
host.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.lj import LennardJones

from models.crystals.layer import unpack_atoms
from models.crystals.sites import spaced_supercell
from models.physics import dft
from models.physics.dft import (
    DftError,
    Settings,
    folded_kpoints,
    half_hydrogen,
    hydrogen_on,
    kpoint_grid,
    supercell_transform,
)

SHARD = Path(__file__).resolve().parents[2] / "data" / "shards" / "dft.jsonl"
needs_gpaw = pytest.mark.skipif(importlib.util.find_spec("gpaw") is None, reason=dft.MISSING)


def honeycomb(a: float = 3.2) -> Atoms:
    cell = [[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, 15]]
    return Atoms(
        "BN", scaled_positions=[[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]], cell=cell, pbc=(True, True, False)
    )


def test_every_setting_is_part_of_the_key():
    changed = [
        Settings(code="vasp:factory"),
        Settings(xc="RPBE"),
        Settings(mode="dzp"),
        Settings(cutoff=500.0),
        Settings(kpoint_length=36.0),
        Settings(smearing=0.05),
        Settings(vacuum=16.0),
        Settings(spin="all"),
        Settings(tolerance=1e-3),
    ]
    assert len({settings.key for settings in [Settings(), *changed]}) == len(changed) + 1
    assert Settings().key == Settings().key


def test_spin_by_element():
    assert Settings().polarised(["Cr", "I"]) and not Settings().polarised(["Mo", "S"])
    assert Settings(spin="all").polarised(["Mo"]) and not Settings(spin="none").polarised(["Fe"])


@pytest.mark.parametrize(
    "transform", [[[2, 0], [0, 2]], [[2, 1], [-1, 1]], [[1, -1], [-2, -1]], [[3, 1], [0, 2]]]
)
def test_folded_points_are_the_supercells(transform):
    grid = (3, 2, 1)
    points = folded_kpoints(np.array(transform), grid)
    assert len({tuple(np.round(point, 6)) for point in points}) == len(points)
    folded = points[:, :2] @ np.array(transform).T * grid[:2]  # in units of the supercell's grid: integers
    assert np.allclose(folded, np.round(folded), atol=1e-6)
    members = {tuple(np.round(row).astype(int) % grid[:2]) for row in folded}
    assert len(members) == 6  # every point of the grid, each as often as there are cells
    assert len(points) == 6 * round(abs(np.linalg.det(transform)))


def test_grid_by_density():
    assert kpoint_grid(np.diag([6.0, 12.1, 20.0]), 24.0) == (4, 2, 1)


def test_supercell_of_a_turned_lattice():
    host = honeycomb()
    slab = spaced_supercell(host)
    turned = slab.copy()
    turned.rotate(25, "z", rotate_cell=True)
    for pose in (slab, turned):
        assert abs(np.linalg.det(supercell_transform(host, pose))) == pytest.approx(len(slab) / len(host))
    slab.set_cell(slab.cell.array * 1.3)
    with pytest.raises(DftError, match="supercell"):
        supercell_transform(host, slab)


class Stubborn(Calculator):
    """Converges only when it is told to be gentle, or never."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, converges: bool):
        super().__init__()
        self.converges = converges

    def calculate(self, *args):
        super().calculate(*args)
        if not self.converges:
            raise RuntimeError("density does not converge")
        self.results = {"energy": -1.0 * len(self.atoms), "forces": np.zeros((len(self.atoms), 3))}


asked = []


def only_gentle(settings, kpoints, spin, attempt):
    asked.append(attempt)
    return Stubborn(attempt == 1)


def never(settings, kpoints, spin, attempt):
    return Stubborn(False)


def pairwise(settings, kpoints, spin, attempt):
    return LennardJones(sigma=1.0, epsilon=0.2, rc=4.0)


def test_what_does_not_converge_is_tried_once_more():
    asked.clear()
    energy, _ = dft.converge(honeycomb(), Settings(code=f"{__name__}:only_gentle"), (1, 1, 1), False)
    assert asked == [0, 1] and energy.attempts == 2 and energy.energy == -2.0 and energy.gap is None
    with pytest.raises(DftError, match="does not converge; with gentle mixing: .*does not converge"):
        dft.converge(honeycomb(), Settings(code=f"{__name__}:never"), (1, 1, 1), False)


def test_any_calculator_of_a_factory():
    settings = Settings(code=f"{__name__}:pairwise")
    half, bond = half_hydrogen(settings)
    assert bond == pytest.approx(2 ** (1 / 6), abs=0.01) and half == pytest.approx(-0.1, abs=0.002)
    host = honeycomb()
    pose = spaced_supercell(host)
    pose.append("H")
    pose.positions[-1] = pose.positions[0] + [0, 0, 1.1]
    found = hydrogen_on(host, pose, settings, half, relax="h")
    assert found.cells == len(pose) // 2 and found.end is not None and found.delta_e < -half
    with pytest.raises(DftError, match="module:factory"):
        dft.calculator_factory("nothing_of_the_kind:factory")


def test_without_gpaw_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DftError, match="make dft"):
        half_hydrogen(Settings())


@needs_gpaw
def test_hydrogen_molecule():
    half, bond = half_hydrogen(Settings())
    assert bond == pytest.approx(0.751, abs=0.01)  # PBE, basis limit: 0.750 Å
    assert 2 * half == pytest.approx(
        -6.7, abs=0.1
    )  # against spin-paired atoms; PBE total energies of other codes: −6.76 eV


@needs_gpaw
def test_a_stored_record_comes_out_again():
    """The primitive slab of the cheapest record on its folded points, and ΔE_H as the sum of its parts; the
    pose itself takes minutes on a busy machine.
    """
    rows = [json.loads(line) for line in SHARD.read_text().splitlines()]
    done = [row for row in rows if row.get("reason") == "" and row["relax"] == "none" and not row["spin"]]
    row = min(done, key=lambda row: (row["dft_seconds"], row["key"]))
    assert row["settings"] == Settings().key
    host, pose, energies = unpack_atoms(row["host"]), unpack_atoms(row["pose"]), row["energies"]
    height = float(np.ptp(pose.positions[:, 2])) + Settings().vacuum
    grid = kpoint_grid(pose.cell.array, Settings().kpoint_length)
    points = folded_kpoints(supercell_transform(host, pose), grid)
    slab, _ = dft.converge(dft.boxed(host, height), Settings(), points, False)
    assert grid == tuple(row["grid"])
    assert slab.energy == pytest.approx(energies["slab"], abs=0.002)
    delta_e = energies["pose"] - row["cells"] * energies["slab"] - energies["half_h2"]
    assert delta_e == pytest.approx(row["delta_e_dft"], abs=1e-4)
