"""DFT inputs: read back by ASE, and the GPAW script run with another calculator in GPAW's place."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.io import read
from ase.optimize import BFGS

from models.crystals.sites import Site, adsorption_sites, roomy, with_hydrogen
from models.crystals.thresholds import CORRECTION
from models.evaluation import dft_inputs
from models.evaluation.dft_inputs import kpoint_mesh, remove_stale, safe_name, write_handoff
from tests.layers import known

ROW = {
    "formula": "MoS2",
    "delta_g_h_oracle_eV": 1.2345678,
    "e_hull_eV_per_atom": 0.0,
    "h_site": "ontop-top",
    "p_synth": "",
}
PROVENANCE = {"potential": "SevenNet 7net-l3i5", "versions": {"ase": "3.29.0"}}


def posed(layer: Atoms) -> Atoms:
    return roomy(with_hydrogen(layer, adsorption_sites(layer)[0]))


def files(folder: Path) -> dict:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def incar(path: Path) -> dict:
    lines = [line.split("!")[0].split("=") for line in path.read_text().splitlines() if "=" in line]
    return {key.strip(): value.strip() for key, value in lines}


@pytest.mark.parametrize("name", ["1H-MoS2", "Janus-MoSSe", "CrI3", "phosphorene"])
def test_files_round_trip(name, tmp_path):
    layer = known(name)
    pose = posed(layer)
    target = write_handoff(tmp_path, name, layer, pose, ROW, PROVENANCE)
    assert target == tmp_path / name
    slab, slab_h = (read(target / part / "structure.extxyz") for part in ("slab", "slab_H"))
    assert len(slab_h) == len(slab) + 1 == len(pose)
    assert slab_h.symbols[-1] == "H" and slab_h.symbols.count("H") == slab.symbols.count("H") + 1
    np.testing.assert_allclose(slab_h.cell.array, slab.cell.array)
    np.testing.assert_allclose(slab_h.positions[:-1], slab.positions, atol=1e-7)
    np.testing.assert_allclose(slab.cell.lengths()[:2], pose.cell.lengths()[:2], atol=1e-7)
    ends = np.sort(pose.get_all_distances(mic=True)[-1]), np.sort(slab_h.get_all_distances(mic=True)[-1])
    np.testing.assert_allclose(*ends, atol=1e-6)  # H sits where it sat
    for part, atoms in (("slab", slab), ("slab_H", slab_h)):
        poscar = read(target / part / "POSCAR")
        assert poscar.get_chemical_symbols() == atoms.get_chemical_symbols() and not poscar.constraints
        np.testing.assert_allclose(poscar.positions, atoms.positions, atol=1e-6)
        np.testing.assert_allclose(poscar.cell.array, atoms.cell.array, atol=1e-7)
        assert atoms.cell[2, 2] - np.ptp(atoms.positions[:, 2]) >= 15 and 0 < atoms.positions[:, 2].min()
        assert np.linalg.det(atoms.cell.array) > 0 and atoms.pbc.tolist() == [True, True, False]
        changes = np.count_nonzero(np.diff(atoms.numbers))
        assert changes == len(set(atoms.numbers)) - 1  # grouped by species
        assert "Selective" not in (target / part / "POSCAR").read_text()
    assert not list(tmp_path.rglob("POTCAR*")) and not list(tmp_path.rglob("*.tmp"))


def test_a_left_handed_pose_becomes_right_handed(tmp_path):
    layer = known("Janus-MoSSe")
    pose = posed(layer)
    pose.cell[:2] = pose.cell.array[1::-1]
    assert np.linalg.det(pose.cell.array) < 0
    slab_h = read(write_handoff(tmp_path, "x", layer, pose, ROW, PROVENANCE) / "slab_H" / "POSCAR")
    assert np.linalg.det(slab_h.cell.array) > 0
    distances = [np.sort(atoms.get_all_distances(mic=True).ravel()) for atoms in (slab_h, pose)]
    np.testing.assert_allclose(*distances, atol=1e-6)


def test_hydrogen_of_the_layer_is_told_from_the_adsorbed_one(tmp_path):
    layer = known("h-BN")
    graphane = layer.copy()
    graphane.symbols = ["C", "H"]
    pose = roomy(with_hydrogen(graphane, Site("ontop", 1, graphane.positions[0] + [0, 0, 1.1])))
    pose = pose[[len(pose) - 1, *range(len(pose) - 1)]]  # the adsorbed one first: its tag says so
    target = write_handoff(tmp_path, "CH", graphane, pose, ROW, PROVENANCE)
    slab, slab_h = (read(target / part / "structure.extxyz") for part in ("slab", "slab_H"))
    assert np.ptp(slab.positions[:, 2]) < 1e-6 < 1 < np.ptp(slab_h.positions[:, 2])
    with pytest.raises(ValueError, match="no H"):
        write_handoff(tmp_path, "bare", known("1H-MoS2"), known("1H-MoS2"), ROW, PROVENANCE)


def test_incar_follows_the_physics(tmp_path):
    polar = {}
    for name in ("1H-MoS2", "Janus-MoSSe", "CrI3"):
        target = write_handoff(tmp_path, name, known(name), posed(known(name)), ROW, PROVENANCE)
        slab, slab_h = incar(target / "slab" / "INCAR"), incar(target / "slab_H" / "INCAR")
        polar[name] = "LDIPOL" in slab
        assert slab_h["LDIPOL"] == ".TRUE." and slab_h["IDIPOL"] == "3"
        assert slab_h["ENCUT"] == slab["ENCUT"] and slab["GGA"] == "PE" and slab["IVDW"] == "12"
        assert slab_h["ISPIN"] == "2" and len(slab_h["MAGMOM"].split()) == len(
            read(target / "slab_H" / "POSCAR")
        )
        assert slab["ISPIN"] == ("2" if name == "CrI3" else "1")
    assert polar == {"1H-MoS2": False, "Janus-MoSSe": True, "CrI3": False}
    chromium = read(tmp_path / "CrI3" / "slab" / "structure.extxyz")
    assert set(chromium.get_initial_magnetic_moments()[chromium.symbols == "Cr"]) == {dft_inputs.HIGH_SPIN}
    assert (
        "LDIPOL" not in incar(tmp_path / "h2" / "INCAR") and incar(tmp_path / "h2" / "INCAR")["ISPIN"] == "1"
    )
    assert (tmp_path / "h2" / "KPOINTS").read_text().splitlines()[3] == "1 1 1"
    assert read(tmp_path / "h2" / "POSCAR").get_distance(0, 1) == pytest.approx(0.75)


def test_kpoint_density():
    assert kpoint_mesh(Atoms("Cu", cell=[2 * np.pi, np.pi, 20.0])) == (5, 10, 1)
    assert kpoint_mesh(known("graphene")) == (15, 15, 1)  # 2π / (2.46 Å sin 60°) × 5 = 14.7
    mesh = np.array(kpoint_mesh(known("phosphorene"))[:2])
    spacing = np.linalg.norm(2 * np.pi * known("phosphorene").cell.reciprocal().array[:2], axis=1) / mesh
    assert (spacing <= 1 / dft_inputs.KPOINT_DENSITY).all() and (
        spacing * mesh / np.maximum(mesh - 1, 1) > 1 / dft_inputs.KPOINT_DENSITY
    ).all()


def test_writing_again_changes_nothing_and_keeps_results(tmp_path):
    layer = known("1H-MoS2")
    target = write_handoff(tmp_path, "a", layer, posed(layer), ROW, PROVENANCE)
    (target / "slab" / "OUTCAR").write_text("mine")
    before = files(tmp_path)
    write_handoff(tmp_path, "a", layer, posed(layer), ROW, PROVENANCE)
    assert files(tmp_path) == before
    write_handoff(tmp_path, "a", layer, None, ROW, PROVENANCE)
    left = files(tmp_path)
    assert (
        "a/slab/OUTCAR" in left
        and "a/gpaw_delta_g.py" not in left
        and not any("slab_H" in name for name in left)
    )
    assert "no slab_H" in left["a/README.txt"].decode()
    assert len(read(target / "slab" / "POSCAR")) % 3 == 0


ODD = [
    "../../escape",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "..",
    ".",
    "",
    "h2",
    "H2",
    "Mo S₂\n{x} $y \"quoted\" '''",
    "x" * 300,
    "-rf",
    "\udc80",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_stay_inside_the_folder(name, tmp_path):
    folder = tmp_path / "inner"
    target = write_handoff(folder, name, known("graphene"), posed(known("graphene")), ROW, PROVENANCE)
    assert (
        target.parent == folder
        and target.resolve().parent == folder.resolve()
        and target.name not in ("h2", "H2")
    )
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", target.name) and len(target.name) < 100
    assert {path.name for path in tmp_path.iterdir()} == {"inner"}
    compile((target / dft_inputs.SCRIPT).read_text(encoding="utf-8"), dft_inputs.SCRIPT, "exec")


def test_names_that_are_safe_stay_and_others_never_collide():
    assert safe_name("0001_MoS2-2H.v1") == "0001_MoS2-2H.v1"
    assert len({safe_name(name) for name in ("a/b", "a_b", "a b", "a\\b", "h2", "H2")}) == 6


def test_readme_says_what_is_predicted_and_by_what(tmp_path):
    layer = known("1H-MoS2")
    text = (write_handoff(tmp_path, "mos2", layer, posed(layer), ROW, PROVENANCE) / "README.txt").read_text(
        encoding="utf-8"
    )
    for part in (
        "SevenNet 7net-l3i5",
        "ontop-top",
        "1.235",
        "versions: ase 3.29.0",
        "No POTCAR",
        "D3(BJ)",
        f"{CORRECTION:g} eV",
        "'mos2'",
    ):
        assert part in text
    assert "P(synthesizable)" not in text  # nothing predicted, nothing said


def test_the_gpaw_script_runs_with_another_calculator(tmp_path):
    """GPAW's place is taken by EMT: the printed ΔG_H must be the one worked out here."""
    layer = Atoms(
        "Cu",
        positions=[[0, 0, 7.5]],
        cell=[[2.55, 0, 0], [-1.275, 2.55 * np.sqrt(3) / 2, 0], [0, 0, 15]],
        pbc=(1, 1, 0),
    )
    target = write_handoff(tmp_path, "Cu", layer, posed(layer), ROW, PROVENANCE)
    stand_in = tmp_path / "stand_in" / "gpaw.py"
    stand_in.parent.mkdir()
    stand_in.write_text(
        "from ase.calculators.emt import EMT\nPW = FermiDirac = lambda value: value\n"
        "def GPAW(*, kpts, txt, poissonsolver=None, **rest):\n"
        "    print(txt, kpts, poissonsolver, rest['mode'], rest['xc'])\n    return EMT()\n"
    )
    script = target / dft_inputs.SCRIPT
    plain = target / "plain.py"
    plain.write_text(script.read_text(encoding="utf-8").replace("D3 = True", "D3 = False"), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(stand_in.parent), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, str(plain)], capture_output=True, text=True, env=environment, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    energies = {}
    for part in ("slab", "slab_H", "../h2"):
        atoms = read(target / part / "structure.extxyz")
        atoms.calc = EMT()
        BFGS(atoms, logfile=None).run(fmax=0.02)
        energies[part] = atoms.get_potential_energy()
    delta_e = energies["slab_H"] - energies["slab"] - energies["../h2"] / 2
    assert f"ΔE_H = {delta_e:.4f} eV" in done.stdout
    assert float(re.search(r"ΔG_H = (\S+) eV", done.stdout).group(1)) == pytest.approx(
        delta_e + 0.27, abs=1e-4
    )
    mesh = kpoint_mesh(read(target / "slab" / "POSCAR"))
    assert f"'size': {mesh}" in done.stdout and "'size': (1, 1, 1)" in done.stdout
    assert done.stdout.count("dipolelayer") == 1  # a flat sheet has no dipole, with H it has


def test_inputs_of_an_earlier_shortlist_go_and_results_stay(tmp_path, capsys):
    """A second run with another shortlist leaves no candidate of the first, but whatever DFT wrote there."""
    layer = known("1H-MoS2")
    for name in ("old", "computed", "new"):
        write_handoff(tmp_path, name, layer, posed(layer), ROW, PROVENANCE)
    (tmp_path / "computed/slab/OUTCAR").write_text("hours of work")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/POSCAR").write_text("not ours")
    before = files(tmp_path / "new") | files(tmp_path / "h2")
    assert remove_stale(tmp_path, ["new"]) == ["computed"] and "computed" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"computed", "h2", "mine", "new"}
    assert files(tmp_path / "computed") == {"slab/OUTCAR": b"hours of work"}
    assert files(tmp_path / "new") | files(tmp_path / "h2") == before
    assert remove_stale(tmp_path / "none", []) == []
