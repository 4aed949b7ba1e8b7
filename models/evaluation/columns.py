"""The steps of an evaluation: each takes what it needs and returns the columns that it fills, by material_id.

`layers` are relaxed layers in the convention (models.crystals.layer) by material_id, `rows` the table as far
as it is filled (models.evaluation.rows). What takes minutes is spread over processes by tasks.py.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ase.db
import pandas as pd
from ase import Atoms
from pymatgen.core import Composition

from models.crystals.layer import NotALayer, extract_layer, reduced_formula, unpack_atoms
from models.crystals.matching import Fingerprint, Register
from models.crystals.thresholds import ABSURD
from models.evaluation.metrics import E_HULL, is_stable, stability_score
from models.evaluation.rows import Columns, numbers
from models.evaluation.settings import Settings
from models.evaluation.tasks import (
    ADSORPTION,
    RELAXATION,
    adsorb_one,
    computed,
    dynamic_stability,
    relax_one,
    second_opinion,
)
from models.infra.shards import Shard
from models.networks.csllm import CSLLM
from models.networks.delta_g import predict_delta_g
from models.networks.dimenet import load_dimenet
from models.networks.synthesis import load_synthesis
from models.physics.hull import hull_for
from models.physics.potentials import Potential

Layers = Mapping[str, Atoms]


@dataclass
class Relaxation:
    """What became of the structures in the gates and in the relaxation, by material_id.

    Attributes:
        columns: of every structure.
        layers: relaxed layers of those that are two-dimensional.
        energies: eV per cell of these layers.
    """

    columns: Columns = field(default_factory=dict)
    layers: dict[str, Atoms] = field(default_factory=dict)
    energies: dict[str, float] = field(default_factory=dict)


def relaxation(
    structures: list[tuple[str, Atoms | str]], potential: Potential, settings: Settings, shard: Shard
) -> Relaxation:
    """Gates and relaxation; a structure given as text is unreadable, and the text says why."""
    checkpoint = settings.potential_checkpoint
    results = computed(relax_one, structures, settings, potential, checkpoint, shard, "relaxing", RELAXATION)
    found = Relaxation()
    for (name, _), result in zip(structures, results):
        row = {"two_d": False, "valid": False, "error": result.get("lost")} | result.get("row", {})
        energy = row.pop("energy", None)
        found.columns[name] = row
        if result.get("relaxed"):
            found.layers[name] = unpack_atoms(result["relaxed"])
            found.energies[name] = energy
    return found


def stability(
    rows: pd.DataFrame, energies: Mapping[str, float], potential: Potential, settings: Settings, cache: Shard
) -> Columns:
    """E_form, E_hull and the stability score from the hull of the same potential.

    Args:
        energies: eV per cell of the relaxed layers.
        cache: competing phases relaxed with the potential.
    """
    known = rows[rows["material_id"].isin(energies)]
    if known.empty:
        return {}
    hull, found = hull_for(potential, list(known["formula"]), settings.references, cache), {}
    for name, formula, atoms in zip(known["material_id"], known["formula"], known["n_atoms"]):
        units = atoms / Composition(formula).num_atoms
        try:
            place = hull.stability(f"({formula}){units:.0f}", energies[name])
        except ValueError as error:  # an element without a reference phase costs this row its E_hull
            found[name] = {"error": str(error)}
            continue
        absurd = f"E_hull {place.e_hull:.2f} eV/atom is absurd: not called stable"
        found[name] = {
            "e_form_eV_per_atom": place.e_form,
            "e_hull_eV_per_atom": place.e_hull,
            "hull_compounds": place.phases,
            "stability_score": stability_score(place.e_hull),
            "error": absurd if place.e_hull < ABSURD else None,
        }
    return found


def hydrogen(
    rows: pd.DataFrame, layers: Layers, potential: Potential, settings: Settings, shard: Shard
) -> tuple[Columns, dict[str, Atoms]]:
    """ΔG_H by the oracle, H and layer relaxed with the potential.

    Returns:
        the columns, and the poses of H (supercell, H as last atom) of the layers where it stays.
    """
    wanted = rows["material_id"].isin(layers)
    if settings.oracle_for == "stable":
        wanted &= is_stable(rows)
    names = list(rows["material_id"][wanted])
    if settings.oracle == "none" or not names:
        return {}, {}
    items = [(name, layers[name]) for name in names]
    checkpoint = settings.potential_checkpoint
    results = computed(adsorb_one, items, settings, potential, checkpoint, shard, "adsorbing H", ADSORPTION)
    found, poses = {}, {}
    for name, result in zip(names, results):
        found[name] = {"error": result.get("lost")} | result.get("row", {})
        if result.get("pose"):
            poses[name] = unpack_atoms(result["pose"])
    return found, poses


def dimenet(layers: Layers, settings: Settings) -> Columns:
    """ΔG_H by DimeNet++ from the starting poses of H, and the spread of its members if it is an ensemble."""
    model, found = load_dimenet(settings.dimenet, settings.device), {}
    for name, said in predict_delta_g(model, list(layers.items()), correction=settings.correction):
        found[name] = {
            "delta_g_h_dimenet_eV": said.get("delta_g_h"),
            "delta_g_h_dimenet_std_eV": said.get("delta_g_h_std"),
            "error": said.get("error"),
        }
    return found


def synthesizability(rows: pd.DataFrame, layers: Layers, settings: Settings) -> tuple[Columns, str]:
    """P_synth by CSLLM where it is given, else by the positive-unlabelled classifier.

    Returns:
        the column, and the model's name.
    """
    known = rows[rows["material_id"].isin(layers)]
    structures = [layers[name] for name in known["material_id"]]
    if settings.csllm:
        model = CSLLM.from_pretrained(
            settings.csllm, settings.csllm_base, settings.device, settings.csllm_dtype
        )
        scores = model.score(structures)
        said = f"CSLLM {settings.csllm} (trained on 3D crystals: monolayers are out of distribution)"
    else:
        model = load_synthesis(settings.synthesis)
        scores = model.predict(structures, numbers(known[E_HULL])) if structures else []
        said = "positive-unlabelled classifier on experiment flags (no CSLLM given)"
    return {name: {"p_synth": float(score)} for name, score in zip(known["material_id"], scores)}, said


def novelty(layers: Layers, settings: Settings) -> Columns:
    """unique: matches no earlier structure of the set; novel: matches nothing in the reference database;
    known_as: what it matches.
    """
    fingerprints = {name: Fingerprint(atoms) for name, atoms in layers.items()}
    reference = known_layers(settings.novelty_db, {print_.formula for print_ in fingerprints.values()})
    seen, found = Register(), {}
    for name, fingerprint in fingerprints.items():
        match = reference.find(fingerprint)
        found[name] = {
            "unique": seen.find(fingerprint) is None,
            "novel": match is None,
            "known_as": match or "",
        }
        seen.add(name, fingerprint)
    return found


def known_layers(path: Path, formulas: set[str]) -> Register:
    """The layers of a database that have one of some reduced formulas."""
    register = Register()
    for entry in ase.db.connect(path).select():
        atoms = entry.toatoms()
        if reduced_formula(atoms) in formulas:
            with contextlib.suppress(NotALayer):  # a row that is no layer cannot match one
                register.add(entry.get("uid", str(entry.id)), Fingerprint(extract_layer(atoms).atoms))
    return register


def second_delta_g(layers: Layers, second: Potential | None, settings: Settings, shard: Shard) -> Columns:
    """ΔG_H of the shortlist by a potential that made no label, which relaxes the layer for itself first."""
    if second is None or not layers:
        return {}
    label, found = f"second opinion by {second.name}", {}
    results = computed(second_opinion, list(layers.items()), settings, second, None, shard, label)
    for name, result in zip(layers, results):
        found[name] = {
            "delta_g_h_second_eV": result.get("delta_g_h"),
            "second_h_flags": result.get("flags") or result.get("lost"),
        }
    return found


def phonons(layers: Layers, potential: Potential, settings: Settings, shard: Shard) -> Columns:
    """Phonons and elastic constants of the best of the shortlist, by the evaluation's own potential."""
    if not layers:
        return {}
    items, checkpoint = list(layers.items()), settings.potential_checkpoint
    results = computed(dynamic_stability, items, settings, potential, checkpoint, shard, "phonons")
    found = {}
    for name, result in zip(layers, results):
        if "lost" in result:
            found[name] = {"phonons": "failed", "elastic": "failed"}
            continue
        found[name] = {
            "phonons": result["phonons"]["verdict"],
            "elastic": result["elastic"]["verdict"],
            "lowest_frequency_THz": result["phonons"]["lowest_frequency_THz"],
        }
    return found
