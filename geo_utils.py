"""The evaluator: one path from a CIF to a row of metrics, for our structures and for anybody's.

Gates (2D, valid), relaxation and E_form / E_hull by the potential, ΔG_H by DimeNet++ and by the potential
with H and layer relaxed, synthesizability, uniqueness and novelty; a shortlist with a second potential's
opinion, phonons and DFT inputs; then aggregates with intervals beside nulls and baselines, tables, figures
and a report.
"""

import contextlib
import json
import math
import platform
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import ase.db
import numpy as np
from ase import Atoms
from ase.io import read
from pymatgen.core import Composition

from models.crystals.layer import NotALayer, extract_layer, reduced_formula, unpack_atoms
from models.crystals.matching import Fingerprint, Register
from models.crystals.sites import carries_off
from models.crystals.thresholds import ABSURD
from models.evaluation import figures
from models.evaluation.dft_inputs import write_handoff
from models.evaluation.metrics import aggregate, compare, flat, is_stable, sensitivity, table, value
from models.evaluation.report import write_html
from models.evaluation.settings import Settings, settings_from
from models.evaluation.shortlist import agreement, oracle_error, rank, rank_into
from models.evaluation.tasks import (
    ADSORPTION,
    RELAXATION,
    add_error,
    adsorb_one,
    computed,
    dynamic_stability,
    relax_one,
    second_opinion,
)
from models.infra.files import file_hash, read_rows, write_json, write_rows
from models.infra.shards import Shard
from models.networks.csllm import CSLLM
from models.networks.delta_g import predict_delta_g
from models.networks.dimenet import load_dimenet
from models.networks.synthesis import load_synthesis
from models.physics.hull import hull_for
from models.physics.potentials import Potential, load_potential

COLUMNS = [
    "material_id",
    "formula",
    "n_atoms",
    "layer_group",
    "components",
    "periodic_directions",
    "verdict",
    "vacuum_A",
    "thickness_A",
    "two_d",
    "valid",
    "smact_valid",
    "min_dist_ratio",
    "converged",
    "relax_steps",
    "e_form_eV_per_atom",
    "e_hull_eV_per_atom",
    "hull_compounds",
    "rmsd_relaxed_A",
    "delta_g_h_dimenet_eV",
    "delta_g_h_dimenet_std_eV",
    "delta_g_h_oracle_eV",
    "delta_g_h_rigid_eV",
    "slab_change_eV",
    "h_site",
    "h_flags",
    "h_carries_off",
    "stability_score",
    "p_synth",
    "unique",
    "novel",
    "known_as",
    "p_active",
    "candidate_class",
    "rank",
    "pareto",
    "delta_g_h_second_eV",
    "second_h_flags",
    "phonons",
    "lowest_frequency_THz",
    "elastic",
    "error",
]
SHORTLIST_COLUMNS = [
    "rank",
    "material_id",
    "formula",
    "layer_group",
    "candidate_class",
    "p_active",
    "pareto",
    "delta_g_h_oracle_eV",
    "delta_g_h_dimenet_eV",
    "delta_g_h_dimenet_std_eV",
    "delta_g_h_second_eV",
    "h_site",
    "e_hull_eV_per_atom",
    "p_synth",
    "phonons",
    "lowest_frequency_THz",
    "elastic",
]
SAME = (
    "potential",
    "delta_g_h_correction_eV",
    "checkpoints",
    "oracle",
)  # of the provenance of two sets that may be compared
NULLS = ("random_baseline", "substitution")  # sets that no model had a hand in


@dataclass
class Evaluation:
    """Rows of a set, the relaxed layers and the poses of H behind them, and where the numbers come from."""

    rows: list[dict]
    relaxed: dict[str, Atoms] = field(default_factory=dict)
    poses: dict[str, Atoms] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)

    def shortlist(self, count: int) -> list[dict]:
        """The `count` best rows (models.evaluation.shortlist.rank), or fewer."""
        return rank(self.rows)[:count]


def read_cifs(folder: Path) -> list[tuple[str, Atoms | str]]:
    """(material_id, structure) of every CIF in a folder, sorted; an unreadable file gives its error as text.

    Raises:
        FileNotFoundError: the folder holds no CIF.
    """
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() == ".cif")
    if not paths:
        raise FileNotFoundError(f"{folder} holds no *.cif: give a folder of CIFs with --cifs")
    found = []
    for path in paths:
        try:
            atoms = read(path)
            found.append(
                (path.stem, "partial occupancy: not one ordered structure" if is_disordered(atoms) else atoms)
            )
        except Exception as error:
            found.append((path.stem, f"unreadable CIF: {type(error).__name__}: {error}"))
    return found


def is_disordered(atoms: Atoms) -> bool:
    """Whether a CIF puts several species, or less than one atom, on a site."""
    sites = atoms.info.get("occupancy", {}).values()
    return any(len(site) > 1 or min(site.values()) < 0.999 for site in sites)


def blank_row(name: str, error: str = "") -> dict:
    """A row with nothing computed."""
    return dict.fromkeys(COLUMNS, "") | {"material_id": name, "two_d": False, "valid": False, "error": error}


def stability_score(e_hull: float) -> float:
    """exp(−max(0, E_form − E_stable^ref)), energies in eV/atom."""
    return math.exp(-max(0.0, e_hull))


def dimenet_into(rows: list[dict], relaxed: dict, settings: Settings):
    """ΔG_H by DimeNet++ from the starting poses of H, and the spread of its members where it is an ensemble."""
    model = load_dimenet(settings.dimenet, settings.device)
    predicted = dict(predict_delta_g(model, list(relaxed.items()), correction=settings.correction))
    for row in rows:
        found = predicted.get(row["material_id"], {})
        spread = found.get("delta_g_h_std")
        row |= {
            "delta_g_h_dimenet_eV": found.get("delta_g_h", ""),
            "delta_g_h_dimenet_std_eV": "" if spread is None else spread,
        }
        add_error(row, found.get("error", ""))


def stability_into(rows: list[dict], potential: Potential, settings: Settings, cache: Shard):
    """E_form, E_hull and the stability score from the hull of the same potential."""
    energies = [row for row in rows if row.get("energy") is not None]
    hull = (
        hull_for(potential, [row["formula"] for row in energies], settings.references, cache)
        if energies
        else None
    )
    for row in energies:
        try:
            units = row["n_atoms"] / Composition(row["formula"]).num_atoms
            stability = hull.stability(f"({row['formula']}){units:.0f}", row.pop("energy"))
        except ValueError as error:
            add_error(row, str(error))
            continue
        if stability.e_hull < ABSURD:
            add_error(row, f"E_hull {stability.e_hull:.2f} eV/atom is absurd: not called stable")
        row |= {
            "e_form_eV_per_atom": stability.e_form,
            "e_hull_eV_per_atom": stability.e_hull,
            "hull_compounds": stability.phases,
            "stability_score": stability_score(stability.e_hull),
        }


def synthesis_into(rows: list[dict], relaxed: dict, settings: Settings) -> str:
    """P_synth by CSLLM where it is given, else by the positive-unlabelled classifier; returns the model's
    name.
    """
    rows = [row for row in rows if row["material_id"] in relaxed]
    structures = [relaxed[row["material_id"]] for row in rows]
    if settings.csllm:
        model = CSLLM.from_pretrained(
            settings.csllm, settings.csllm_base, settings.device, settings.csllm_dtype
        )
        scores, name = (
            model.score(structures),
            f"CSLLM {settings.csllm} (trained on 3D crystals: monolayers are out of distribution)",
        )
    else:
        model = load_synthesis(settings.synthesis)
        e_hull = [
            math.nan if value(row, "e_hull_eV_per_atom") is None else row["e_hull_eV_per_atom"]
            for row in rows
        ]
        scores = model.predict(structures, np.array(e_hull, float)) if rows else []
        name = "positive-unlabelled classifier on experiment flags (no CSLLM given)"
    for row, score in zip(rows, scores):
        row["p_synth"] = "" if math.isnan(score) else float(score)
    return name


def novelty_into(rows: list[dict], relaxed: dict, settings: Settings):
    """unique: matches no earlier structure of the set; novel: matches nothing in the reference database;
    known_as: what it matches.
    """
    formulas = {Fingerprint(atoms).formula for atoms in relaxed.values()}
    reference, seen = Register(), Register()
    for entry in ase.db.connect(settings.novelty_db).select():
        if reduced_formula(entry.toatoms()) in formulas:
            with contextlib.suppress(NotALayer):  # a row that is no layer cannot match one
                reference.add(
                    entry.get("uid", str(entry.id)), Fingerprint(extract_layer(entry.toatoms()).atoms)
                )
    for row in rows:
        atoms = relaxed.get(row["material_id"])
        if atoms is None:
            continue
        fingerprint = Fingerprint(atoms)
        match = reference.find(fingerprint)
        row |= {"unique": seen.find(fingerprint) is None, "novel": match is None, "known_as": match or ""}
        seen.add(row["material_id"], fingerprint)


def oracle_into(
    rows: list[dict], relaxed: dict, potential: Potential, settings: Settings, shard: Shard
) -> dict[str, Atoms]:
    """ΔG_H by the potential, H and layer relaxed; the poses of H by material_id."""
    wanted = [
        row
        for row in rows
        if row["material_id"] in relaxed and (settings.oracle_for == "all" or is_stable(row))
    ]
    if settings.oracle == "none" or not wanted:
        return {}
    items = [(row["material_id"], relaxed[row["material_id"]]) for row in wanted]
    found = computed(
        adsorb_one,
        items,
        settings,
        potential,
        settings.potential_checkpoint,
        shard,
        "adsorbing H",
        ADSORPTION,
    )
    for row, result in zip(wanted, found):
        columns = dict(result.get("row", {}))
        add_error(row, result.get("lost", "") or columns.pop("error", ""))
        row |= columns
    poses = {
        row["material_id"]: unpack_atoms(result["pose"])
        for row, result in zip(wanted, found)
        if result.get("pose")
    }
    for row in wanted:
        if row["material_id"] in poses:
            row["h_carries_off"] = carries_off(poses[row["material_id"]])
            add_error(
                row, "H takes an atom of the layer along: not called active" if row["h_carries_off"] else ""
            )
    return poses


def second_into(evaluation: Evaluation, second: Potential | None, settings: Settings, shard: Shard):
    """ΔG_H of the shortlist by a potential that made no label."""
    chosen = evaluation.shortlist(settings.shortlist)
    if second is None or not chosen:
        return
    items = [(row["material_id"], evaluation.relaxed[row["material_id"]]) for row in chosen]
    label = f"second opinion by {second.name}"
    for row, found in zip(chosen, computed(second_opinion, items, settings, second, None, shard, label)):
        row["delta_g_h_second_eV"] = "" if found.get("delta_g_h") is None else found["delta_g_h"]
        row["second_h_flags"] = found.get("flags") or found["lost"]


def phonons_into(evaluation: Evaluation, potential: Potential, settings: Settings, shard: Shard):
    """Phonons and elastic constants of the best of the shortlist, by the evaluation's own potential."""
    chosen = evaluation.shortlist(settings.phonons)
    items = [(row["material_id"], evaluation.relaxed[row["material_id"]]) for row in chosen]
    found = (
        computed(
            dynamic_stability, items, settings, potential, settings.potential_checkpoint, shard, "phonons"
        )
        if items
        else []
    )
    for row, result in zip(chosen, found):
        if "lost" in result:
            row["phonons"] = row["elastic"] = "failed"
            continue
        lowest = result["phonons"]["lowest_frequency_THz"]
        row |= {
            "phonons": result["phonons"]["verdict"],
            "elastic": result["elastic"]["verdict"],
            "lowest_frequency_THz": "" if lowest is None else lowest,
        }


def needed_files(settings: Settings) -> list[Path]:
    """Files that an evaluation reads, so that a missing one is said before hours of work."""
    classifier = [] if settings.csllm else [settings.synthesis]
    return [settings.dimenet, *classifier, settings.references, settings.novelty_db, settings.validation]


def second_of(settings: Settings, first: Potential) -> Potential | None:
    """The second potential, None if none is wanted or if it is the first."""
    if settings.second_potential == "none":
        return None
    second = load_potential(settings.second_potential, device=settings.device)
    return None if second.name == first.name else second


def evaluate(
    structures: list[tuple[str, Atoms | str]], settings: Settings, out: Path, resume: bool = False
) -> Evaluation:
    """Rows of a set of structures, one each, whatever happens to it; `out` keeps what is computed as it
    comes.
    """
    for path in needed_files(settings):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: see --help for the flag that names it")
    potential = load_potential(settings.potential, settings.potential_checkpoint, settings.device)
    second = second_of(settings, potential)
    sigma, sigma_note = oracle_error(settings.validation)
    shard = lambda name: Shard(out / f"{name}.jsonl", resume)  # noqa: E731

    results = computed(
        relax_one,
        structures,
        settings,
        potential,
        settings.potential_checkpoint,
        shard("relaxed"),
        "relaxing",
        RELAXATION,
    )
    rows = [
        blank_row(name, result.get("lost", "")) | result.get("row", {})
        for (name, _), result in zip(structures, results)
    ]
    relaxed = {
        row["material_id"]: unpack_atoms(r["relaxed"]) for row, r in zip(rows, results) if r.get("relaxed")
    }
    stability_into(rows, potential, settings, Shard(out / "phases.jsonl"))
    poses = oracle_into(rows, relaxed, potential, settings, shard("adsorbed"))
    dimenet_into(rows, relaxed, settings)
    synthesis = synthesis_into(rows, relaxed, settings)
    novelty_into(rows, relaxed, settings)
    rank_into(rows, sigma)
    evaluation = Evaluation(rows, relaxed, poses, provenance(settings, potential, second, synthesis))
    evaluation.provenance |= {"oracle_error_eV": sigma, "oracle_error_from": sigma_note}
    second_into(evaluation, second, settings, shard("second"))
    phonons_into(evaluation, potential, settings, shard("phonons"))
    return evaluation


def provenance(settings: Settings, potential: Potential, second: Potential | None, synthesis: str) -> dict:
    """Versions, checkpoints with their hash, and which model said what."""
    packages = (
        "torch",
        "torch-geometric",
        "ase",
        "pymatgen",
        "sevenn",
        "mattersim",
        "chgnet",
        "phonopy",
        "spglib",
        "smact",
    )
    rigid = f"H alone relaxed at the best {settings.oracle_sites or 'of all'} sites of a height scan"
    oracle = {
        "none": "none",
        "rigid": rigid,
        "relaxed": f"{rigid}, then H and layer at the best of these, then the layer without H",
    }
    which = " (stable layers only)" if settings.oracle_for == "stable" else ""
    shared = "trained in part on the same Materials Project calculations, so not independent"
    return {
        "potential": potential.name,
        "potential_note": potential.note,
        "second_potential": f"{second.name} ({second.note}; {shared})" if second else "none",
        "synthesizability": synthesis,
        "checkpoints": {path.name: file_hash(path) for path in needed_files(settings)},
        "novelty_reference": settings.novelty_db.name,
        "hull_reference": settings.references.name,
        "delta_g_h_correction_eV": settings.correction,
        "oracle": oracle[settings.oracle] + which,
        "seed": settings.seed,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def write_report(
    name: str, evaluation: Evaluation, others: dict[str, list[dict]], out: Path, settings: Settings
) -> dict:
    """Everything that a set is judged by, beside others (nulls, baselines): tables, figures, DFT inputs,
    report.html.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows, seed = evaluation.rows, settings.seed
    shortlist = evaluation.shortlist(settings.shortlist)
    metrics = {
        name: aggregate(rows, seed),
        **{label: compare(rows, other, seed) for label, other in others.items()},
    }
    content = {
        "set": name,
        "n": len(rows),
        "metrics": metrics[name],
        "nulls": {label: metrics[label] for label in others if label in NULLS},
        "compared": {label: metrics[label] for label in others if label not in NULLS},
        "sensitivity_to_correction": sensitivity(rows, seed),
        "second_opinion": agreement(shortlist, seed),
        "dynamic_stability": dict(Counter(row["phonons"] for row in rows if row["phonons"])),
        "shortlist": [{column: row[column] for column in SHORTLIST_COLUMNS} for row in shortlist],
        "provenance": evaluation.provenance,
    }
    write_rows(out / "metrics.csv", rows, COLUMNS)
    write_rows(out / "shortlist.csv", shortlist, SHORTLIST_COLUMNS)
    write_rows(out / "pareto.csv", [row for row in rank(rows) if row["pareto"]], SHORTLIST_COLUMNS)
    write_json(out / "metrics.json", content)
    (out / "comparison.md").write_text(table(metrics) + "\n")
    long = flat(metrics)
    write_rows(out / "comparison.csv", long, list(long[0]))
    for row in shortlist:
        identity = row["material_id"]
        write_handoff(
            out / "dft",
            identity,
            evaluation.relaxed[identity],
            evaluation.poses.get(identity),
            row,
            evaluation.provenance,
        )
    drawn = draw(name, evaluation, others, metrics, out)
    write_html(out / "report.html", name, evaluation, others, metrics, content["shortlist"], drawn)
    print("\n".join([table(metrics), "", *headline(content, rows), f"files in {out}"]))
    return content


def draw(name: str, evaluation: Evaluation, others: dict, metrics: dict, out: Path) -> list[Path]:
    """The four figures; their paths."""
    sets, potential = {name: evaluation.rows, **others}, evaluation.provenance["potential"]
    paths = [
        out / f"{figure}.png"
        for figure in ("her_performance", "stability_curve", "baseline_comparison", "generated_structures")
    ]
    figures.her_performance(sets, potential, paths[0])
    figures.stability_curve(sets, potential, paths[1])
    figures.baseline_comparison(metrics, paths[2])
    figures.generated_structures(evaluation.rows, evaluation.relaxed, evaluation.poses, paths[3])
    return paths


def headline(content: dict, rows: list[dict]) -> list[str]:
    """What a reader wants to know first, in lines."""
    n, metrics, source = content["n"], content["metrics"], content["provenance"]
    count = lambda metric: f"{metrics[metric]['value'] * n:.0f}/{n}"  # noqa: E731
    refused = Counter(row["verdict"] or "unreadable" for row in rows if not row["two_d"])
    lines = [
        f"2D: {count('one_2d_component_rate')} are one layer periodic in two directions, {count('two_d_rate')} a free-standing one"
    ]
    if refused:
        kinds = ", ".join(f"{number} {kind}" for kind, number in refused.most_common())
        lines.append(f"refused as 2D catalysts: {refused.total()} ({kinds})")
    hits = {
        shift: found["hit_rate_0.2eV"]["value"] * n
        for shift, found in content["sensitivity_to_correction"].items()
    }
    shifts = ", ".join(f"{shift}: {number:.0f}" for shift, number in hits.items())
    lines += [
        f"stable: {count('stable_rate')}; stable, unique and novel: {count('sun_rate')}",
        f"hits, |ΔG_H| <= 0.2 eV by the oracle and stable: {count('hit_rate_0.2eV')} (by the correction moved by {shifts}); "
        f"layers that reconstruct under H: {count('reconstructed_rate')}",
    ]
    lines += [shortlist_line(row) for row in content["shortlist"]]
    agree = content["second_opinion"]["both_within_0.2eV"]
    if agree["n"]:
        lines.append(
            f"both potentials within 0.2 eV on the shortlist: {agree['value'] * agree['n']:.0f}/{agree['n']} that have both"
        )
    return [
        *lines,
        f"potential: {source['potential']}; second: {source['second_potential'].split(' (')[0]}; "
        f"synthesizability: {source['synthesizability']}",
    ]


def shortlist_line(row: dict) -> str:
    """A candidate in a line."""
    energy = lambda column: "–" if row[column] == "" else f"{row[column]:+.2f}"  # noqa: E731
    return (
        f"{row['rank']}. {row['material_id']} (class {row['candidate_class']}): P(|ΔG_H| <= 0.1 eV) {row['p_active']:.2f}, ΔG_H "
        f"{energy('delta_g_h_oracle_eV')} oracle, {energy('delta_g_h_dimenet_eV')} DimeNet++, {energy('delta_g_h_second_eV')} second; "
        f"E_hull {energy('e_hull_eV_per_atom')} eV/atom"
        + (f"; phonons {row['phonons']}" if row["phonons"] else "")
    )


def compared_sets(paths: list[Path], own: str, provenance: dict) -> dict[str, list[dict]]:
    """Rows of other sets by name; one that was scored otherwise, or is missing, is left out and said so."""
    sets = {}
    for path in paths:
        summary = path.with_name("metrics.json")
        if not (path.is_file() and summary.is_file()):
            print(f"not compared: {path} (or its metrics.json) does not exist")
            continue
        content = json.loads(summary.read_text())
        if any(content["provenance"].get(key) != provenance[key] for key in SAME):
            print(
                f"not compared: {path} was scored with another potential, oracle, correction or checkpoint: score it again"
            )
            continue
        name = content["set"]
        sets[name if name != own and name not in sets else f"{name} ({path.parent})"] = read_rows(path)
    return sets


def run_evaluation(args, name: str) -> dict:
    """What both evaluation scripts do: read, evaluate, compare, report."""
    settings = settings_from(args)
    evaluation = evaluate(read_cifs(args.cifs), settings, args.out, args.resume)
    return write_report(
        name, evaluation, compared_sets(args.compare, name, evaluation.provenance), args.out, settings
    )
