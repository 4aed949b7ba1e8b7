"""Interatomic potentials as ASE calculators, and what is done with them: an energy, a layer's relaxation.

MatterSim (Yang et al. 2024, arXiv:2405.04967) is the potential of the mission. SevenNet (Park et al. 2024,
JCTC 20, 4857) and CHGNet (Deng et al. 2023, Nat. Mach. Intell. 5, 1031) carry their weights inside their
wheels. A library is imported only when its potential is asked for.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from scipy.linalg import polar

from models.crystals.thresholds import CALCULATION_VACUUM
from models.infra.files import atomic, load_checkpoint

MATTERSIM_FILES = {"mattersim": "mattersim-v1.0.0-5M.pth", "mattersim-1m": "mattersim-v1.0.0-1M.pth"}
MATTERSIM_CACHE = Path("~/.local/mattersim/pretrained_models")  # where mattersim itself looks
MATTERSIM_URL = "https://raw.githubusercontent.com/microsoft/mattersim/main/pretrained_models/"
SEVENNET_MODELS = {"sevennet": "7net-l3i5", "sevennet-0": "7net-0"}
NAMES = ("auto", *MATTERSIM_FILES, *SEVENNET_MODELS, "diep", "chgnet", "module:factory")

MAX_AREA_RATIO = 3.0  # a relaxing layer never changes its area by more
MAX_FORCE = 1e4  # eV/Å
MAX_ENERGY_CHANGE = 100.0  # eV/atom from the start; beyond it the potential has fallen into a hole
STIFFNESS = 40.0  # eV/Å^2, BFGS's first guess of the curvature; ASE's 70 takes more calls on C2DB layers
IN_PLANE = [1, 1, 0, 0, 0, 1]  # Voigt xx yy zz yz xz xy


class PotentialError(RuntimeError):
    """A potential cannot be had; the message is one line and says what to do."""


@dataclass(frozen=True)
class Potential:
    """A loaded potential.

    Attributes:
        name: what to print, e.g. "MatterSim-v1.0.0-5M".
        calculator: ASE calculator with energy (eV), forces (eV/Å), stress (eV/Å^3).
        note: one line of provenance: package version, checkpoint and its hash, or why a substitute stands in.
        spec: name under which load_potential finds it again, `auto` resolved.
    """

    name: str
    calculator: BaseCalculator
    note: str
    spec: str


@dataclass(frozen=True)
class Relaxed:
    """The end of a relaxation.

    Attributes:
        atoms: relaxed copy without a calculator; c and pbc as in the input.
        energy: its energy, eV per cell.
        converged: whether all forces and the in-plane stress got below fmax.
        steps: optimizer steps taken.
        problem: empty, or why it did not converge.
    """

    atoms: Atoms
    energy: float
    converged: bool
    steps: int
    problem: str = ""


def load_potential(
    name: str = "auto", checkpoint: str | Path | None = None, device: str = "cpu"
) -> Potential:
    """Load a potential by name.

    Args:
        name: one of `auto` (MatterSim if its checkpoint is given, cached or downloadable, else SevenNet,
            saying so), `mattersim` (5M), `mattersim-1m`, `sevennet` (7net-l3i5), `sevennet-0`, `diep`,
            `chgnet`, or `module:factory`, a callable without arguments that returns an ASE calculator.
        checkpoint: MatterSim checkpoint file; only for `auto` and `mattersim*`.
        device: "cpu", "cuda", … or "auto".

    Raises:
        PotentialError: the name is unknown or the potential cannot be had.
    """
    if checkpoint is not None and name != "auto" and name not in MATTERSIM_FILES:
        raise PotentialError(f"potential '{name}' takes no checkpoint: that is for MatterSim only")
    device = _device(device)
    if name == "auto":
        return _load_auto(checkpoint, device)
    if name in MATTERSIM_FILES:
        return _load_mattersim(name, checkpoint, device)
    if name in SEVENNET_MODELS:
        return _load_sevennet(name, device)
    if name == "diep":
        return _load_diep(device)
    if name == "chgnet":
        return _load_chgnet(device)
    if ":" in name:
        return _load_factory(name)
    raise PotentialError(f"unknown potential '{name}': choose from {', '.join(NAMES)}")


def single_point(atoms: Atoms, calculator: BaseCalculator) -> float:
    """Energy of the structure as it stands, eV per cell; `atoms` is not changed.

    Non-periodic axes are made periodic with ample vacuum, which SevenNet needs and the others do not mind;
    periodic axes are taken as they are.
    """
    copy, _ = fully_periodic(atoms)
    copy.calc = calculator
    return float(copy.get_potential_energy())


def relax_layer(
    atoms: Atoms, calculator: BaseCalculator, fmax: float = 0.05, steps: int = 200, cell: bool = True
) -> Relaxed:
    """Relax atoms and, with `cell`, the in-plane lattice (a, b, gamma) of a layer; never c.

    The layer does not rotate. The strain's gradient is divided by the number of atoms before it is compared
    with fmax (ASE's FrechetCellFilter).

    Args:
        atoms: layer with c along z, periodic in a and b. It is not changed.
        calculator: ASE calculator with forces and stress.
        fmax: eV/Å.
        steps: most optimizer steps.
        cell: False keeps the lattice.

    Returns:
        The relaxed layer. One that explodes (not finite, absurd force or energy, area changed more than
        threefold) comes back in its last sane state, not converged, with what happened in `problem`.

    Raises:
        ValueError: c is not along z, or a, b not in the plane and periodic. What the calculator raises on the
            structure as given (an element that it does not know) passes through.
    """
    if cell and np.abs([atoms.cell[2, :2], atoms.cell[:2, 2]]).max() > 1e-5:
        lattice = atoms.cell.array.round(4).tolist()
        raise ValueError(f"relax_layer needs c along z and a, b across, got {lattice}")
    if cell and not atoms.pbc[:2].all():
        raise ValueError(f"relax_layer needs a and b periodic, got pbc = {atoms.pbc.tolist()}")
    work, shift = fully_periodic(atoms)
    work.calc = calculator
    start = _State.of(work)
    problem = start.problem(start)
    if problem:
        return _finish(atoms, start, shift, False, 0, problem)

    target = FrechetCellFilter(work, mask=IN_PLANE) if cell else work
    optimizer = BFGS(target, logfile=None, alpha=STIFFNESS)
    last, converged = start, False
    try:
        for converged in optimizer.irun(fmax=fmax, steps=steps):
            state = _State.of(work)
            problem = state.problem(start)
            if problem:
                converged = False
                break
            last = state
    except (ValueError, RuntimeError, ArithmeticError, np.linalg.LinAlgError) as error:
        converged, problem = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not converged and not problem:
        problem = f"not converged in {steps} steps"
    return _finish(atoms, last, shift, converged, optimizer.nsteps, problem)


@dataclass(frozen=True)
class _State:
    """Snapshot of a relaxation: positions [N, 3] Å, cell [3, 3] Å, energy eV, largest force eV/Å."""

    positions: np.ndarray
    cell: np.ndarray
    energy: float
    force: float

    @classmethod
    def of(cls, atoms: Atoms) -> "_State":
        force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
        energy = float(atoms.get_potential_energy())
        return cls(atoms.get_positions(), atoms.cell.array.copy(), energy, force)

    def area(self) -> float:
        return float(np.linalg.norm(np.cross(self.cell[0], self.cell[1])))

    def problem(self, start: "_State") -> str:
        """What is absurd about this state, or an empty string."""
        if not (np.isfinite(self.energy) and np.isfinite(self.force) and np.isfinite(self.positions).all()):
            return "energy or forces are not finite"
        if self.force > MAX_FORCE:
            return f"force of {self.force:.3g} eV/Å"
        change = abs(self.energy - start.energy) / len(self.positions)
        if change > MAX_ENERGY_CHANGE:
            return f"energy changed by {change:.3g} eV/atom"
        ratio = self.area() / start.area()
        if not 1 / MAX_AREA_RATIO < ratio < MAX_AREA_RATIO:
            return f"cell area changed by a factor of {ratio:.3g}"
        return ""


def _finish(
    atoms: Atoms, state: _State, shift: np.ndarray, converged: bool, steps: int, problem: str
) -> Relaxed:
    """Put the state back into a copy of the input, keeping c, pbc, orientation and place in the vacuum."""
    positions, lattice = state.positions - shift, atoms.cell.array.copy()
    if not np.array_equal(lattice[:2], state.cell[:2]):
        rotation, _ = polar(np.linalg.solve(lattice[:2, :2], state.cell[:2, :2]), side="left")
        lattice[:2, :2] = state.cell[:2, :2] @ rotation.T
        positions[:, :2] = positions[:, :2] @ rotation.T
    relaxed = atoms.copy()
    relaxed.set_cell(lattice)
    relaxed.set_positions(positions, apply_constraint=False)
    return Relaxed(relaxed, state.energy, bool(converged), int(steps), problem)


def fully_periodic(atoms: Atoms) -> tuple[Atoms, np.ndarray]:
    """Copy with pbc = True and `CALCULATION_VACUUM` along the axes that were open, and the shift [3] Å of its
    atoms.
    """
    copy = atoms.copy()
    open_axes = tuple(int(axis) for axis in np.flatnonzero(~atoms.pbc))
    if open_axes:
        copy.center(vacuum=CALCULATION_VACUUM / 2, axis=open_axes)
    copy.pbc = True
    return copy, copy.positions[0] - atoms.positions[0]


def _device(device: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _load_auto(checkpoint: str | Path | None, device: str) -> Potential:
    if checkpoint is not None:
        return _load_mattersim("mattersim", checkpoint, device)
    try:
        return _load_mattersim("mattersim", None, device)
    except PotentialError as error:
        substitute = _load_sevennet("sevennet", device)
        print(f"{substitute.name} stands in for MatterSim: {error}", flush=True)
        note = f"{substitute.note}; in place of MatterSim: {error}"
        return replace(substitute, note=note)


def _load_mattersim(name: str, checkpoint: str | Path | None, device: str) -> Potential:
    if importlib.util.find_spec("mattersim") is None:
        raise PotentialError("MatterSim is not installed: pip install --no-deps mattersim==1.2.3")
    path = _mattersim_checkpoint(name, checkpoint)
    try:
        with _quiet():
            from loguru import logger
            from mattersim.forcefield import MatterSimCalculator
            from mattersim.forcefield import Potential as MatterSimPotential

            logger.disable("mattersim")
            # Absolute, for mattersim takes a bare "mattersim-v1.0.0-5M.pth" for the file in its own cache.
            model = MatterSimPotential.from_checkpoint(
                load_path=str(path.resolve()), device=device, load_training_state=False
            )
    except ImportError as error:
        raise PotentialError(f"MatterSim lacks a package ({error}): pip install it") from error
    except Exception as error:
        raise PotentialError(
            f"{path} cannot be loaded as a MatterSim checkpoint ({_one_line(error)}): "
            "give another with --potential-checkpoint"
        ) from error
    calculator = MatterSimCalculator(potential=model, args_dict={}, device=device)
    stem = path.stem
    title = f"MatterSim{stem[9:]}" if stem.startswith("mattersim-v") else f"MatterSim ({stem})"
    note = f"{_version('mattersim')}, {path.name} sha256 {_sha256(path)}, {device}"
    return Potential(title, calculator, note, name)


def _mattersim_checkpoint(name: str, checkpoint: str | Path | None) -> Path:
    """Path of the checkpoint: the given one, else the cached one, else a fresh download into the cache."""
    if checkpoint is not None:
        path = Path(checkpoint).expanduser()
        if not path.is_file():
            raise PotentialError(f"MatterSim checkpoint {path} does not exist: check --potential-checkpoint")
        return path
    path = MATTERSIM_CACHE.expanduser() / MATTERSIM_FILES[name]
    if not path.is_file():
        _download(MATTERSIM_URL + path.name, path)
    return path


def _download(url: str, path: Path) -> None:
    """Fetch a torch checkpoint, which appears by rename, checked, or not at all.

    Waits 5 s for the host and 20 s for each piece of data.
    """
    import requests

    try:
        with requests.get(url, stream=True, timeout=(5, 20)) as response, atomic(path) as partial:
            response.raise_for_status()
            with partial.open("wb") as file:
                for chunk in response.iter_content(1 << 20):
                    file.write(chunk)
            load_checkpoint(partial)
    except Exception as error:
        raise PotentialError(
            f"{path.name} is not in {MATTERSIM_CACHE} and could not be downloaded ({type(error).__name__}): "
            "give the file with --potential-checkpoint"
        ) from error


def _load_sevennet(name: str, device: str) -> Potential:
    model = SEVENNET_MODELS[name]
    try:
        with _quiet():
            from sevenn.calculator import SevenNetCalculator

            from models.physics.fast_convolution import speed_up

            calculator = SevenNetCalculator(model, device=device)
        if device == "cpu":
            speed_up(calculator.model)
    except ImportError as error:
        raise PotentialError(f"SevenNet cannot be imported ({error}): pip install sevenn") from error
    note = f"{_version('sevenn')}, weights from its wheel, {device}"
    return Potential(f"SevenNet {model}", calculator, note, name)


def _load_diep(device: str) -> Potential:
    try:
        with _quiet():
            from diep.pretrained import make_calculator

            calculator = make_calculator(device=device)
    except ImportError as error:
        raise PotentialError(f"diep cannot be imported ({error}): pip install diep") from error
    note = f"{_version('diep')}, weights from its wheel, {device}"
    return Potential("DIEP MatPES-r2SCAN", calculator, note, "diep")


def _load_chgnet(device: str) -> Potential:
    try:
        with _quiet():
            from chgnet.model import CHGNet
            from chgnet.model.dynamics import CHGNetCalculator

            model = CHGNet.load(verbose=False, use_device=device)
            calculator = CHGNetCalculator(model, use_device=device, on_isolated_atoms="error")
    except ImportError as error:
        raise PotentialError(f"CHGNet cannot be imported ({error}): pip install chgnet") from error
    note = f"{_version('chgnet')}, weights from its wheel, {device}"
    return Potential(f"CHGNet {model.version}", calculator, note, "chgnet")


def _load_factory(name: str) -> Potential:
    module, _, attribute = name.partition(":")
    try:
        calculator = getattr(importlib.import_module(module), attribute)()
    except Exception as error:
        raise PotentialError(
            f"potential '{name}' cannot be made ({_one_line(error)}): "
            "give module:factory, a callable that returns an ASE calculator"
        ) from error
    if not hasattr(calculator, "get_potential_energy"):
        raise PotentialError(f"potential '{name}' gave {calculator!r:.60}, which is no ASE calculator")
    return Potential(name, calculator, f"calculator {type(calculator).__name__} from {name}", name)


@contextlib.contextmanager
def _quiet():
    """Swallow what the libraries print and warn while they load."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
