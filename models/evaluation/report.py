"""One self-contained page of an evaluation: tables, interactive plots and structures that turn in 3D; opens
offline.

What the page shows is one JSON, made here, the physics included; report.js draws it. The 3D viewer is ours:
some 200 lines, in place of a library that every page would have to carry.
"""

import hashlib
import json
import math
import re
from base64 import b64encode
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from ase import Atoms
from ase.data import atomic_names, atomic_numbers, chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from models.crystals.thresholds import BOND_SCALE, STABLE, VERY_ACTIVE
from models.evaluation.funnel import funnel
from models.evaluation.rows import numbers, records
from models.evaluation.schema import EV, PERCENT, PURE, SET_METRICS
from models.evaluation.verdicts import is_stable
from models.infra.files import write_text

HERE = Path(__file__).parent
SPAN = 12.0  # Å of the layer that is drawn, at least, in both directions
LONG = 1.25  # a contact longer than this many nearest-neighbour distances is no stick
MARGIN = 4.0  # Å of layer beyond what is drawn, so that atoms at the rim know all their neighbours
MAX_SCENES = 300  # structures that turn in 3D, the shortlist first: about 5 kB each
FIGURE_BYTES = 2_000_000  # of PNG files in the page

K0 = 200.0  # 1/s per site, rate constant fitted by Nørskov et al., J. Electrochem. Soc. 152, J23 (2005)
SITES = 1.5e15  # 1/cm², sites of Pt(111), taken for every structure
KT = 0.02569  # eV at 298.15 K
CHARGE = 1.602177e-19  # C
METALS = {"Ni": -0.27, "Pt": -0.09, "Cu": 0.19, "Au": 0.45}  # eV, ΔG_H of (111) surfaces in that paper

SET_NOTES = {
    "random_baseline": "model-free baseline: random elements in a random template",
    "substitution": "model-free baseline: elements substituted into known prototypes",
    "unguided": "the same model without guidance",
    "unguided_filtered": "the same model without guidance, filtered to the same number",
    "held_out": "real layers that no model has seen: the ceiling",
}
HEADLINE = ("two_d_rate", "stable_rate", "sun_rate", "hit_rate_0.2eV")
COLUMNS = {
    "material_id": "Structure",
    "formula": "Formula",
    "layer_group": "Layer group",
    "e_hull_eV_per_atom": "E_hull (eV/atom)",
    "e_hull_std_eV_per_atom": "Error of E_hull (eV/atom)",
    "delta_g_h_oracle_eV": "ΔG_H, H relaxed (eV)",
    "delta_g_h_oracle_std_eV": "its standard deviation (eV)",
    "delta_g_h_dimenet_eV": "ΔG_H, DimeNet++ (eV)",
    "delta_g_h_dimenet_std_eV": "± DimeNet++ (eV)",
    "delta_g_h_second_eV": "ΔG_H, second potential (eV)",
    "delta_g_h_dft_eV": "ΔG_H, DFT (eV)",
    "p_active": "P(|ΔG_H| ≤ 0.1 eV)",
    "p_synth": "P(synthesizable)",
    "h_site": "Site of H",
    "n_atoms": "Atoms in the cell",
    "two_d": "2D",
    "valid": "Plausible",
    "converged": "Relaxed",
    "unique": "Unique",
    "novel": "New",
    "thickness_A": "Thickness (Å)",
    "rmsd_relaxed_A": "Moved when relaxed (Å)",
    "rank": "Rank",
    "candidate_class": "Class",
    "hit": "Hit",
    "stopped_by": "Stopped by",
    "avoid_elements": "Elements to avoid",
    "price_usd_per_kg": "Price of its elements (USD/kg)",
    "e_pourbaix_eV_per_atom": "Above Pourbaix hull (eV/atom)",
    "known_as": "Known as",
    "phonons": "Phonons",
    "lowest_frequency_THz": "Lowest frequency (THz)",
    "elastic": "Elastic",
}
MEASURES = {
    "oracle": "delta_g_h_oracle_eV",
    "dimenet": "delta_g_h_dimenet_eV",
    "second": "delta_g_h_second_eV",
}


def plain(value):
    """JSON's own types of anything: numpy scalars and arrays unpacked, "", nan and inf as None, the rest as
    text.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, str | bool | int | float) else str(value)


def log_exchange_current(delta_g_h):
    """log10 of the exchange current density in A/cm² by the kinetic model of Nørskov et al. (2005).

    j0 = e k0 n / (1 + exp(−ΔG/kT)) for ΔG < 0, times exp(−ΔG/kT) for ΔG > 0, which is one function of |ΔG|.

    Args:
        delta_g_h: ΔG_H in eV, a number or an array; NaN stays NaN.
    """
    with np.errstate(invalid="ignore"):
        saturation = np.logaddexp(0.0, np.abs(delta_g_h) / KT)
    return np.log10(CHARGE * K0 * SITES) - saturation / np.log(10)


def points(rows: pd.DataFrame) -> list[dict]:
    """What the plots need of each row: ΔG_H (eV) by each method with log10 j0 (A/cm²), E_hull (eV/atom); None
    where there is none.
    """
    shown = pd.DataFrame({"id": rows["material_id"], "formula": rows["formula"], "stable": is_stable(rows)})
    shown["hull"], shown["std"] = rows["e_hull_eV_per_atom"], rows["delta_g_h_dimenet_std_eV"]
    for name, column in MEASURES.items():
        shown[name] = rows[column]
        shown[f"{name}_j0"] = log_exchange_current(numbers(rows[column])).round(3)
    return records(shown)


def parity(rows: pd.DataFrame, name: str) -> dict | None:
    """How far a method's ΔG_H is from the oracle's over a set's rows, beside the error of always saying the
    oracle's mean.

    Args:
        name: key of MEASURES.

    Returns:
        {"n", "mae", "bias", "null", "r"}: mean absolute and mean signed difference and the error of the
        leave-one-out mean, in eV, correlation (None where undefined); None with fewer than two rows.
    """
    both = rows[[MEASURES["oracle"], MEASURES[name]]].dropna().to_numpy(float)
    n = len(both)
    if n < 2:
        return None
    oracle, other = both.T
    others_mean = (oracle.sum() - oracle) / (n - 1)
    varied = min(np.ptp(oracle), np.ptp(other)) > 1e-9
    return {
        "n": n,
        "mae": float(abs(other - oracle).mean()),
        "bias": float((other - oracle).mean()),
        "null": float(abs(others_mean - oracle).mean()),
        "r": float(np.corrcoef(oracle, other)[0, 1]) if varied else None,
    }


def causes(errors: pd.Series) -> list[list]:
    """[cause, number of structures] of the errors, most frequent first; numbers within a cause are blanked to
    count it once.
    """
    found = Counter()
    for error in errors:
        kinds = set()
        for part in filter(None, error.split("; ")):
            blanked = re.sub(r"(?<!\w)[-−]?\d+(\.\d+)?(?!\w)", "…", part)
            kinds.add(blanked.split(":")[0].strip())
        found.update(kinds)
    return [[cause, count] for cause, count in found.most_common()]


def tiled(
    host: Atoms, low: np.ndarray, high: np.ndarray, plane: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images of a layer's atoms in a parallelogram of the plane and MARGIN Å around it.

    Args:
        host: layer, any supercell of the plane.
        low, high: [2] corners in lattice vectors of `plane`.
        plane: [2, 2] lattice rows, Å.

    Returns:
        numbers [N], positions [N, 3] Å, inside [N] whether an atom lies in the parallelogram itself (rim
        included).
    """
    margin = MARGIN * np.linalg.norm(np.linalg.inv(plane), axis=0)
    supercell = host.cell.array[:2, :2]
    x, y = zip(low - margin, high + margin)
    corners = np.array([[u, v] for u in x for v in y]) @ plane @ np.linalg.inv(supercell)
    first, last = np.floor(corners.min(0)).astype(int) - 1, np.ceil(corners.max(0)).astype(int) + 1
    shifts = (
        np.array([[u, v] for u in range(first[0], last[0] + 1) for v in range(first[1], last[1] + 1)])
        @ supercell
    )
    positions = np.tile(host.positions, (len(shifts), 1))
    positions[:, :2] += np.repeat(shifts, len(host), axis=0)
    frac = positions[:, :2] @ np.linalg.inv(plane)
    near = ((frac > low - margin) & (frac < high + margin)).all(1)
    inside = ((frac > low - 0.02) & (frac < high + 0.02)).all(1)
    return np.tile(host.numbers, len(shifts))[near], positions[near], inside[near]


def bonds(numbers: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sticks and mere contacts between atoms, both within BOND_SCALE covalent sums.

    A contact is longer than LONG nearest-neighbour distances of both its ends; one that two sticks over a
    shared neighbour imply (metal to metal over the anion) is left out.

    Returns:
        pairs [E, 2], the first index below the second, of sticks and of contacts.
    """
    radii = covalent_radii[numbers]
    distance = np.linalg.norm(positions[:, None] - positions, axis=2)
    np.fill_diagonal(distance, np.inf)
    close = distance <= BOND_SCALE * np.add.outer(radii, radii)
    nearest = distance.min(1)
    sticks = close & (distance <= LONG * np.maximum.outer(nearest, nearest))
    shared = sticks.astype(np.float32)
    contacts = close & ~sticks & (shared @ shared == 0)
    return np.argwhere(np.triu(sticks)), np.argwhere(np.triu(contacts))


def without_strays(inside: np.ndarray, sticks: np.ndarray) -> np.ndarray:
    """`inside` [N] less the atoms of its rim whose every stick leads out of it."""
    within = sticks[inside[sticks].all(1)]
    degree, degree_within = (np.bincount(some.ravel(), minlength=len(inside)) for some in (sticks, within))
    return inside & ((degree == 0) | (degree_within > 0))


def hydrogen_bonds(numbers: np.ndarray, positions: np.ndarray) -> list[int]:
    """Atoms that the adsorbed H, the last one, is bound to: within BOND_SCALE covalent sums and LONG of its
    shortest bond.
    """
    distance = np.linalg.norm(positions[:-1] - positions[-1], axis=1)
    ratio = distance / (covalent_radii[numbers[:-1]] + covalent_radii[1])
    return np.flatnonzero(ratio <= min(BOND_SCALE, LONG * ratio.min(initial=np.inf))).tolist()


def scene(layer: Atoms, pose: Atoms | None) -> dict:
    """A finite piece of a layer, a whole number of unit cells about the adsorbed H, with its bonds.

    Args:
        layer: relaxed layer in the convention (models.crystals.layer).
        pose: supercell of it with H as last atom; None draws the bare layer.

    Returns:
        {"symbols": [N], "positions": [N, 3] Å, "bonds": [[i, j]], "contacts": [[i, j]] (see bonds), "cell":
        [8, 3] Å, corners of the unit cell with bit k of the index for vector k and 1 Å of vacuum at each
        side, "hydrogen": index or None, "turned": whether the layer is upside down, so that an H of the
        bottom face is on top}.
    """
    plane = layer.cell.array[:2, :2]
    host = layer if pose is None else pose[:-1]
    target = plane.sum(0) / 2 if pose is None else pose.positions[-1, :2]
    home = np.floor(target @ np.linalg.inv(plane) + 1e-6)
    reach = np.ceil((SPAN / np.linalg.norm(plane, axis=1) - 1) / 2).clip(0)
    low, high = home - reach, home + reach + 1
    numbers, positions, inside = tiled(host, low, high, plane)
    pairs = bonds(numbers, positions)
    kept = without_strays(inside, pairs[0])
    index = np.cumsum(kept) - 1
    sticks, contacts = (index[found[kept[found].all(1)]].tolist() for found in pairs)
    numbers, positions, count = numbers[kept], positions[kept], int(kept.sum())

    bottom, top = host.positions[:, 2].min() - 1, host.positions[:, 2].max() + 1
    cell = np.array([[*((home + [k & 1, k >> 1 & 1]) @ plane), top if k & 4 else bottom] for k in range(8)])
    centre = np.array([*((low + high) / 2 @ plane), (bottom + top) / 2])
    turned = False
    if pose is not None:
        numbers, positions = np.append(numbers, 1), np.vstack([positions, pose.positions[-1]])
        sticks += [[k, count] for k in hydrogen_bonds(numbers, positions)]
        turned = bool(pose.positions[-1, 2] < centre[2])
    view = np.array([1, -1, -1]) if turned else np.ones(3)
    return {
        "symbols": [chemical_symbols[z] for z in numbers],
        "positions": ((positions - centre) * view).round(2).tolist(),
        "bonds": sticks,
        "contacts": contacts,
        "cell": ((cell - centre) * view).round(2).tolist(),
        "hydrogen": None if pose is None else count,
        "turned": turned,
    }


def scenes(evaluation, shortlist: list[dict]) -> dict[str, dict]:
    """Scenes by material_id: of the shortlist, then of the other relaxed layers, MAX_SCENES in all."""
    first = [item["material_id"] for item in shortlist]
    names = dict.fromkeys([*first, *evaluation.rows["material_id"]])
    drawn = [name for name in names if name in evaluation.relaxed][:MAX_SCENES]
    return {name: scene(evaluation.relaxed[name], evaluation.poses.get(name)) for name in drawn}


def element(symbol: str) -> dict:
    """Name, Jmol colour and covalent radius (Å) of an element."""
    z = atomic_numbers[symbol]
    colour = "#" + "".join(f"{round(255 * c):02x}" for c in jmol_colors[z])
    return {"name": atomic_names[z], "colour": colour, "radius": round(float(covalent_radii[z]), 3)}


def words(metrics: dict[str, dict]) -> list[dict]:
    """The metrics that a table shows, in groups and words; one that the schema does not know stands last."""
    present = list(dict.fromkeys(name for values in metrics.values() for name in values))
    known = {metric.name: metric for metric in SET_METRICS if metric.name in present}
    groups = {metric.group: [] for metric in SET_METRICS} | {"Further": []}
    for name, metric in known.items():
        entry = {"name": name, "label": metric.label, "note": metric.note, "unit": metric.unit}
        groups[metric.group].append(entry | {"main": metric.main})
    for name in present:
        if name not in known:
            unit = PERCENT if name.endswith("_rate") else EV if name.endswith("_eV") else PURE
            label = name.replace("_", " ")
            groups["Further"].append({"name": name, "label": label, "note": "", "unit": unit, "main": False})
    return [{"title": title, "metrics": found} for title, found in groups.items() if found]


def embedded(figures: list[Path]) -> tuple[list[dict], list[str]]:
    """PNG files as data URIs up to FIGURE_BYTES in all, and the names of those that did not fit."""
    images, left_out, total = [], [], 0
    for path in map(Path, figures):
        if not path.is_file():
            continue
        total += path.stat().st_size
        if total > FIGURE_BYTES:
            left_out.append(path.name)
            total -= path.stat().st_size
            continue
        images.append(
            {
                "name": path.stem.replace("_", " "),
                "uri": "data:image/png;base64," + b64encode(path.read_bytes()).decode(),
            }
        )
    return images, left_out


def content(
    name: str,
    evaluation,
    others: dict[str, pd.DataFrame],
    metrics: dict,
    shortlist: list[dict],
    figures: list[Path],
) -> dict:
    """All that the page shows, as plain JSON types; arguments as in write_html."""
    rows, drawn = evaluation.rows, scenes(evaluation, shortlist)
    symbols = {symbol for scene_ in drawn.values() for symbol in scene_["symbols"]}
    failed = rows[rows["error"] != ""]
    images, left_out = embedded(figures)
    return plain(
        {
            "set": name,
            "sets": [set_content(label, set_) for label, set_ in {name: rows, **others}.items()],
            "groups": words(metrics),
            "metrics": metrics,
            "headline": [key for key in HEADLINE if key in metrics.get(name, {})],
            "labels": COLUMNS,
            "shortlist": shortlist,
            "rows": records(rows),
            "scenes": list(drawn.items()),
            "undrawn": max(0, len(evaluation.relaxed) - len(drawn)),
            "elements": {symbol: element(symbol) for symbol in sorted(symbols)},
            "failures": failed[["material_id", "formula", "error"]].to_numpy(),
            "causes": causes(rows["error"]),
            "provenance": evaluation.provenance,
            "volcano": volcano(),
            "thresholds": {"stable": STABLE, "active": VERY_ACTIVE},
            "figures": images,
            "figures_left_out": left_out,
        }
    )


def set_content(label: str, rows: pd.DataFrame) -> dict:
    """What the plots show of a set."""
    return {
        "name": label,
        "note": SET_NOTES.get(label, ""),
        "points": points(rows),
        "funnel": funnel(rows),
        "parity": {key: parity(rows, key) for key in ("dimenet", "second")},
    }


def volcano() -> dict:
    """The curve of the kinetic model, its constants, and metals for orientation."""
    axis = np.linspace(-1, 1, 161)
    metals = [[metal, value, log_exchange_current(value)] for metal, value in METALS.items()]
    curve = np.column_stack([axis, log_exchange_current(axis)]).round(3)
    return {"curve": curve, "k0": K0, "sites": SITES, "metals": metals}


def script_safe(value) -> str:
    """JSON that cannot end or escape the script element it stands in, ASCII alone."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def program_hash(program: str) -> str:
    """Hash of the page's one script element for its security policy: no browser runs anything else, or asks
    any server.
    """
    return b64encode(hashlib.sha256(f"\n{program}".encode()).digest()).decode()


def write_html(
    path: Path,
    name: str,
    evaluation,
    others: dict[str, pd.DataFrame],
    metrics: dict[str, dict],
    shortlist: list[dict],
    figures: list[Path],
) -> None:
    """Writes the report of a set as one HTML file that needs no other file and no network.

    Args:
        path: the file; written by rename.
        name: name of the set.
        evaluation: models.evaluation.outputs.Evaluation; `relaxed` are layers in the convention, `poses`
            supercells of them with H as the last atom (positions and cells in Å), either may lack an id;
            `provenance` may name "potential" and "second_potential".
        others: tables of the sets to compare with, by name.
        metrics: {set: {metric: {"value", "ci95": [low, high], "n"}}}, the own set first. A metric of another
            set may carry "difference", "difference_ci95" (own minus other, in its unit) and "p_value".
        shortlist: best first; keys material_id, formula, layer_group, e_hull_eV_per_atom (eV/atom),
            delta_g_h_oracle_eV and delta_g_h_dimenet_eV (eV), p_synth and p_active (0 to 1), None where not
            computed. Other keys become columns.
        figures: PNG files to embed; those that do not exist are left out.
    """
    program, style = ((HERE / f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    data = script_safe(content(name, evaluation, others, metrics, shortlist, figures))
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report_template.html").render(
        style=Markup(style), program=Markup(program), program_hash=program_hash(program), data=Markup(data)
    )
    write_text(path, page + "\n")
