"""Competing phases made on demand: what else would the elements of a layer form?

For one chemical system the prototypes of crystals/bulk.py are filled with its elements, brought to the volume
of no pressure by a few single points, and those that come to lie nearest to the hull (at most `budget`) are
relaxed in full. The result of a system is kept in a shard and never computed again by the same potential;
what failed is counted there with its reason and tried again when the search is made again with a larger
budget.
"""

import itertools
from collections import Counter

import numpy as np
from ase import Atoms
from pymatgen.core import Composition
from tqdm import tqdm

from models.crystals.bulk import candidates
from models.crystals.layer import min_distance_ratio, pack_atoms, unpack_atoms
from models.crystals.thresholds import OVERLAP_SCALE, STABLE
from models.infra.files import digest
from models.infra.shards import Shard
from models.physics.hull import MAX_ENERGY, RELAXATION, Hull, Phase, relax_phase

MAX_ELEMENTS = 3  # systems of more elements are searched by their subsystems: four-element prototypes are few
NEAR = 0.25  # eV/atom above the hull at the volume of no pressure; what lies higher is not relaxed
ON_HULL = 1e-6  # eV/atom: spans the hull
VOLUME_STEPS = 4  # single points a candidate; the secant's error of the energy is then below 0.01 eV/atom
FIRST_STIFFNESS = 9 * 0.5  # eV/Å^3: 9 B, the curvature of E/V in ln(length), for a bulk modulus of 80 GPa
MAX_STRAIN = 0.08  # of the cell lengths in one step


class Overlap(ValueError):
    """A phase whose atoms overlap: a hole of the potential, not a compound."""


def systems_of(formula: str) -> list[tuple[str, ...]]:
    """The chemical systems of two to MAX_ELEMENTS elements inside a formula, sorted."""
    symbols = sorted(Composition(formula).as_dict())
    sizes = range(2, min(len(symbols), MAX_ELEMENTS) + 1)
    return [system for size in sizes for system in itertools.combinations(symbols, size)]


def without_pressure(atoms: Atoms, calculator) -> tuple[Atoms, float]:
    """The bulk crystal scaled, shape and fractional coordinates kept, to where the pressure vanishes: a
    secant on ln(length) with the trace of the stress; (atoms, eV) of the lowest point seen.

    Raises:
        Overlap: the atoms come closer than OVERLAP_SCALE of their covalent radii, or the energy is absurd.
    """
    work, seen, strain = atoms.copy(), [], 0.0
    work.calc = calculator
    for _ in range(VOLUME_STEPS):
        energy = float(work.get_potential_energy())
        pull = float(np.trace(work.get_stress(voigt=False))) * work.get_volume()  # eV, dE/d ln(length)
        seen.append((strain, energy, pull))
        if abs(pull) < 0.1 * len(work):
            break
        stiffness = FIRST_STIFFNESS * work.get_volume()
        if len(seen) > 1:
            slope = (seen[-1][2] - seen[-2][2]) / (seen[-1][0] - seen[-2][0])
            stiffness = slope if slope > 0 else stiffness
        step = float(np.clip(-pull / stiffness, -MAX_STRAIN, MAX_STRAIN))
        strain += step
        work.set_cell(work.cell.array * np.exp(step), scale_atoms=True)
    strain, energy, _ = min(seen, key=lambda point: point[1])
    work = atoms.copy()
    work.set_cell(atoms.cell.array * np.exp(strain), scale_atoms=True)
    _refuse_holes(work, energy)
    return work, energy


def _refuse_holes(atoms: Atoms, energy: float) -> None:
    """Raises Overlap for what is no crystal but a hole of the potential."""
    ratio = min_distance_ratio(atoms)
    if ratio < OVERLAP_SCALE or abs(energy) > MAX_ENERGY * len(atoms):
        raise Overlap(f"atoms at {ratio:.2f} of the sum of their radii, {energy / len(atoms):.1f} eV/atom")


def search(system: tuple[str, ...], hull: Hull, calculator, budget: int, layers=()) -> dict:
    """Competing phases of one chemical system, which the hull then holds.

    Every candidate is looked at with the pressure taken out; then those that lie lowest above the hull of all
    of them are relaxed. One that spans this hull and is not relaxed competes with the energy that it has: the
    crystal exists at that energy or below.

    Args:
        system: two or more elements.
        hull: what is known so far, of the same potential; the phases found are added to it.
        budget: most full relaxations.
        layers: (name, layer) of known layers to try as prototypes beside the bulk ones.

    Returns:
        Row of a shard: `budget`; `screened`, how many candidates; `phases`, list of {name, atoms, energy,
        relaxed}; `failed`, reason -> how many.
    """
    screened, failed = screen(system, calculator, layers)
    trial = hull.copy()
    trial.add([_phase(name, atoms, energy) for name, atoms, energy in screened])
    ranked = []
    for name, atoms, energy in screened:
        above = trial.stability(str(atoms.symbols), energy).e_hull
        ranked.append((above, name, atoms, energy))
    phases = []
    for rank, (above, name, atoms, energy) in enumerate(sorted(ranked, key=lambda item: item[:2])):
        wanted = rank < budget and above < NEAR
        try:
            relaxed, energy = _relaxed(atoms, calculator) if wanted else (atoms, energy)
        except (
            Exception
        ) as error:  # an element that the potential does not know costs its phases, not the run
            failed[_reason(error)] += 1
            continue
        if wanted or above < ON_HULL:
            phase = {"name": name, "atoms": pack_atoms(relaxed), "energy": energy, "relaxed": wanted}
            phases.append(phase)
    row = {"budget": budget, "screened": len(screened), "phases": phases, "failed": dict(failed)}
    hull.add(phases_of(row))
    return row


def screen(system: tuple[str, ...], calculator, layers) -> tuple[list[tuple[str, Atoms, float]], Counter]:
    """(name, crystal without pressure, eV) of the candidates of a system, and how many failed, by reason."""
    found, failed = [], Counter()
    for name, atoms in candidates(system, layers):
        try:
            if atoms.pbc.all():
                atoms, energy = without_pressure(atoms, calculator)
            else:
                atoms, energy, _ = relax_phase(atoms, calculator, steps=VOLUME_STEPS)
            found.append((name, atoms, energy))
        except Exception as error:
            failed[_reason(error)] += 1
    return found, failed


def _relaxed(atoms: Atoms, calculator) -> tuple[Atoms, float]:
    """Raises ValueError where it does not converge, or to a hole of the potential."""
    relaxed, energy, converged = relax_phase(atoms, calculator)
    _refuse_holes(relaxed, energy)
    if not converged:
        raise ValueError("not converged")
    return relaxed, energy


def _reason(error: Exception) -> str:
    """What to count a failure under: without the numbers that make each one its own."""
    return "not converged" if str(error) == "not converged" else type(error).__name__


def _phase(name: str, atoms: Atoms, energy: float) -> Phase:
    kind = "bulk" if atoms.pbc.all() else "layer"
    return Phase(atoms.get_chemical_formula(), energy, name, kind)


def phases_of(row: dict) -> list[Phase]:
    """Phases of a shard's row."""
    return [_phase(phase["name"], unpack_atoms(phase["atoms"]), phase["energy"]) for phase in row["phases"]]


def blank_systems(hull: Hull, structures: list[tuple[str, float]]) -> list[tuple[str, ...]]:
    """The chemical systems to search: those in which the hull holds no compound, inside the structures
    (formula, eV) that it would let pass as stable. More competitors can only change the verdict of those.

    Structures with an element that has no reference phase are passed over.
    """
    found = set()
    for formula, energy in structures:
        try:
            e_hull = hull.stability(formula, energy).e_hull
        except ValueError:
            continue
        if e_hull < STABLE:
            found |= {system for system in systems_of(formula) if not hull.compounds(system)}
    return sorted(found, key=lambda system: (len(system), system))


def extend(hull: Hull, potential, structures: list[tuple[str, float]], cache: Shard, budget: int) -> Counter:
    """Searches the systems that hold nothing yet and decide about a structure (`blank_systems`).

    Args:
        hull: of the same potential; grows.
        potential: models.physics.potentials.Potential.
        structures: (formula of the cell, its energy in eV).
        cache: shard of what was searched before, by system and potential.
        budget: full relaxations a system; 0 searches nothing.

    Returns:
        What to report: systems searched now, taken from the cache, phases added, and failures by reason.
    """
    counts = Counter()
    todo = blank_systems(hull, structures) if budget else []
    for system in tqdm(todo, desc="competing phases", mininterval=2):
        name = "-".join(system)
        if hull.searched.get(name, 0) >= budget:
            continue
        key = f"{name}:{digest(potential.note + RELAXATION)}"
        row = cache.rows.get(key)
        if row and row["budget"] >= budget:
            hull.add(phases_of(row))
            counts["systems from the cache"] += 1
        else:
            row = cache.append(key, search(system, hull, potential.calculator, budget))
            counts["systems searched"] += 1
        hull.searched[name] = row["budget"]
        counts["phases added"] += len(row["phases"])
        for reason, count in row["failed"].items():
            counts[f"failed: {reason}"] += count
            hull.failed[f"{name}, {count} prototypes"] = reason
    return counts
