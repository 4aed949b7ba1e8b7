"""The evaluator: one path from a CIF to a row of metrics, for our structures and for anybody's.

Gates (2D, valid), relaxation and E_form / E_hull by the potential, ΔG_H by DimeNet++ and by the potential with H
relaxed, synthesizability, uniqueness and novelty; then aggregates with bootstrap intervals, tables and figures.
"""

import contextlib
import csv
import json
import math
import platform
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import ase.db
import numpy as np
import torch
from ase import Atoms
from ase.io import read
from pymatgen.core import Composition
from smact.screening import smact_validity

from models import figures
from models.adsorption import CORRECTION, hydrogen_energy
from models.cli import write_json
from models.csllm import CSLLM
from models.delta_g import oracle_delta_g, predict_delta_g
from models.dimenet import load_dimenet
from models.hull import hull_for
from models.jobs import run_jobs
from models.layer import MAX_THICKNESS, MIN_VACUUM, OVERLAP_SCALE, NotALayer, dimension, extract_layer, min_distance_ratio, reduced_formula
from models.matching import Fingerprint, Register, layer_group, rmsd
from models.potentials import Potential, load_potential, relax_layer
from models.shards import Shard, digest, file_hash, pack_atoms, unpack_atoms
from models.synthesis import load_synthesis

COLUMNS = [
    "material_id", "formula", "n_atoms", "layer_group", "components", "periodic_directions", "vacuum_A", "thickness_A",
    "two_d", "valid", "smact_valid", "min_dist_ratio", "converged", "relax_steps", "e_form_eV_per_atom", "e_hull_eV_per_atom",
    "hull_compounds", "rmsd_relaxed_A", "delta_g_h_dimenet_eV", "delta_g_h_oracle_eV", "h_site", "h_flags", "stability_score",
    "p_synth", "unique", "novel", "error",
]  # fmt: skip
STABLE = 0.1  # eV/atom above the hull
ABSURD = -1.0  # eV/atom: so far below it, competing phases are missing or the potential has a hole
BOOTSTRAPS = 2000
NULLS = ("random_baseline",)  # sets that no model had a hand in
ROW_SETTINGS = ("potential", "correction", "oracle_sites", "fmax", "relax_steps")


@dataclass(frozen=True)
class Settings:
    """What a worker needs to evaluate a structure; plain values, so that it crosses process borders."""

    potential: str = "auto"
    potential_checkpoint: Path | None = None
    dimenet: Path = Path("models/weights/dimenet.pt")
    synthesis: Path = Path("models/weights/synthesis.pt")
    csllm: str | None = None
    csllm_base: str | None = None
    references: Path = Path("data/reference_phases.db")
    novelty_db: Path = Path("data/her2d.db")
    correction: float = CORRECTION
    oracle_sites: int = 3
    fmax: float = 0.05
    relax_steps: int = 200
    jobs: int = 2
    device: str = "cpu"
    seed: int = 0


@dataclass
class Evaluation:
    """Rows of a set, the relaxed layers and the poses of H behind them, and where the numbers come from."""

    rows: list[dict]
    relaxed: dict[str, Atoms] = field(default_factory=dict)
    poses: dict[str, Atoms] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)


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
            found.append((path.stem, "partial occupancy: not one ordered structure" if is_disordered(atoms) else atoms))
        except Exception as error:
            found.append((path.stem, f"unreadable CIF: {type(error).__name__}: {error}"))
    return found


def is_disordered(atoms: Atoms) -> bool:
    """Whether a CIF puts several species, or less than one atom, on a site."""
    sites = atoms.info.get("occupancy", {}).values()
    return any(len(site) > 1 or min(site.values()) < 0.999 for site in sites)


def gates(atoms: Atoms) -> tuple[dict, Atoms | None, str]:
    """Dimensionality and validity of a structure as submitted.

    Returns:
        columns, the layer in the convention (None if it is not 2D), and why it is not.
    """
    formula = reduced_formula(atoms)
    components, directions = dimension(atoms)
    ratio = min_distance_ratio(atoms)
    smact = bool(smact_validity(formula))
    row = {
        "formula": formula, "n_atoms": len(atoms), "components": components, "periodic_directions": directions,
        "min_dist_ratio": ratio, "smact_valid": smact, "valid": ratio >= OVERLAP_SCALE and smact, "two_d": False,
    }  # fmt: skip
    try:
        layer = extract_layer(atoms)
    except NotALayer as error:
        return row, None, f"not 2D: {error}"
    row |= {"vacuum_A": layer.vacuum, "thickness_A": layer.thickness, "layer_group": layer_group(layer.atoms)}
    if layer.vacuum < MIN_VACUUM:
        return row, None, f"not 2D: {layer.vacuum:.1f} Å between the layers, less than {MIN_VACUUM:g}"
    if layer.thickness > MAX_THICKNESS:
        return row, None, f"not 2D: {layer.thickness:.1f} Å thick, more than {MAX_THICKNESS:g}"
    return row | {"two_d": True}, layer.atoms, ""


def stability_score(e_hull: float) -> float:
    """exp(−max(0, E_form − E_stable^ref)), energies in eV/atom."""
    return math.exp(-max(0.0, e_hull))


_worker = {}


def start_worker(settings: Settings):
    """Loads potential and DimeNet++ once a process, on one thread."""
    torch.set_num_threads(1)
    potential = load_potential(settings.potential, settings.potential_checkpoint, settings.device)
    _worker.update(
        settings=settings,
        potential=potential,
        half_h2=hydrogen_energy(potential.calculator),
        dimenet=load_dimenet(settings.dimenet, settings.device),
    )


def blank_row(name: str, error: str = "") -> dict:
    """A row with nothing computed."""
    return dict.fromkeys(COLUMNS, "") | {"material_id": name, "two_d": False, "valid": False, "error": error}


def evaluate_one(item) -> dict:
    """Row, relaxed layer and pose of one structure; whatever goes wrong ends up in its `error`."""
    name, atoms = item
    row = blank_row(name)
    result = {"row": row, "relaxed": None, "pose": None}
    if isinstance(atoms, str):
        row["error"] = atoms
        return result
    errors = []
    try:
        columns, layer, reason = gates(atoms)
        row.update(columns)
        errors.append(reason)
        if layer is not None:
            relaxed = relax_into(row, layer, errors)
            result["relaxed"] = pack_atoms(relaxed)
            result["pose"] = pack_atoms(adsorption_into(row, relaxed, errors))
    except Exception as error:
        errors.append(f"{type(error).__name__}: {error}")
    row["error"] = "; ".join(filter(None, errors))
    return result


def relax_into(row: dict, layer: Atoms, errors: list) -> Atoms:
    """Relaxes the layer and fills the columns of it."""
    settings = _worker["settings"]
    relaxed = relax_layer(layer, _worker["potential"].calculator, settings.fmax, settings.relax_steps)
    row |= {"converged": relaxed.converged, "relax_steps": relaxed.steps}
    if relaxed.problem:
        errors.append(f"relaxation: {relaxed.problem}")
    try:
        atoms = extract_layer(relaxed.atoms).atoms
    except NotALayer as error:
        raise NotALayer(f"relaxation left two dimensions: {error}") from error
    if min_distance_ratio(atoms) < OVERLAP_SCALE:
        raise ValueError("relaxation ended in overlapping atoms: a hole in the potential")
    row |= {"energy": relaxed.energy, "rmsd_relaxed_A": rmsd(layer, relaxed.atoms), "layer_group": layer_group(atoms)}
    return atoms


def adsorption_into(row: dict, atoms: Atoms, errors: list) -> Atoms | None:
    """ΔG_H of the relaxed layer, by DimeNet++ and by the potential; returns the oracle's best pose."""
    settings = _worker["settings"]
    _, predicted = next(iter(predict_delta_g(_worker["dimenet"], [(row["material_id"], atoms)], correction=settings.correction)))
    row["delta_g_h_dimenet_eV"] = predicted.get("delta_g_h", "")
    errors.append(predicted.get("error", ""))
    oracle = oracle_delta_g(
        atoms, _worker["potential"].calculator, _worker["half_h2"], settings.correction, sites=settings.oracle_sites
    )
    row["h_flags"] = " ".join(f"{flag}:{count}" for flag, count in sorted(oracle["flags"].items()))
    if oracle["delta_g_h"] is None:
        errors.append("no site adsorbs H")
        return None
    row |= {"delta_g_h_oracle_eV": oracle["delta_g_h"], "h_site": oracle["h_site"]}
    return oracle["pose"]


def item_key(item, settings: Settings, note: str) -> str:
    """Changes with the structure and with everything that its row depends on; `note` is the potential's provenance."""
    name, atoms = item
    content = atoms if isinstance(atoms, str) else json.dumps(pack_atoms(atoms))
    parts = [note, *(str(getattr(settings, field)) for field in ROW_SETTINGS)]
    return f"{name}:{digest(' '.join([content, file_hash(settings.dimenet), *parts]))}"


def computed(items, settings: Settings, note: str, shard: Shard) -> list[dict]:
    """evaluate_one over the items that the shard lacks, `settings.jobs` processes at a time; rows in their order."""
    keys = [item_key(item, settings, note) for item in items]
    lost = run_jobs(evaluate_one, dict(zip(keys, items)), shard, settings.jobs, start_worker, (settings,), "relaxing and adsorbing")
    rows = {key: {"row": blank_row(item[0], lost[key]), "relaxed": None, "pose": None} for key, item in zip(keys, items) if key in lost}
    return [rows.get(key) or shard.rows[key] for key in keys]


def stability_into(rows: list[dict], potential: Potential, settings: Settings, cache: Shard):
    """E_form, E_hull and the stability score from the hull of the same potential."""
    energies = [row for row in rows if row.get("energy") is not None]
    hull = hull_for(potential, [row["formula"] for row in energies], settings.references, cache) if energies else None
    for row in energies:
        try:
            units = row["n_atoms"] / Composition(row["formula"]).num_atoms
            stability = hull.stability(f"({row['formula']}){units:.0f}", row.pop("energy"))
        except ValueError as error:
            row["error"] = "; ".join(filter(None, [row["error"], str(error)]))
            continue
        if stability.e_hull < ABSURD:
            row["error"] = "; ".join(filter(None, [row["error"], f"E_hull {stability.e_hull:.2f} eV/atom is absurd: not called stable"]))
        row |= {
            "e_form_eV_per_atom": stability.e_form, "e_hull_eV_per_atom": stability.e_hull,
            "hull_compounds": stability.phases, "stability_score": stability_score(stability.e_hull),
        }  # fmt: skip


def synthesis_into(rows: list[dict], relaxed: dict, settings: Settings) -> str:
    """P_synth by CSLLM where it is given, else by the positive-unlabelled classifier; returns the model's name."""
    rows = [row for row in rows if row["material_id"] in relaxed]
    structures = [relaxed[row["material_id"]] for row in rows]
    if settings.csllm:
        model = CSLLM.from_pretrained(settings.csllm, base=settings.csllm_base, device=settings.device)
        scores, name = model.score(structures), f"CSLLM {settings.csllm} (trained on 3D crystals: monolayers are out of distribution)"
    else:
        model = load_synthesis(settings.synthesis)
        e_hull = [row["e_hull_eV_per_atom"] if row["e_hull_eV_per_atom"] != "" else math.nan for row in rows]
        scores = model.predict(structures, np.array(e_hull, float)) if rows else []
        name = "positive-unlabelled classifier on experiment flags (no CSLLM given)"
    for row, score in zip(rows, scores):
        row["p_synth"] = "" if math.isnan(score) else float(score)
    return name


def novelty_into(rows: list[dict], relaxed: dict, settings: Settings):
    """unique: matches no earlier structure of the set; novel: matches nothing in the reference database."""
    formulas = {Fingerprint(atoms).formula for atoms in relaxed.values()}
    reference, seen = Register(), Register()
    for entry in ase.db.connect(settings.novelty_db).select():
        if reduced_formula(entry.toatoms()) in formulas:
            with contextlib.suppress(NotALayer):  # a row that is no layer cannot match one
                reference.add(entry.get("uid", str(entry.id)), Fingerprint(extract_layer(entry.toatoms()).atoms))
    for row in rows:
        atoms = relaxed.get(row["material_id"])
        if atoms is None:
            continue
        fingerprint = Fingerprint(atoms)
        row["unique"] = seen.find(fingerprint) is None
        row["novel"] = reference.find(fingerprint) is None
        seen.add(row["material_id"], fingerprint)


def needed_files(settings: Settings) -> list[Path]:
    """Files that an evaluation reads, so that a missing one is said before hours of work."""
    classifier = [] if settings.csllm else [settings.synthesis]
    return [settings.dimenet, *classifier, settings.references, settings.novelty_db]


def evaluate(structures: list[tuple[str, Atoms | str]], settings: Settings, shard: Shard) -> Evaluation:
    """Rows of a set of structures, one each, whatever happens to it; `shard` keeps what is computed."""
    for path in needed_files(settings):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: see --help for the flag that names it")
    potential = load_potential(settings.potential, settings.potential_checkpoint, settings.device)
    settings = replace(settings, potential=potential.spec)
    results = computed(structures, settings, potential.note, shard)
    rows = [dict(result["row"]) for result in results]
    relaxed = {row["material_id"]: unpack_atoms(r["relaxed"]) for row, r in zip(rows, results) if r["relaxed"]}
    poses = {row["material_id"]: unpack_atoms(r["pose"]) for row, r in zip(rows, results) if r["pose"]}
    stability_into(rows, potential, settings, Shard(shard.path.with_name("phases.jsonl")))
    synthesis = synthesis_into(rows, relaxed, settings)
    novelty_into(rows, relaxed, settings)
    rows = [{name: row.get(name, "") for name in COLUMNS} for row in rows]
    return Evaluation(rows, relaxed, poses, provenance(settings, potential, synthesis))


def provenance(settings: Settings, potential: Potential, synthesis: str) -> dict:
    """Versions, checkpoints with their hash, and which model said what."""
    packages = ("torch", "torch-geometric", "ase", "pymatgen", "sevenn", "mattersim", "spglib", "smact")
    return {
        "potential": potential.name,
        "potential_note": potential.note,
        "synthesizability": synthesis,
        "checkpoints": {path.name: file_hash(path) for path in needed_files(settings)},
        "novelty_reference": settings.novelty_db.name,
        "hull_reference": settings.references.name,
        "delta_g_h_correction_eV": settings.correction,
        "oracle": f"H relaxed on the rigid relaxed layer at the best {settings.oracle_sites} sites of a height scan",
        "seed": settings.seed,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def numbers(rows: list[dict], column: str) -> np.ndarray:
    """Values of a column where they exist."""
    return np.array([float(row[column]) for row in rows if row[column] not in ("", None)])


def is_true(row: dict, column: str) -> bool:
    return str(row[column]) == "True"


def is_stable(row: dict) -> bool:
    """Whether a relaxation that converged ended less than STABLE above the hull, and not absurdly below it."""
    return is_true(row, "converged") and row["e_hull_eV_per_atom"] != "" and ABSURD < float(row["e_hull_eV_per_atom"]) < STABLE


def surrogate_gap(rows: list[dict]) -> np.ndarray:
    """|ΔG_H| by the oracle less |ΔG_H| by DimeNet++, where both exist: how much better the surrogate thinks of the set."""
    names = ("delta_g_h_oracle_eV", "delta_g_h_dimenet_eV")
    both = [[abs(float(row[name])) for name in names] for row in rows if all(row[name] not in ("", None) for name in names)]
    return np.array([oracle - dimenet for oracle, dimenet in both])


def metric_samples(rows: list[dict]) -> dict[str, np.ndarray]:
    """What each metric is the mean of: rates over all rows, means over the rows where the quantity exists."""
    rate = lambda test: np.array([float(test(row)) for row in rows])  # noqa: E731
    oracle = lambda row: float(row["delta_g_h_oracle_eV"]) if row["delta_g_h_oracle_eV"] != "" else math.inf  # noqa: E731
    return {
        "two_d_rate": rate(lambda r: is_true(r, "two_d")),
        "one_2d_component_rate": rate(lambda r: str(r["components"]) == "1" and str(r["periodic_directions"]) == "2"),
        "valid_rate": rate(lambda r: is_true(r, "valid")),
        "distance_valid_rate": rate(lambda r: r["min_dist_ratio"] != "" and float(r["min_dist_ratio"]) >= OVERLAP_SCALE),
        "smact_valid_rate": rate(lambda r: is_true(r, "smact_valid")),
        "converged_rate": rate(lambda r: is_true(r, "converged")),
        "mae_delta_g_h_dimenet_eV": abs(numbers(rows, "delta_g_h_dimenet_eV")),
        "mae_delta_g_h_oracle_eV": abs(numbers(rows, "delta_g_h_oracle_eV")),
        "delta_g_h_gap_eV": surrogate_gap(rows),
        "active_rate_0.2eV": rate(lambda r: abs(oracle(r)) <= 0.2),
        "hit_rate_0.2eV": rate(lambda r: abs(oracle(r)) <= 0.2 and is_stable(r)),
        "hit_rate_0.1eV": rate(lambda r: abs(oracle(r)) <= 0.1 and is_stable(r)),
        "stability_score": numbers(rows, "stability_score"),
        "synthesis_rate": rate(lambda r: r["p_synth"] != "" and float(r["p_synth"]) >= 0.5),
        "stable_rate": rate(is_stable),
        "unique_rate": rate(lambda r: is_true(r, "unique")),
        "novel_rate": rate(lambda r: is_true(r, "novel")),
        "sun_rate": rate(lambda r: is_stable(r) and is_true(r, "unique") and is_true(r, "novel")),
        "rmsd_relaxed_A": numbers(rows, "rmsd_relaxed_A"),
    }


def interval(sample: np.ndarray, seed: int = 0, rate: bool = False) -> dict:
    """Mean, n and a 95 % interval: bootstrap, but Wilson's for a rate of 0 or 1 (0 of n is not "exactly never")."""
    n = len(sample)
    mean = float(sample.mean()) if n else None
    if n == 0 or (n == 1 and not rate):
        return {"value": mean, "ci95": [None, None], "n": n}
    if rate and mean in (0.0, 1.0):
        edge = 1.96**2 / (n + 1.96**2)
        return {"value": mean, "ci95": [0.0, edge] if mean == 0 else [1 - edge, 1.0], "n": n}
    draws = np.random.default_rng(seed).integers(n, size=(BOOTSTRAPS, n))
    low, high = np.percentile(sample[draws].mean(1), [2.5, 97.5])
    return {"value": mean, "ci95": [float(low), float(high)], "n": n}


def aggregate(rows: list[dict], seed: int = 0) -> dict:
    """Every metric with its interval."""
    return {name: interval(sample, seed, "rate" in name) for name, sample in metric_samples(rows).items()}


def read_rows(path: Path) -> list[dict]:
    """Rows of a metrics.csv, by column name without units lost."""
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def table(sets: dict[str, dict]) -> str:
    """Markdown table of the metrics of several sets, intervals included."""
    names = list(next(iter(sets.values())))
    lines = ["| metric | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for name in names:
        cells = []
        for metrics in sets.values():
            m = metrics[name]
            bounds = "" if m["ci95"][0] is None else f" [{m['ci95'][0]:.3f}, {m['ci95'][1]:.3f}]"
            cells.append("–" if m["value"] is None else f"{m['value']:.3f}{bounds} n={m['n']}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_report(name: str, evaluation: Evaluation, others: dict[str, list[dict]], out: Path, seed: int) -> dict:
    """metrics.csv, metrics.json, the table and the figures of a set beside others (nulls, baselines)."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / "metrics.csv.tmp"
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(evaluation.rows)
    temporary.replace(out / "metrics.csv")
    metrics = aggregate(evaluation.rows, seed)
    compared = {other: aggregate(rows, seed) for other, rows in others.items()}
    content = {
        "set": name, "n": len(evaluation.rows), "metrics": metrics,
        "nulls": {other: m for other, m in compared.items() if other in NULLS},
        "compared": {other: m for other, m in compared.items() if other not in NULLS},
        "provenance": evaluation.provenance,
    }  # fmt: skip
    write_json(out / "metrics.json", content)

    sets = {name: evaluation.rows, **others}
    text = table({label: aggregate(rows, seed) for label, rows in sets.items()})
    (out / "comparison.md").write_text(text + "\n")
    potential = evaluation.provenance["potential"]
    figures.her_performance(sets, potential, out / "her_performance.png")
    figures.stability_curve(sets, potential, out / "stability_curve.png")
    figures.baseline_comparison({label: aggregate(rows, seed) for label, rows in sets.items()}, out / "baseline_comparison.png")
    figures.generated_structures(evaluation.rows, evaluation.relaxed, evaluation.poses, out / "generated_structures.png")
    print(text)
    two_d = metrics["two_d_rate"]["value"] * len(evaluation.rows)
    connected = metrics["one_2d_component_rate"]["value"] * len(evaluation.rows)
    print(f"\n2D: {two_d:.0f}/{len(evaluation.rows)} (one component periodic in two directions: {connected:.0f})")
    print(f"potential: {potential}; synthesizability: {evaluation.provenance['synthesizability']}; files in {out}")
    return content


def add_evaluation_flags(parser, cifs: Path, compare: Path):
    """Flags that test.py and evaluate_external.py share."""
    default = Settings()
    data = parser.add_argument_group("data")
    data.add_argument("--cifs", type=Path, default=cifs, help="folder of CIFs to score")
    data.add_argument("--compare", type=Path, nargs="*", default=[compare], help="metrics.csv of other sets to put beside it")
    data.add_argument("--references", type=Path, default=default.references, help="competing phases of the hull")
    data.add_argument("--novelty-db", type=Path, default=default.novelty_db, help="database that decides what is novel")
    model = parser.add_argument_group("model")
    model.add_argument("--potential", default=default.potential,
                       help="auto (MatterSim, else SevenNet), mattersim[-1m], sevennet[-0], chgnet or module:factory")  # fmt: skip
    model.add_argument("--potential-checkpoint", type=Path, help="MatterSim checkpoint file")
    model.add_argument("--dimenet", type=Path, default=default.dimenet, help="checkpoint of stage 1")
    model.add_argument("--synthesis", type=Path, default=default.synthesis, help="positive-unlabelled classifier")
    model.add_argument("--csllm", help="CSLLM: folder or hub name; takes the classifier's place")
    model.add_argument("--csllm-base", help="base model of the CSLLM adapters, if it is not where their config says")
    model.add_argument("--correction", type=float, default=default.correction, help="ΔE_ZPE − TΔS in ΔG_H, eV")
    model.add_argument("--oracle-sites", type=int, default=default.oracle_sites, help="sites where H is relaxed, 0 for all")
    model.add_argument("--fmax", type=float, default=default.fmax, help="force at which a relaxation has converged, eV/Å")
    model.add_argument("--relax-steps", type=int, default=default.relax_steps, help="most steps of a relaxation")
    parser.add_argument("--jobs", type=int, default=default.jobs, help="processes, one thread each")


def settings_from(args) -> Settings:
    """Settings of parsed flags."""
    return Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})


def compared_sets(paths: list[Path], own: str, provenance: dict) -> dict[str, list[dict]]:
    """Rows of other sets by name; one that was scored otherwise, or is missing, is left out and said so."""
    sets = {}
    for path in paths:
        summary = path.with_name("metrics.json")
        if not (path.is_file() and summary.is_file()):
            print(f"not compared: {path} (or its metrics.json) does not exist")
            continue
        content = json.loads(summary.read_text())
        same = all(content["provenance"][key] == provenance[key] for key in ("potential", "delta_g_h_correction_eV", "checkpoints"))
        if not same:
            print(f"not compared: {path} was scored with another potential, correction or checkpoint: score it again")
            continue
        name = content["set"]
        sets[name if name != own and name not in sets else f"{name} ({path.parent})"] = read_rows(path)
    return sets


def run_evaluation(args, name: str) -> dict:
    """What both evaluation scripts do: read, evaluate, compare, report."""
    shard = Shard(args.out / "evaluated.jsonl", args.resume)
    evaluation = evaluate(read_cifs(args.cifs), settings_from(args), shard)
    return write_report(name, evaluation, compared_sets(args.compare, name, evaluation.provenance), args.out, args.seed)
