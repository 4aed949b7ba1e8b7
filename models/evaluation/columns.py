"""The steps of an evaluation: each takes what it needs and returns the columns that it fills, by material_id.

`layers` are relaxed layers in the convention (models.crystals.layer) by material_id, `rows` the table as far
as it is filled (models.evaluation.rows). What takes minutes is spread over processes by tasks.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
from ase import Atoms
from pymatgen.core import Composition

from models.crystals.elements import avoided, price
from models.crystals.layer import unpack_atoms
from models.crystals.matching import Fingerprint
from models.crystals.thresholds import STABLE
from models.evaluation.known import known_register, unique_of
from models.evaluation.rows import Columns, numbers
from models.evaluation.settings import Settings
from models.evaluation.tasks import (
    ADSORPTION,
    RELAXATION,
    adsorb_one,
    computed,
    delta_e_at,
    dft_key,
    dft_one,
    dft_reference,
    dynamic_stability,
    one_thread,
    relax_one,
    second_opinion,
)
from models.evaluation.verdicts import (
    E_HULL,
    GAP,
    GAP_STD,
    ORACLE,
    ORACLE_STD,
    POTENTIAL,
    is_stable,
    stability_score,
)
from models.infra.jobs import run_jobs
from models.infra.shards import Shard
from models.networks.csllm import CSLLM
from models.networks.delta_g import predict_delta_g
from models.networks.dimenet import load_dimenet
from models.networks.gap import load_gap, predict_gap
from models.networks.synthesis import load_synthesis
from models.physics.competitors import extend
from models.physics.dft import Settings as DftSettings
from models.physics.dft import estimated_seconds
from models.physics.dft_correction import DftCorrection
from models.physics.hull import hull_for
from models.physics.hull_error import spread
from models.physics.potentials import Potential, load_potential
from models.physics.pourbaix import Pourbaix, aqueous_columns

Layers = Mapping[str, Atoms]
DFT_SECONDS = 6 * 3600.0  # of one candidate: a magnetic layer of 20 atoms that relaxes


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
) -> tuple[Columns, dict[str, str]]:
    """E_form, E_hull and the stability score from the hull of the same potential; stability in water.

    Args:
        energies: eV per cell of the relaxed layers.
        cache: competing phases relaxed with the potential.

    Returns:
        the columns, and the competing phases that were left out with the reason.
    """
    known = rows[rows["material_id"].isin(energies)]
    if known.empty:
        return {}, {}
    hull, found = hull_for(potential, list(known["formula"]), settings.references, cache), {}
    cells = {}
    for name, formula, atoms in zip(known["material_id"], known["formula"], known["n_atoms"]):
        cells[name] = f"({formula}){atoms / Composition(formula).num_atoms:.0f}"
    weighed = [(cell, energies[name]) for name, cell in cells.items()]
    extend(hull, potential, weighed, cache, settings.hull_phases)
    pourbaix = Pourbaix(hull)
    for name, cell in cells.items():
        try:
            place = hull.stability(cell, energies[name])
            water = aqueous_columns(pourbaix, cell, energies[name], settings.max_pourbaix)
        except ValueError as error:  # an element without a reference phase costs this row its E_hull
            found[name] = {"error": str(error)}
            continue
        alone = f"no competing phase known (E_hull {place.e_hull:.2f} eV/atom): not called stable"
        found[name] = {
            "e_form_eV_per_atom": place.e_form,
            "e_hull_eV_per_atom": place.e_hull,
            "e_hull_std_eV_per_atom": spread(hull, cell),
            "hull_compounds": place.phases,
            "stability_score": stability_score(place.e_hull),
            "error": alone if place.e_hull < STABLE and not place.competes else None,
        } | water
    return found, hull.failed


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


def band_gap(layers: Layers, settings: Settings) -> Columns:
    """The PBE band gap that trees expect of each layer (models.networks.gap), and their disagreement."""
    means, stds = predict_gap(load_gap(settings.gap), list(layers.values()))
    found = {}
    for name, mean, std in zip(layers, means, stds):
        found[name] = {GAP: float(mean), GAP_STD: float(std)}
    return found


def to_dft(
    rows: pd.DataFrame,
    layers: Layers,
    poses: Mapping[str, Atoms],
    potential: Potential,
    settings: Settings,
    shard: Shard,
) -> tuple[Columns, str]:
    """The oracle's ΔG_H brought to DFT, with its standard deviation (models.physics.dft_correction).

    Returns:
        the columns, and in words where the correction is from or why there is none.
    """
    if settings.dft_correction is None:
        return {}, "none asked for"
    correction = DftCorrection.load(settings.dft_correction)
    if correction.potential != potential.name:
        return {}, f"none: {settings.dft_correction.name} is of {correction.potential}"
    known = rows.set_index("material_id")[[POTENTIAL, GAP, GAP_STD]]
    second = load_potential(correction.second, device=settings.device)
    items = [(name, (layers[name], pose)) for name, pose in poses.items()]
    results = computed(delta_e_at, items, settings, second, None, shard, f"poses by {second.name}", ())
    found, good = {}, {}
    for (name, _), result in zip(items, results):
        if result.get("delta_e") is None:
            found[name] = {"error": f"not brought to DFT: {result.get('error') or result['lost']}"}
        else:
            delta_g, gap, gap_std = known.loc[name]
            good[name] = (delta_g - settings.correction, result["delta_e"], gap, gap_std)
    if good:
        mean, std = correction.delta_e(*np.array(list(good.values())).T)
        for name, value, width in zip(good, mean + settings.correction, std):
            found[name] = {ORACLE: float(value), ORACLE_STD: float(width)}
    return found, f"{settings.dft_correction.name}, by {potential.name} and {second.name}"


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


def novelty(rows: pd.DataFrame, layers: Layers, settings: Settings) -> Columns:
    """unique: the most stable of its material in the set; novel: matches no template, no layer of the novelty
    database and none that the generator learned from; known_as: what it matches, and where that is from.
    """
    fingerprints = {name: Fingerprint(atoms) for name, atoms in layers.items()}
    e_hull = dict(zip(rows["material_id"], numbers(rows[E_HULL])))
    unique, found = unique_of(fingerprints, e_hull), {}
    formulas = {fingerprint.formula for fingerprint in fingerprints.values()}
    known = known_register([settings.template_db, settings.novelty_db], settings.learned, formulas)
    for name, fingerprint in fingerprints.items():
        match = known.find(fingerprint)
        found[name] = {"unique": name in unique, "novel": match is None, "known_as": match}
    return found


def element_marks(rows: pd.DataFrame) -> Columns:
    """The elements of each structure that one would not use (models.crystals.elements.AVOIDED), and what they
    cost.
    """
    found = {}
    for name, formula in zip(rows["material_id"], rows["formula"]):
        amounts = Composition(formula).as_dict() if formula else {}
        found[name] = {"avoid_elements": " ".join(avoided(amounts)), "price_usd_per_kg": price(amounts)}
    return found


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


def dft(layers: Layers, poses: Mapping[str, Atoms], settings: Settings, shard: Shard) -> Columns:
    """ΔG_H by DFT at the oracle's poses, with what --dft-relax lets move; says first how long it takes."""
    how = DftSettings(code=settings.dft_calculator)
    items = {}
    for name, layer in layers.items():
        if name in poses:
            item = name, (layer, poses[name])
            items[dft_key(item, how, settings.dft_relax)] = item
    todo = [pose for key, (_, (_, pose)) in items.items() if key not in shard.rows]
    if todo:
        seconds = sum(estimated_seconds(pose, how, settings.dft_relax) for pose in todo)
        print(f"DFT of {len(todo)} candidates: about {seconds / 60:.0f} core-minutes")
    half_h2 = dft_reference(how, shard) if items else 0.0
    task = partial(dft_one, settings=how, relax=settings.dft_relax, half_h2=half_h2)
    lost = run_jobs(task, items, shard, settings.jobs, one_thread, (), "DFT", seconds=DFT_SECONDS)
    found = {}
    for key, (name, _) in items.items():
        row = {"reason": lost[key]} if key in lost else shard.rows[key]
        if row["reason"]:
            found[name] = {"error": f"DFT: {row['reason']}"}
            continue
        found[name] = {
            "delta_g_h_dft_eV": row["delta_e_dft"] + settings.correction,
            "dft_settings": f"{how.summary}, relaxed: {settings.dft_relax}",
            "dft_seconds": row["dft_seconds"],
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
