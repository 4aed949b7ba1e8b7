"""Hydrogen on a layer, as energy: ΔE_H and ΔG_H by an interatomic potential.

ΔE_H = E(layer + H) − E(layer) − ½ E(H2), all from one potential; ΔG_H ≈ ΔE_H + CORRECTION.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from ase import Atoms
from ase.constraints import FixAtoms
from ase.optimize import BFGS

from models.crystals.layer import extract_layer
from models.crystals.sites import (
    Site,
    adsorption_flag,
    adsorption_sites,
    roomy,
    with_hydrogen,
)
from models.infra.jobs import run_jobs
from models.infra.shards import Shard
from models.physics.potentials import load_potential, relax_layer, single_point

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
    atoms: Atoms,
    calculator,
    sites: list[Site],
    layer_energy: float,
    half_h2: float,
    top: int = 0,
    fmax=0.05,
    steps=60,
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
        results.append(
            Adsorption(site, start, end, delta_e, relaxed.converged, adsorption_flag(end, site.face))
        )
    return results


@dataclass(frozen=True)
class Released:
    """ΔE_H with everything relaxed, and what the slab does without its H.

    Attributes:
        end: the pose relaxed, H last.
        delta_e: eV, against the slab as it was.
        slab_change: eV by which the slab, H taken off and relaxed again, lies above where it began.
        converged: whether the relaxation with H did.
        flag: as adsorption_flag, or "reconstructed": the slab ended more than RECONSTRUCTED lower than it
            began.
    """

    end: Atoms
    delta_e: float
    slab_change: float
    converged: bool
    flag: str


def relax_and_release(
    pose: Atoms, face: int, calculator, slab_energy: float, half_h2: float, fmax=0.05, steps=120
) -> Released:
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


LABEL_SITES = 3  # sites at which a label's H is relaxed alone, before everything is at the best of them


def oracle_delta_g(
    atoms: Atoms,
    calculator,
    half_h2: float,
    correction: float = CORRECTION,
    sites: int = 0,
    relaxed: bool = True,
):
    """ΔG_H by a potential.

    H alone is relaxed at the best sites of a height scan, which ranks them. With `relaxed`, everything is
    then relaxed at the best site, or at the next one while H does not stay; H is taken off and the slab
    relaxed again. Where the slab ends lower than it began it was no reference for any site, and there is no
    ΔG_H.

    Args:
        atoms: relaxed layer in the convention.
        half_h2: ½ E(H2) by the same potential, eV.
        sites: at how many sites H is relaxed, best height scan first; 0 for all.
        relaxed: whether the layer moves too.

    Returns:
        {"delta_g_h": eV or None where H adsorbs nowhere, "rigid_delta_g_h": eV or None, "slab_change": eV or
        None, "h_site", "pose": Atoms, "flags": {flag: count} of the rigid sites, "relaxed_flags": of those
        relaxed with the layer}.
    """
    energy = single_point(roomy(atoms), calculator)
    found = adsorb(atoms, calculator, adsorption_sites(atoms), energy, half_h2, top=sites)
    flags = Counter(_flag(result) for result in found)
    good = sorted(
        (result for result in found if _flag(result) == "adsorbed"), key=lambda result: result.delta_e
    )
    none = {"delta_g_h": None, "rigid_delta_g_h": None, "slab_change": None, "h_site": None, "pose": None}
    answer = none | {"flags": dict(flags), "relaxed_flags": {}}
    if not good:
        return answer
    answer["rigid_delta_g_h"] = good[0].delta_e + correction
    if not relaxed:
        return answer | {
            "delta_g_h": answer["rigid_delta_g_h"],
            "h_site": good[0].site.label,
            "pose": good[0].end,
        }
    tried = Counter()
    for result in good:
        cells = (len(result.end) - 1) // len(atoms)
        free = relax_and_release(result.end, result.site.face, calculator, cells * energy, half_h2)
        tried[_flag(free)] += 1
        answer |= {"slab_change": free.slab_change, "relaxed_flags": dict(tried)}
        if _flag(free) == "adsorbed":
            return answer | {
                "delta_g_h": free.delta_e + correction,
                "h_site": result.site.label,
                "pose": free.end,
            }
        if free.flag == "reconstructed":
            break
    return answer


def _flag(result) -> str:
    """What became of H: "adsorbed", "not converged", or the flag of an Adsorption or a Released."""
    return result.flag or ("adsorbed" if result.converged else "not converged")


_worker = {}


def _start_oracle(potential: str, checkpoint: Path | None, correction: float):
    torch.set_num_threads(1)
    calculator = load_potential(potential, checkpoint).calculator
    _worker.update(calculator=calculator, half_h2=hydrogen_energy(calculator), correction=correction)


def _oracle_label(atoms: Atoms) -> dict:
    calculator = _worker["calculator"]
    try:
        relaxed = relax_layer(
            atoms, calculator
        )  # another method's geometry is no reference: what it relaxes by is no adsorption
        if not relaxed.converged:
            return {"error": relaxed.problem}
        layer = extract_layer(relaxed.atoms).atoms
        found = oracle_delta_g(
            layer, calculator, _worker["half_h2"], _worker["correction"], sites=LABEL_SITES
        )
    except Exception as error:  # one bad structure costs one row
        return {"error": f"{type(error).__name__}: {error}"}
    position = None if found["pose"] is None else found["pose"].positions[-1].tolist()
    flags = {name: found[name] for name in ("flags", "relaxed_flags")}
    return {name: found[name] for name in ("delta_g_h", "h_site")} | flags | {"h_position": position}


def oracle_labels(
    layers: dict[str, Atoms],
    shard: Shard,
    potential: str,
    checkpoint: Path | None,
    correction: float,
    jobs: int,
) -> None:
    """ΔG_H of layers by a potential, which relaxes them first (oracle_delta_g); appended to the shard by key.

    Args:
        layers: key -> layer in the convention.
        potential, checkpoint: as load_potential takes them.
        jobs: processes, one thread each.
    """
    lost = run_jobs(
        _oracle_label,
        layers,
        shard,
        jobs,
        _start_oracle,
        (potential, checkpoint, correction),
        "ΔG_H by the potential",
    )
    for key, reason in lost.items():
        print(f"not labelled: {key}: {reason}")
