"""ΔE_H by density functional theory: PBE through GPAW, or whatever ASE calculator a factory gives.

ΔE_H = E(slab + H) − N · E(primitive slab) − ½ E(H2), all three with the same settings. GPAW (Mortensen et
al., J. Chem. Phys. 160, 092503 (2024)) is not among the requirements: `make dft` installs it, and only what
is called here needs it.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.constraints import FixAtoms
from ase.optimize import BFGS

from models.crystals.layer import pack_atoms
from models.crystals.sites import spaced_supercell
from models.infra.files import digest

# μB an atom starts with, high spin. Elements that stay non-magnetic in nearly all layers are left out: spin
# costs three times as much.
MAGNETIC = {"V": 2.0, "Cr": 3.0, "Mn": 4.0, "Fe": 3.0, "Co": 2.0, "Ni": 1.0}
HYDROGEN_MOMENT = 1.0  # μB that H starts with where there is spin
WEAK = 2.0  # eV: H bound more weakly than this to a layer without spin may keep its own (docs/dft.md)
ATTEMPTS = 2  # at a density that converges, the second one gentler
H2_BOX = 10.0  # Å, edge of the cube of the H2 molecule
MISSING = "GPAW is not installed: `make dft` installs it (conda-forge's gpaw package works as well)"
# Processor seconds of slab and pose, measured on the data set (docs/dft.md): of an atom of the pose without
# spin, the factor of spin, and that of a relaxation.
SECONDS_PER_ATOM, SPIN_FACTOR, RELAX_FACTOR = 10.0, 3.0, {"none": 1.0, "h": 3.0, "all": 6.0}


class DftError(RuntimeError):
    """A calculation that cannot be had or did not converge; the message is one line."""


@dataclass(frozen=True)
class Settings:
    """What two energies must share before one is subtracted from the other.

    Attributes:
        code: "gpaw", or "module:factory" of another calculator.
        xc: exchange-correlation functional.
        mode: "pw", plane waves up to `cutoff`, or an LCAO basis by name, e.g. "dzp".
        cutoff: eV.
        kpoint_length: Å; along each in-plane lattice vector of the supercell there are at least this
            over its length k-points.
        smearing: eV, width of the Fermi distribution; energies are extrapolated to zero width.
        vacuum: Å between the outermost nuclei of slab + H and the next image; the slab alone stands in
            the same cell.
        spin: "magnetic", spin-polarised where an element of MAGNETIC is in the layer, and the pose once more
            with spin where H is bound weakly (WEAK); "all"; or "none".
        tolerance: of the density, in electrons per valence electron; that of the energy and the states
            follows it.
    """

    code: str = "gpaw"
    xc: str = "PBE"
    mode: str = "pw"
    cutoff: float = 350.0
    kpoint_length: float = 24.0
    smearing: float = 0.1
    vacuum: float = 12.0
    spin: str = "magnetic"
    tolerance: float = 5e-3

    @property
    def key(self) -> str:
        """8 hex digits that depend on every setting; part of the key of every record."""
        return digest(repr(sorted(asdict(self).items())))[:8]

    @property
    def summary(self) -> str:
        """The settings in a few words."""
        basis = f"plane waves {self.cutoff:g} eV" if self.mode == "pw" else self.mode
        return f"{self.xc}, {basis}, k-points {self.kpoint_length:g} Å, {self.code}"

    def polarised(self, symbols) -> bool:
        """Whether a layer of these elements is calculated with spin."""
        return self.spin == "all" or self.spin == "magnetic" and not MAGNETIC.keys().isdisjoint(symbols)


@dataclass(frozen=True)
class Energy:
    """A converged single point.

    Attributes:
        energy: eV per cell, extrapolated to zero smearing.
        moment: μB per cell, 0 without spin.
        gap: eV between the states next to the Fermi level on the k-points taken; None where the
            calculator does not tell.
        attempts: how many it took, of ATTEMPTS.
        seconds: of processor time, failed attempts included.
    """

    energy: float
    moment: float
    gap: float | None
    attempts: int
    seconds: float


def missing(settings: Settings) -> str:
    """Why these settings cannot be calculated here, in one line; empty if they can."""
    try:
        calculator_factory(settings.code)
    except DftError as error:
        return str(error)
    return MISSING if settings.code == "gpaw" and importlib.util.find_spec("gpaw") is None else ""


def estimated_seconds(pose: Atoms, settings: Settings, relax: str = "none") -> float:
    """Processor time that slab and pose will take, s: rough, and rather too much than too little."""
    spin = SPIN_FACTOR if settings.polarised(pose.symbols) else 1.0
    return SECONDS_PER_ATOM * len(pose) * spin * RELAX_FACTOR[relax]


def core_seconds() -> float:
    """Processor time of this process and of those it waited for, s."""
    return sum(os.times()[:4])


def kpoint_grid(cell: np.ndarray, length: float) -> tuple[int, int, int]:
    """Γ-centred grid of a layer's cell [3, 3] Å: along a and b the least number of points with n · |a| >=
    length Å.
    """
    along_a, along_b = np.linalg.norm(cell[:2], axis=1)
    return int(np.ceil(length / along_a - 1e-6)), int(np.ceil(length / along_b - 1e-6)), 1


def folded_kpoints(transform: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Points of the primitive cell that fold onto a supercell's grid, so that their errors cancel in ΔE_H.

    Args:
        transform: [2, 2] integers, rows of the supercell's in-plane lattice in the primitive one's.
        grid: of the supercell, Γ-centred.

    Returns:
        [N · n1 · n2, 3] in the primitive reciprocal lattice, in (−½, ½].
    """
    determinant = int(round(abs(np.linalg.det(transform))))
    inverse = np.linalg.inv(transform)
    points = set()
    for a in range(grid[0] * determinant):
        for b in range(grid[1] * determinant):
            # A supercell's k · A = T (k · a): every reciprocal lattice vector of the supercell is a point
            # of its own here.
            point = inverse @ [a / grid[0], b / grid[1]]
            point -= np.ceil(point - 0.5 - 1e-7)
            points.add((round(point[0], 9) + 0.0, round(point[1], 9) + 0.0, 0.0))
    found = np.array(sorted(points))
    assert len(found) == determinant * grid[0] * grid[1], (transform, grid, len(found))
    return found


def supercell_transform(host: Atoms, pose: Atoms) -> np.ndarray:
    """[2, 2] integers that make the pose's in-plane lattice from the host's.

    Raises:
        DftError: the pose is on no supercell of this host.
    """
    exact = pose.cell.array[:2, :2] @ np.linalg.inv(host.cell.array[:2, :2])
    if np.abs(exact - np.round(exact)).max() < 0.01:
        return np.round(exact).astype(int)
    # A CIF turns the lattice: the supercell that the oracle makes must have the same lengths and angle.
    supercell = spaced_supercell(host)
    if np.abs(supercell.cell.cellpar()[[0, 1, 5]] - pose.cell.cellpar()[[0, 1, 5]]).max() < 0.05:
        return np.round(supercell.cell.array[:2, :2] @ np.linalg.inv(host.cell.array[:2, :2])).astype(int)
    raise DftError("the pose is on no supercell of the host")


def boxed(atoms: Atoms, height: float) -> Atoms:
    """A copy in a cell of `height` Å along z, centred and periodic all round, as plane waves want it."""
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=True)
    copy.cell[2] = (0, 0, height)
    copy.positions[:, 2] += height / 2 - (copy.positions[:, 2].max() + copy.positions[:, 2].min()) / 2
    return copy


def gpaw_calculator(settings: Settings, kpoints, spin: bool, attempt: int = 0) -> BaseCalculator:
    """GPAW set up by the settings.

    Args:
        kpoints: grid (n1, n2, n3), Γ-centred, or points [K, 3].
        spin: whether the density is spin-polarised.
        attempt: 0, or 1 for slow mixing. The eigensolver is Davidson's in both: residual minimisation is a
            third faster on gapped layers and did not converge on metals (SnTe2, NbSI).

    Raises:
        DftError: GPAW is not installed.
    """
    if importlib.util.find_spec("gpaw") is None:
        raise DftError(MISSING)
    import gpaw

    options = {}
    if settings.mode == "pw":
        mode = {"name": "pw", "ecut": settings.cutoff}
        options["eigensolver"] = "davidson"
    else:
        mode = "lcao"
        options |= {"basis": settings.mode, "h": 0.18}
    if attempt:
        options["mixer"] = {"name": "pulay", "beta": 0.02, "nmaxold": 5, "weight": 100.0}
    points = {"size": kpoints, "gamma": True} if isinstance(kpoints, tuple) else kpoints
    if not isinstance(kpoints, tuple):
        options["symmetry"] = {"point_group": False}  # folded points need not have the crystal's symmetry
    return gpaw.GPAW(
        mode=mode,
        xc=settings.xc,
        kpts=points,
        spinpol=spin,
        occupations={"name": "fermi-dirac", "width": settings.smearing},
        convergence={
            # 5e-3 ends within 0.2 meV of a fifth of it, in three quarters of the time
            "density": settings.tolerance,
            "energy": settings.tolerance / 16,  # eV per valence electron
            "eigenstates": settings.tolerance / 50,  # eV² per valence electron
        },
        maxiter=150 if attempt else 60,
        txt=None,
        **options,
    )


def calculator_factory(name: str) -> Callable[[Settings, object, bool, int], BaseCalculator]:
    """The function behind `--dft-calculator`: gpaw_calculator for "gpaw", else `module:factory` with the
    same arguments.

    Raises:
        DftError: there is no such factory.
    """
    if name == "gpaw":
        return gpaw_calculator
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DftError(
            f"--dft-calculator {name} ({error}): give module:factory, see gpaw_calculator"
        ) from error


def converge(atoms: Atoms, settings: Settings, kpoints, spin: bool) -> tuple[Energy, Atoms]:
    """Single point; where it does not converge, once more with gentle mixing.

    Returns:
        The energy, and the atoms with the calculator that converged.

    Raises:
        DftError: both attempts failed; the message says how.
    """
    make, begin, reasons = calculator_factory(settings.code), core_seconds(), []
    for attempt in range(ATTEMPTS):
        work = atoms.copy()
        if spin:
            moments = MAGNETIC | {"H": HYDROGEN_MOMENT}
            work.set_initial_magnetic_moments([moments.get(symbol, 0.0) for symbol in work.symbols])
        work.calc = make(settings, kpoints, spin, attempt)
        try:
            energy = float(work.get_potential_energy())
        except (DftError, TimeoutError):
            raise
        except Exception as error:  # every code has its own way to say that the density did not converge
            reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:100]}")
            continue
        if not np.isfinite(energy):
            reasons.append("energy is not finite")
            continue
        moment = float(work.get_magnetic_moment()) if spin else 0.0
        return Energy(energy, moment, _gap(work.calc), attempt + 1, core_seconds() - begin), work
    raise DftError("; with gentle mixing: ".join(reasons))


def _gap(calculator) -> float | None:
    """eV between the highest state below the Fermi level and the lowest above it."""
    try:
        fermi = calculator.get_fermi_level()
        kpoints, spins = len(calculator.get_ibz_k_points()), calculator.get_number_of_spins()
        levels = np.concatenate(
            [calculator.get_eigenvalues(kpt=k, spin=s) for k in range(kpoints) for s in range(spins)]
        )
    except (AttributeError, NotImplementedError):
        return None
    below, above = levels[levels <= fermi], levels[levels > fermi]
    return float(above.min() - below.max()) if len(below) and len(above) else None


def half_hydrogen(settings: Settings) -> tuple[float, float]:
    """(½ E(H2) in eV, bond length in Å), the bond relaxed."""
    molecule = Atoms("H2", [(0, 0, 0), (0, 0, 0.75)], cell=[H2_BOX] * 3, pbc=True)
    molecule.center()
    molecule.calc = calculator_factory(settings.code)(settings, (1, 1, 1), False, 0)
    BFGS(molecule, logfile=None).run(fmax=0.02, steps=20)
    return float(molecule.get_potential_energy()) / 2, float(molecule.get_distance(0, 1))


@dataclass(frozen=True)
class HydrogenEnergy:
    """ΔE_H of a pose by DFT.

    Attributes:
        delta_e: eV.
        slab: of the primitive layer.
        pose: of the supercell with H.
        cells: primitive cells in the supercell.
        grid: k-points of the supercell.
        spin: whether both were spin-polarised; the pose alone where its moment is not 0.
        end: the pose, where its H or all of it was relaxed.
    """

    delta_e: float
    slab: Energy
    pose: Energy
    cells: int
    grid: tuple[int, int, int]
    spin: bool
    end: Atoms | None


def hydrogen_on(
    host: Atoms,
    pose: Atoms,
    settings: Settings,
    half_h2: float,
    relax: str = "none",
    slab: Energy | None = None,
) -> HydrogenEnergy:
    """ΔE_H of one pose by DFT.

    Args:
        host: the primitive layer, relaxed without H.
        pose: its supercell with H as the last atom.
        half_h2: ½ E(H2), eV, with the same settings.
        relax: "none", "h" for H alone, or "all", to 0.05 eV/Å; the slab itself stays as it is.
        slab: its energy in the same cell height and on the same points, if it is known from another pose.

    Returns:
        HydrogenEnergy.

    Raises:
        DftError: no supercell, or no convergence.
    """
    transform = supercell_transform(host, pose)
    cells = int(round(abs(np.linalg.det(transform))))
    height = float(np.ptp(pose.positions[:, 2])) + settings.vacuum
    grid = kpoint_grid(pose.cell.array, settings.kpoint_length)
    spin = settings.polarised(host.symbols)
    if slab is None:
        diagonal = not transform[0, 1] and not transform[1, 0]
        points = (
            (grid[0] * abs(transform[0, 0]), grid[1] * abs(transform[1, 1]), 1)
            if diagonal
            else folded_kpoints(transform, grid)
        )
        slab, _ = converge(boxed(host, height), settings, points, spin)
    energy, work = converge(boxed(pose, height), settings, grid, spin)
    if not spin and settings.spin == "magnetic" and energy.energy - cells * slab.energy - half_h2 > WEAK:
        polarised, polarised_work = converge(boxed(pose, height), settings, grid, True)
        seconds = energy.seconds + polarised.seconds
        if polarised.energy < energy.energy:
            energy, work = polarised, polarised_work
        energy = replace(energy, seconds=seconds)
    end = None
    if relax != "none":
        begin = core_seconds()
        if relax == "h":
            work.set_constraint(FixAtoms(range(len(work) - 1)))
        if not BFGS(work, logfile=None).run(fmax=0.05, steps=30):
            raise DftError("the pose did not relax in 30 steps")
        moment = float(work.get_magnetic_moment()) if energy.moment else 0.0
        seconds = energy.seconds + core_seconds() - begin
        energy = Energy(float(work.get_potential_energy()), moment, energy.gap, energy.attempts, seconds)
        end = Atoms(work.numbers, work.positions, cell=work.cell.array, pbc=(True, True, False))
    delta_e = energy.energy - cells * slab.energy - half_h2
    return HydrogenEnergy(delta_e, slab, energy, cells, grid, spin, end)


def adsorption_record(found: HydrogenEnergy, host: Atoms, pose: Atoms, half_h2: float) -> dict:
    """What is kept of a calculation, as plain JSON: energies in eV, moments in μB a cell, packed atoms."""
    slab, with_h = found.slab, found.pose
    row = {
        "host": pack_atoms(host),
        "pose": pack_atoms(pose),
        "delta_e_dft": round(found.delta_e, 5),
        "energies": {
            "slab": round(slab.energy, 5),
            "pose": round(with_h.energy, 5),
            "half_h2": round(half_h2, 5),
        },
        "cells": found.cells,
        "moments": {"slab": round(slab.moment, 3), "pose": round(with_h.moment, 3)},
        "gaps": {
            "slab": slab.gap and round(slab.gap, 3),
            "pose": with_h.gap and round(with_h.gap, 3),
        },
        "attempts": {"slab": slab.attempts, "pose": with_h.attempts},
        "spin": found.spin,
        "grid": found.grid,
        "dft_seconds": round(slab.seconds + with_h.seconds, 1),
    }
    if found.end is not None:
        row["relaxed_pose"] = pack_atoms(found.end)
    return row
