"""What of an evaluation takes minutes: everything by a potential, spread over processes, every result kept in
a shard.

Items are (material_id, ASE layer), results plain JSON that also holds the columns of the item's row.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from ase import Atoms

from models.crystals.gates import gates
from models.crystals.layer import NotALayer, extract_layer, min_distance_ratio, pack_atoms
from models.crystals.matching import layer_group, rmsd
from models.crystals.thresholds import OVERLAP_SCALE
from models.evaluation.settings import Settings
from models.infra.files import digest
from models.infra.jobs import run_jobs
from models.infra.shards import Shard
from models.physics.hydrogen import hydrogen_energy, oracle_delta_g
from models.physics.phonons import elastic_positivity, phonon_stability
from models.physics.potentials import Potential, load_potential, relax_layer

RELAXATION = ("fmax", "relax_steps")  # settings that a relaxed layer depends on
ADSORPTION = ("correction", "oracle", "oracle_sites")  # settings that the oracle's answer depends on
EVERYTHING = RELAXATION + ADSORPTION

_worker = {}  # of this process: its settings, calculator and ½ E(H2)


def start_worker(spec: str, checkpoint: Path | None, settings: Settings) -> None:
    """Loads a potential once a process, on one thread."""
    torch.set_num_threads(1)
    calculator = load_potential(spec, checkpoint, settings.device).calculator
    _worker.update(settings=settings, calculator=calculator, half_h2=hydrogen_energy(calculator))


def item_key(item: tuple, settings: Settings, note: str, depends: tuple[str, ...] = EVERYTHING) -> str:
    """Changes with the structure and with the settings that its result depends on.

    Args:
        note: provenance of the potential.
        depends: names of these settings.
    """
    name, atoms = item
    content = atoms if isinstance(atoms, str) else json.dumps(pack_atoms(atoms))
    values = [str(getattr(settings, field)) for field in depends]
    return f"{name}:{digest(' '.join([content, note, *values]))}"


def computed(
    task: Callable[[tuple], dict],
    items: list[tuple],
    settings: Settings,
    potential: Potential,
    checkpoint: Path | None,
    shard: Shard,
    label: str,
    depends: tuple[str, ...] = EVERYTHING,
) -> list[dict]:
    """Results of a task on every item, `settings.jobs` processes at a time; {"lost": why} where a process
    died.

    Args:
        checkpoint: of the potential, which each process loads again.
        shard: results by key; what it holds already is not computed again.
        label: of the progress bar.
        depends: names of the settings that results depend on.
    """
    keys = [item_key(item, settings, potential.note, depends) for item in items]
    arguments = (potential.spec, checkpoint, settings)
    lost = run_jobs(task, dict(zip(keys, items)), shard, settings.jobs, start_worker, arguments, label)
    return [{"lost": lost[key]} if key in lost else shard.rows[key] for key in keys]


def add_error(row: dict, text: str) -> None:
    """Appends to the row's `error`."""
    row["error"] = "; ".join(filter(None, [row.get("error", ""), text]))


def relax_one(item: tuple) -> dict:
    """{"row", "relaxed", "seconds"} of a structure as submitted, through the gates; whatever goes wrong ends
    up in the row's `error`.
    """
    _, atoms = item
    begin, result = time.process_time(), {"row": {}, "relaxed": None, "seconds": 0.0}
    if isinstance(atoms, str):
        add_error(result["row"], atoms)
        return result
    try:
        columns, layer, reason = gates(atoms)
        result["row"] |= columns
        add_error(result["row"], reason)
        if layer is not None:
            result["relaxed"] = pack_atoms(_relax_into(result["row"], layer))
    except Exception as error:  # one bad structure costs one row
        add_error(result["row"], f"{type(error).__name__}: {error}")
    return result | {"seconds": round(time.process_time() - begin, 2)}


def adsorb_one(item: tuple) -> dict:
    """{"row", "layer", "pose", "correction", "seconds"} of a relaxed layer: the oracle's columns and its best
    pose of H.
    """
    _, atoms = item
    begin, result = time.process_time(), {"row": {}, "layer": pack_atoms(atoms), "pose": None}
    try:
        result["pose"] = pack_atoms(_adsorb_into(result["row"], atoms))
    except Exception as error:
        add_error(result["row"], f"{type(error).__name__}: {error}")
    return result | {
        "correction": _worker["settings"].correction,
        "seconds": round(time.process_time() - begin, 2),
    }


def _relax_into(row: dict, layer: Atoms) -> Atoms:
    """Relaxes the layer and fills its columns."""
    settings = _worker["settings"]
    relaxed = relax_layer(layer, _worker["calculator"], settings.fmax, settings.relax_steps)
    row |= {"converged": relaxed.converged, "relax_steps": relaxed.steps}
    add_error(row, relaxed.problem and f"relaxation: {relaxed.problem}")
    try:
        atoms = extract_layer(relaxed.atoms).atoms
    except NotALayer as error:
        raise NotALayer(f"relaxation left two dimensions: {error}") from error
    if min_distance_ratio(atoms) < OVERLAP_SCALE:
        raise ValueError("relaxation ended in overlapping atoms: a hole in the potential")
    row |= {
        "energy": relaxed.energy,
        "rmsd_relaxed_A": rmsd(layer, relaxed.atoms),
        "layer_group": layer_group(atoms),
    }
    return atoms


def _oracle(atoms: Atoms) -> dict:
    settings = _worker["settings"]
    relaxed = settings.oracle == "relaxed"
    return oracle_delta_g(
        atoms, _worker["calculator"], _worker["half_h2"], settings.correction, settings.oracle_sites, relaxed
    )


def _adsorb_into(row: dict, atoms: Atoms) -> Atoms | None:
    """Fills the oracle's columns; returns its best pose."""
    found = _oracle(atoms)
    row |= {
        "delta_g_h_oracle_eV": found["delta_g_h"],
        "delta_g_h_rigid_eV": found["rigid_delta_g_h"],
        "slab_change_eV": found["slab_change"],
        "h_site": found["h_site"],
        "h_flags": flags_text(found),
    }
    if found["delta_g_h"] is None:
        reconstructs = "reconstructed" in found["relaxed_flags"]
        add_error(row, "the layer reconstructs under H" if reconstructs else "no site adsorbs H")
    return found["pose"]


def flags_text(found: dict) -> str:
    """What became of H at the rigid sites and, behind "then", with the layer free, e.g. "adsorbed:2 sunk:1
    then reconstructed:1".
    """
    parts = [_counts(found["flags"]), _counts(found["relaxed_flags"])]
    return " then ".join(filter(None, parts))


def _counts(flags: dict[str, int]) -> str:
    return " ".join(f"{flag}:{count}" for flag, count in sorted(flags.items()))


def second_opinion(item: tuple) -> dict:
    """{"delta_g_h": eV or None, "flags"} of a layer that this potential relaxes for itself first."""
    _, layer = item
    settings = _worker["settings"]
    try:
        relaxed = relax_layer(layer, _worker["calculator"], settings.fmax, settings.relax_steps)
        if relaxed.problem:
            return {"delta_g_h": None, "flags": f"relaxation: {relaxed.problem}"}
        found = _oracle(extract_layer(relaxed.atoms).atoms)
    except Exception as error:
        return {"delta_g_h": None, "flags": f"{type(error).__name__}: {error}"}
    return {"delta_g_h": found["delta_g_h"], "flags": flags_text(found)}


def dynamic_stability(item: tuple) -> dict:
    """{"phonons": …, "elastic": …} of a relaxed layer: models.physics.phonons."""
    _, layer = item
    return {
        "phonons": phonon_stability(layer, _worker["calculator"]),
        "elastic": elastic_positivity(layer, _worker["calculator"]),
    }
