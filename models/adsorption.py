"""Hydrogen on a layer, as energy: ΔE_H and ΔG_H by an interatomic potential.

ΔE_H = E(layer + H) − E(layer) − ½ E(H2), all from one potential; ΔG_H ≈ ΔE_H + CORRECTION.
"""

from dataclasses import dataclass

from ase import Atoms
from ase.constraints import FixAtoms
from ase.optimize import BFGS

from models.crystals.sites import (
    Site,
    adsorption_flag,
    roomy,
    with_hydrogen,
)
from models.potentials import relax_layer, single_point

CORRECTION = 0.27  # eV, ΔE_ZPE − TΔS of adsorbed H at 300 K, 1 bar (the mission's constant)
SCAN = (-0.35, 0.0, 0.35)  # Å, heights tried about the starting one
RECONSTRUCTED = 0.1  # eV: a slab that ends lower by more, H taken off, was not the reference

@dataclass(frozen=True)
class Adsorption:
    """ΔE_H at one site.

    Attributes:
        site: where H started.
        start, end: supercell with H (last atom, tag 2) before and after relaxation.
        delta_e: eV.
        converged: whether the forces on the free atoms fell below fmax.
        flag: "" for adsorbed, else why this is no adsorption.
    """

    site: Site
    start: Atoms
    end: Atoms
    delta_e: float
    converged: bool
    flag: str


def hydrogen_energy(calculator) -> float:
    """½ E(H2) in eV from the potential, the bond relaxed."""
    molecule = Atoms("H2", [(0, 0, 0), (0, 0, 0.75)], cell=[15.0] * 3, pbc=True)
    molecule.calc = calculator
    BFGS(molecule, logfile=None).run(fmax=0.01, steps=100)
    return float(molecule.get_potential_energy()) / 2


def scan(atoms: Atoms, calculator, site: Site) -> tuple[Atoms, Atoms, float]:
    """Height scan of H over a rigid layer: (starting pose, best height, its energy in eV)."""
    start = roomy(with_hydrogen(atoms, site))
    trials = []
    for lift in SCAN:
        trial = start.copy()
        trial.positions[-1, 2] += site.face * lift
        trials.append((single_point(trial, calculator), trial))
    energy, best = min(trials, key=lambda item: item[0])
    return start, best, energy


def adsorb(
    atoms: Atoms, calculator, sites: list[Site], layer_energy: float, half_h2: float, top: int = 0, fmax=0.05, steps=60
) -> list[Adsorption]:
    """ΔE_H on the rigid layer: a height scan at every site, then H relaxed at the best of them.

    Args:
        atoms: the relaxed layer.
        layer_energy: eV of `atoms` by the same potential.
        half_h2: ½ E(H2), eV, by the same potential.
        top: how many sites are relaxed, lowest scan first; 0 for all.
    """
    scanned = [(site, *scan(atoms, calculator, site)) for site in sites]
    results = []
    for site, start, moved, _ in sorted(scanned, key=lambda item: item[3])[: top or None]:
        moved.set_constraint(FixAtoms(range(len(moved) - 1)))
        relaxed = relax_layer(moved, calculator, fmax=fmax, steps=steps, cell=False)
        end = relaxed.atoms
        end.set_constraint()
        delta_e = relaxed.energy - (len(end) - 1) // len(atoms) * layer_energy - half_h2
        results.append(Adsorption(site, start, end, delta_e, relaxed.converged, adsorption_flag(end, site.face)))
    return results


@dataclass(frozen=True)
class Released:
    """ΔE_H with everything relaxed, and what the slab does without its H.

    Attributes:
        end: the pose relaxed, H last.
        delta_e: eV, against the slab as it was.
        slab_change: eV by which the slab, H taken off and relaxed again, lies above where it began.
        converged: whether the relaxation with H did.
        flag: as adsorption_flag, or "reconstructed": the slab ended more than RECONSTRUCTED lower than it began.
    """

    end: Atoms
    delta_e: float
    slab_change: float
    converged: bool
    flag: str


def relax_and_release(pose: Atoms, face: int, calculator, slab_energy: float, half_h2: float, fmax=0.05, steps=120) -> Released:
    """Relaxes slab and H together in the cell, then takes H off and relaxes the slab again.

    Args:
        pose: slab with H as the last atom.
        face: that H sits on, +1 or −1.
        slab_energy: eV of the pose's slab, relaxed without H, by the same potential.
        half_h2: ½ E(H2), eV, by the same potential.
    """
    relaxed = relax_layer(pose, calculator, fmax=fmax, steps=steps, cell=False)
    again = relax_layer(relaxed.atoms[:-1], calculator, fmax=fmax, steps=steps, cell=False)
    change = again.energy - slab_energy
    flag = adsorption_flag(relaxed.atoms, face) or ("reconstructed" if change < -RECONSTRUCTED else "")
    return Released(relaxed.atoms, relaxed.energy - slab_energy - half_h2, change, relaxed.converged, flag)
