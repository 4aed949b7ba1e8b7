"""Guesses at the structure of one formula, relaxed by the potential and ranked by its energy."""

from typing import NamedTuple

from ase import Atoms

from models.crystals.layer import unpack_atoms
from models.crystals.matching import Fingerprint, Register
from models.evaluation.settings import Settings
from models.evaluation.tasks import RELAXATION, computed, relax_one
from models.infra.shards import Shard
from models.physics.potentials import load_potential


class Relaxation(NamedTuple):
    """What the potential makes of a layer.

    Attributes:
        energy: eV/atom, None where it failed.
        atoms: relaxed, None where it failed.
        rmsd: Å from the layer to where it relaxes.
        seconds: of one core; 0 for a layer that stood for this one.
        problem: why it failed or did not converge.
    """

    energy: float | None
    atoms: Atoms | None
    rmsd: float | None
    seconds: float
    problem: str


def relaxations(
    structures: dict[str, Atoms], settings: Settings, shard: Shard
) -> tuple[dict[str, Relaxation], str]:
    """Each layer relaxed; of layers that are one material only the first, which stands for the others.

    Args:
        structures: name -> layer.
        settings: potential, its checkpoint, device, processes, and how far it relaxes.
        shard: keeps what was relaxed.

    Returns:
        name -> relaxation, and the name of the potential.
    """
    first, register = {}, Register()
    for name, atoms in structures.items():
        fingerprint = Fingerprint(atoms)
        first[name] = register.find(fingerprint) or name
        if first[name] == name:
            register.add(name, fingerprint)
    tasks = [(name, structures[name]) for name in structures if first[name] == name]
    potential = load_potential(settings.potential, settings.potential_checkpoint, settings.device)
    checkpoint = settings.potential_checkpoint
    results = computed(relax_one, tasks, settings, potential, checkpoint, shard, "relaxing", RELAXATION)
    relaxed = {}
    for (name, _), result in zip(tasks, results):
        relaxed[name] = _relaxation(result)
    found = {}
    for name, representative in first.items():
        one = relaxed[representative]
        found[name] = one if name == representative else one._replace(seconds=0.0)
    return found, potential.name


def _relaxation(result: dict) -> Relaxation:
    """From what relax_one says of a layer, or {"lost": why}."""
    row, atoms = result.get("row", {}), unpack_atoms(result.get("relaxed"))
    problem = result.get("lost") or row.get("error", "")
    if atoms is None:
        return Relaxation(None, None, None, result.get("seconds", 0.0), problem)
    return Relaxation(row["energy"] / len(atoms), atoms, row["rmsd_relaxed_A"], result["seconds"], problem)


def by_energy(relaxed: dict[str, Relaxation]) -> list[str]:
    """Names of what relaxed, the lowest energy first; what relaxes into the same as a lower one after all
    others.
    """
    register, different, again = Register(), [], []
    names = [name for name, one in relaxed.items() if one.energy is not None]
    for name in sorted(names, key=lambda name: relaxed[name].energy):
        fingerprint = Fingerprint(relaxed[name].atoms)
        if register.find(fingerprint) is None:
            register.add(name, fingerprint)
            different.append(name)
        else:
            again.append(name)
    return different + again
