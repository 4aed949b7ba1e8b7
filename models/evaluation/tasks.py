"""What of an evaluation takes minutes: everything by a potential, spread over processes, every result kept in
a shard.

A task takes an item (material_id, ASE layer), the oracle of its process (which holds the potential) and a
models.evaluation.settings.Settings, and returns plain JSON.
"""

import ast
import json
import os
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from ase import Atoms

from models.crystals.gates import gates
from models.crystals.layer import NotALayer, extract_layer, min_distance_ratio, pack_atoms
from models.crystals.matching import layer_group, rmsd
from models.crystals.thresholds import OVERLAP_SCALE
from models.evaluation.settings import Settings
from models.infra.files import ROOT, digest
from models.infra.shards import Shard
from models.physics.dft import DftError, adsorption_record, half_hydrogen, hydrogen_on
from models.physics.dft import Settings as DftSettings
from models.physics.hydrogen import HydrogenOracle
from models.physics.parallel import OracleSettings, run_with_oracle
from models.physics.phonons import elastic_positivity, phonon_stability
from models.physics.potentials import Potential, relax_layer

RELAXATION = ("fmax", "relax_steps")  # settings that a relaxed layer depends on
ADSORPTION = ("correction", "oracle", "oracle_sites")  # settings that the oracle's answer depends on
EVERYTHING = RELAXATION + ADSORPTION
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)  # what may have a docstring


@cache
def code_version() -> str:
    """Changes with the code that results depend on, but not with its docstrings, comments and format."""
    paths = [Path(__file__)]
    for room in ("crystals", "physics"):
        paths += sorted((ROOT / "models" / room).glob("*.py"))
    trees = []
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
                node.body = node.body[1:]
        trees.append(ast.dump(tree))
    return digest(" ".join(trees))


def item_key(item: tuple, settings: Settings, note: str, depends: tuple[str, ...] = EVERYTHING) -> str:
    """Changes with the structure, with the code, and with the settings that its result depends on.

    Args:
        note: provenance of the potential.
        depends: names of these settings.
    """
    name, atoms = item
    if isinstance(atoms, str):
        content = atoms
    else:  # a structure, or several that belong together
        several = (atoms,) if isinstance(atoms, Atoms) else atoms
        content = " ".join(json.dumps(pack_atoms(one)) for one in several)
    values = [str(getattr(settings, field)) for field in depends]
    return f"{name}:{digest(' '.join([content, note, code_version(), *values]))}"


def computed(
    task: Callable,
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
    oracle = OracleSettings(
        potential.spec,
        checkpoint,
        settings.device,
        settings.correction,
        settings.oracle_sites,
        relaxed=settings.oracle == "relaxed",
    )
    work = partial(task, settings=settings)
    lost = run_with_oracle(work, dict(zip(keys, items)), shard, settings.jobs, oracle, label)
    return [{"lost": lost[key]} if key in lost else shard.rows[key] for key in keys]


def add_error(row: dict, text: str) -> None:
    """Appends to the row's `error`."""
    row["error"] = "; ".join(filter(None, [row.get("error", ""), text]))


def relax_one(item: tuple, oracle: HydrogenOracle, settings: Settings) -> dict:
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
            result["relaxed"] = pack_atoms(_relax_into(result["row"], layer, oracle, settings))
    except Exception as error:  # one bad structure costs one row
        add_error(result["row"], f"{type(error).__name__}: {error}")
    return result | {"seconds": round(time.process_time() - begin, 2)}


def adsorb_one(item: tuple, oracle: HydrogenOracle, settings: Settings) -> dict:
    """{"row", "layer", "pose", "correction", "seconds"} of a relaxed layer: the oracle's columns and its best
    pose of H.
    """
    _, atoms = item
    begin, result = time.process_time(), {"row": {}, "layer": pack_atoms(atoms), "pose": None}
    try:
        result["pose"] = pack_atoms(_adsorb_into(result["row"], atoms, oracle))
    except Exception as error:
        add_error(result["row"], f"{type(error).__name__}: {error}")
    return result | {
        "correction": oracle.correction,
        "seconds": round(time.process_time() - begin, 2),
    }


def _relax_into(row: dict, layer: Atoms, oracle: HydrogenOracle, settings: Settings) -> Atoms:
    """Relaxes the layer and fills its columns."""
    relaxed = relax_layer(layer, oracle.calculator, settings.fmax, settings.relax_steps)
    row |= {"converged": relaxed.converged, "relax_steps": relaxed.steps}
    add_error(row, relaxed.problem and f"relaxation: {relaxed.problem}")
    try:
        atoms = extract_layer(relaxed.atoms).atoms
    except NotALayer as error:
        raise NotALayer(f"relaxation left two dimensions: {error}") from error
    if min_distance_ratio(atoms) < OVERLAP_SCALE:
        cause = "" if row["min_dist_ratio"] < OVERLAP_SCALE else ": a hole in the potential"
        raise ValueError(f"relaxation ended in overlapping atoms{cause}")
    row |= {
        "energy": relaxed.energy,
        "rmsd_relaxed_A": rmsd(layer, relaxed.atoms),
        "layer_group": layer_group(atoms),
    }
    return atoms


def _adsorb_into(row: dict, atoms: Atoms, oracle: HydrogenOracle) -> Atoms | None:
    """Fills the oracle's columns; returns its best pose."""
    found = oracle.delta_g(atoms)
    row |= {
        "delta_g_h_potential_eV": found.delta_g_h,
        "delta_g_h_oracle_eV": found.delta_g_h,
        "delta_g_h_rigid_eV": found.rigid_delta_g_h,
        "slab_change_eV": found.slab_change,
        "h_site": found.site,
        "h_flags": found.flags_text,
    }
    if found.delta_g_h is None:
        add_error(row, "the layer reconstructs under H" if found.reconstructed else "no site adsorbs H")
    return found.pose


def second_opinion(item: tuple, oracle: HydrogenOracle, settings: Settings) -> dict:
    """{"delta_g_h": eV or None, "flags"} of a layer that this potential relaxes for itself first."""
    _, layer = item
    try:
        own, _ = oracle.own_layer(layer, settings.fmax, settings.relax_steps)
        found = oracle.delta_g(own)
    except Exception as error:  # one bad structure costs one row
        return {"delta_g_h": None, "flags": f"{type(error).__name__}: {error}"}
    return {"delta_g_h": found.delta_g_h, "flags": found.flags_text}


def delta_e_at(item: tuple, oracle: HydrogenOracle, settings: Settings) -> dict:
    """{"delta_e": eV or None, "error"} of a (material_id, (layer, pose)), nothing relaxed."""
    _, (layer, pose) = item
    try:
        return {"delta_e": oracle.delta_e_at(layer, pose)}
    except Exception as error:  # one bad structure costs one row
        return {"delta_e": None, "error": f"{type(error).__name__}: {error}"}


def dynamic_stability(item: tuple, oracle: HydrogenOracle, settings: Settings) -> dict:
    """{"phonons": …, "elastic": …} of a relaxed layer: models.physics.phonons."""
    _, layer = item
    return {
        "phonons": phonon_stability(layer, oracle.calculator),
        "elastic": elastic_positivity(layer, oracle.calculator),
    }


def dft_key(item: tuple, settings: DftSettings, relax: str) -> str:
    """Changes with layer, pose and settings but not with the code: DFT is too expensive for that."""
    name, (layer, pose) = item
    content = json.dumps([pack_atoms(layer), pack_atoms(pose)])
    return f"{name}:{digest(' '.join([content, settings.key, relax]))}"


def one_thread() -> None:
    """Has the BLAS that DFT will load use one thread in this process."""
    os.environ["OMP_NUM_THREADS"] = "1"


def dft_one(item: tuple, settings: DftSettings, relax: str, half_h2: float) -> dict:
    """ΔE_H of a (material_id, (layer, pose)) by DFT.

    Returns:
        a record as in data/shards/dft.jsonl; its "reason" says why there are no numbers.
    """
    name, (layer, pose) = item
    row = {"material_id": name, "settings": settings.key, "relax": relax}
    try:
        found = hydrogen_on(layer, pose, settings, half_h2, relax)
    except DftError as error:  # one that does not converge costs one row
        return row | {"reason": str(error)}
    return row | adsorption_record(found, layer, pose, half_h2) | {"reason": ""}


def dft_reference(settings: DftSettings, shard: Shard) -> float:
    """½ E(H2) by DFT in eV, kept in the shard."""
    key = f"H2|{settings.key}"
    if key not in shard.rows:
        half_h2, bond = half_hydrogen(settings)
        shard.append(key, {"settings": settings.key, "half_h2": half_h2, "bond": bond})
    return shard.rows[key]["half_h2"]
