"""Potentials: loading by name, and relaxation against oracles."""

import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import graphene
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from models.physics import potentials
from models.physics.potentials import PotentialError, load_potential, relax_layer, single_point


def sheet(a: float = 2.5, c: float = 18.0) -> Atoms:
    """Strained and buckled Cu3Al hexagonal sheet, pbc (T, T, F), c along z."""
    cell = [[2 * a, 0, 0], [-a, a * np.sqrt(3), 0], [0, 0, c]]
    layer = Atoms(
        "Cu3Al",
        scaled_positions=[[0, 0, 0.5], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]],
        cell=cell,
        pbc=(True, True, False),
    )
    layer.rattle(0.05, seed=3)
    return layer


@pytest.fixture(scope="module")
def mattersim_checkpoint(tmp_path_factory):
    """A tiny M3GNet with random weights in MatterSim's own checkpoint format."""
    pytest.importorskip("mattersim")
    import torch
    from mattersim.forcefield import Potential
    from mattersim.forcefield.m3gnet.m3gnet import M3Gnet

    torch.manual_seed(0)
    model = M3Gnet(num_blocks=2, units=8, max_l=2, max_n=2, cutoff=4.0, threebody_cutoff=3.0, device="cpu")
    path = tmp_path_factory.mktemp("mattersim") / "tiny.pth"
    Potential(model, device="cpu").save(str(path))
    return path


@pytest.fixture(scope="module")
def sevennet():
    return load_potential("sevennet")


def numerical_forces(atoms, calculator, delta):
    forces = np.zeros((len(atoms), 3))
    for index in np.ndindex(forces.shape):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[index] += sign * delta
            energies.append(single_point(moved, calculator))
        forces[index] = (energies[1] - energies[0]) / (2 * delta)
    return forces


def test_mattersim_from_checkpoint(mattersim_checkpoint, capfd):
    potential = load_potential("mattersim", checkpoint=mattersim_checkpoint)
    assert capfd.readouterr().out == ""
    assert potential.name == "MatterSim (tiny)"
    assert "mattersim" in potential.note and "sha256" in potential.note

    atoms = sheet()
    assert np.isfinite(single_point(atoms, potential.calculator))
    atoms.calc = potential.calculator
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 1e-3
    np.testing.assert_allclose(numerical_forces(atoms, potential.calculator, 0.01), forces, atol=2e-3)

    relaxed = relax_layer(atoms, potential.calculator, steps=5)
    np.testing.assert_array_equal(relaxed.atoms.cell[2], atoms.cell[2])
    assert np.isfinite(relaxed.energy) and relaxed.energy <= single_point(atoms, potential.calculator)


def test_auto_takes_the_given_checkpoint(mattersim_checkpoint):
    assert load_potential("auto", checkpoint=mattersim_checkpoint).name == "MatterSim (tiny)"


def test_mattersim_from_its_cache(mattersim_checkpoint, monkeypatch, tmp_path):
    (tmp_path / "mattersim-v1.0.0-1M.pth").write_bytes(mattersim_checkpoint.read_bytes())
    monkeypatch.setattr(potentials, "MATTERSIM_CACHE", tmp_path)
    assert load_potential("mattersim-1m").name == "MatterSim-v1.0.0-1M"


class FakeResponse:
    """What requests.get returns, with a body of our own."""

    def __init__(self, body):
        self.body = body

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def raise_for_status(self):
        pass

    def iter_content(self, _):
        yield self.body


def test_download_lands_whole_in_the_cache(mattersim_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(potentials, "MATTERSIM_CACHE", tmp_path)
    monkeypatch.setattr("requests.get", lambda *_, **__: FakeResponse(mattersim_checkpoint.read_bytes()))
    assert load_potential("mattersim").name == "MatterSim-v1.0.0-5M"
    assert [file.name for file in tmp_path.iterdir()] == ["mattersim-v1.0.0-5M.pth"]


def test_broken_download_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(potentials, "MATTERSIM_CACHE", tmp_path)
    monkeypatch.setattr("requests.get", lambda *_, **__: FakeResponse(b"<html>log in first</html>"))
    with pytest.raises(PotentialError, match="--potential-checkpoint"):
        load_potential("mattersim")
    assert list(tmp_path.iterdir()) == []


def test_auto_says_who_stands_in(monkeypatch, tmp_path, capsys):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(potentials, "MATTERSIM_CACHE", tmp_path / "cache")
    monkeypatch.setattr("requests.get", unreachable)
    potential = load_potential("auto")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "SevenNet 7net-l3i5 stands in for MatterSim" in lines[0]
    assert potential.name == "SevenNet 7net-l3i5" and "in place of MatterSim" in potential.note
    assert not (tmp_path / "cache").exists()


def test_factory():
    potential = load_potential("ase.calculators.emt:EMT")
    assert isinstance(potential.calculator, EMT)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "dft"}, "unknown potential 'dft': choose from auto, mattersim"),
        ({"name": "no_such_module:make"}, "give module:factory"),
        ({"name": "os:getcwd"}, "no ASE calculator"),
        ({"name": "sevennet", "checkpoint": "x.pth"}, "takes no checkpoint"),
        ({"name": "mattersim", "checkpoint": "missing.pth"}, "missing.pth does not exist"),
        ({"name": "mattersim", "checkpoint": __file__}, "cannot be loaded as a MatterSim checkpoint"),
    ],
)
def test_errors_are_one_clear_line(arguments, message):
    with pytest.raises(PotentialError) as error:
        load_potential(**arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_import_is_lazy():
    code = (
        "import sys; from models.physics.potentials import load_potential;"
        "load_potential('ase.calculators.emt:EMT');"
        "print({'torch', 'mattersim', 'sevenn', 'chgnet'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def strained(layer: Atoms, strain: np.ndarray) -> Atoms:
    """Copy under a symmetric in-plane strain [2, 2]."""
    deformation = np.eye(3)
    deformation[:2, :2] += strain
    copy = layer.copy()
    copy.set_cell(layer.cell.array @ deformation, scale_atoms=True)
    return copy


def test_relaxation_against_finite_differences():
    layer, fmax = sheet(), 0.01
    before = layer.copy()
    relaxed = relax_layer(layer, EMT(), fmax=fmax, steps=300)

    assert relaxed.converged and relaxed.problem == ""
    assert layer == before
    assert relaxed.energy == pytest.approx(single_point(relaxed.atoms, EMT()), abs=1e-8)
    assert relaxed.energy < single_point(layer, EMT()) - 0.01
    assert np.abs(numerical_forces(relaxed.atoms, EMT(), 1e-3)).max() < fmax
    for strain in ([[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 0.5], [0.5, 0]]):
        step = 1e-3 * np.array(strain)
        up, down = (single_point(strained(relaxed.atoms, sign * step), EMT()) for sign in (1, -1))
        assert abs(up - down) / 2e-3 < fmax * len(layer)

    np.testing.assert_array_equal(relaxed.atoms.cell[2], layer.cell[2])
    np.testing.assert_array_equal(relaxed.atoms.pbc, layer.pbc)
    deformation = np.linalg.solve(layer.cell.array[:2, :2], relaxed.atoms.cell.array[:2, :2])
    np.testing.assert_allclose(deformation, deformation.T, atol=1e-10)
    assert np.linalg.norm(deformation - np.eye(2)) > 0.005
    np.testing.assert_allclose(relaxed.atoms.positions[:, 2].mean(), layer.positions[:, 2].mean(), atol=1e-6)


def test_fixed_cell_stays():
    layer = sheet()
    relaxed = relax_layer(layer, EMT(), cell=False)
    np.testing.assert_array_equal(relaxed.atoms.cell.array, layer.cell.array)
    assert relaxed.converged and relaxed.energy < single_point(layer, EMT())


def test_too_few_steps_say_so():
    relaxed = relax_layer(sheet(), EMT(), fmax=1e-6, steps=2)
    assert (relaxed.converged, relaxed.steps) == (False, 2)
    assert relaxed.problem == "not converged in 2 steps"


def test_what_is_no_layer_is_refused():
    layer = sheet()
    layer.cell[2, 0] = 1.0
    with pytest.raises(ValueError, match="c along z"):
        relax_layer(layer, EMT())
    with pytest.raises(ValueError, match="a and b periodic"):
        relax_layer(Atoms("Cu2", positions=[[0, 0, 0], [2, 0, 0]]), EMT())


class Exploding(Calculator):
    """Pushes the cell (and with `nan`, everything) apart for ever."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, nan_below: float):
        super().__init__()
        self.nan_below = nan_below

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy = -0.1 * np.linalg.norm(np.cross(*atoms.cell.array[:2]))
        self.results = {
            "energy": energy if energy > self.nan_below else np.nan,
            "forces": np.zeros((len(atoms), 3)),
            "stress": np.array([energy, energy, 0, 0, 0, 0]) / atoms.get_volume(),
        }


@pytest.mark.parametrize(
    "nan_below, message", [(-1e9, "cell area changed"), (-4, "not finite"), (0, "not finite")]
)
def test_explosion_ends_sanely(nan_below, message):
    layer = sheet()
    relaxed = relax_layer(layer, Exploding(nan_below), steps=500)
    assert not relaxed.converged and message in relaxed.problem
    assert np.isfinite(relaxed.atoms.positions).all() and relaxed.steps < 500
    assert relaxed.atoms.get_volume() < 3 * layer.get_volume()


def test_sevennet_graphene(sevennet):
    layer = graphene(a=2.55, vacuum=7.5)
    layer.pbc = (True, True, False)
    relaxed = relax_layer(layer, sevennet.calculator, fmax=0.01)
    assert relaxed.converged
    assert relaxed.atoms.cell.lengths()[:2] == pytest.approx(2.46, abs=0.03)
    assert relaxed.atoms.cell.angles()[2] == pytest.approx(120, abs=0.1)


def test_energy_does_not_depend_on_the_given_vacuum(sevennet):
    thin, thick = graphene(vacuum=1.0), graphene(vacuum=12.0)
    for layer in (thin, thick):
        layer.pbc = (True, True, False)
    energies = [single_point(layer, sevennet.calculator) for layer in (thin, thick)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-5)
    hydrogen = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.755]])
    assert single_point(hydrogen, sevennet.calculator) == pytest.approx(-6.81, abs=0.05)


def test_diep():
    potential = load_potential("diep")
    assert potential.name == "DIEP MatPES-r2SCAN"
    relaxed = relax_layer(graphene(vacuum=8.0), potential.calculator, fmax=0.02)
    assert relaxed.atoms.cell.lengths()[0] == pytest.approx(2.45, abs=0.03)  # r2SCAN: 2.45 Å


def test_chgnet():
    potential = load_potential("chgnet")
    assert potential.name == "CHGNet 0.3.0"
    assert single_point(graphene(vacuum=8.0), potential.calculator) / 2 == pytest.approx(-9.2, abs=0.3)
