"""The levels of the embedded data: reference phases, layers, their off-equilibrium variants, hydrogen on
rigid layers and metal surfaces, hydrogen with everything relaxed. Each is a list of work items (items.py) and
an append-only shard of JSON lines.
"""

import time
from pathlib import Path

from ase import Atoms

from data.build.items import (
    METALS,
    NONMETALS,
    adsorption_items,
    layer_items,
    perturbations,
    perturbed_items,
    reference_items,
    relaxed_items,
)
from models.crystals.layer import NotALayer, extract_layer, min_distance_ratio, pack_atoms, unpack_atoms
from models.crystals.sites import adsorption_sites, roomy
from models.infra.files import ROOT, digest, write_text
from models.physics.hull import MAX_ENERGY, relax_phase
from models.physics.hydrogen import adsorb, hydrogen_energy, relax_and_release
from models.physics.potentials import load_potential, relax_layer, single_point

HERE = ROOT / "data"
RELAXED_SITES = 2  # best rigid sites of a host that are relaxed with it


_worker = {}


def start_worker(potential: str):
    """Loads the potential once a process, on one thread."""
    import torch

    torch.set_num_threads(1)
    _worker["calculator"] = load_potential(potential).calculator
    _worker["half_h2"] = hydrogen_energy(_worker["calculator"])


def relax_reference(item: dict) -> dict:
    """Relaxes a bulk phase, cell and atoms."""
    atoms, energy, converged = relax_phase(unpack_atoms(item["atoms"]), _worker["calculator"])
    reason = "" if converged else "not converged"
    if abs(energy) > MAX_ENERGY * len(atoms):
        reason = "a hole in the potential"
    return {"atoms": pack_atoms(atoms), "energy": energy, "reason": reason}


def relax_candidate(item: dict) -> dict:
    """Relaxes a layer; `reason` says why it is dropped, if it is."""
    start = unpack_atoms(item["atoms"])
    start.rattle(0.02, seed=int(digest(item["key"])[:8], 16))
    relaxed = relax_layer(start, _worker["calculator"], fmax=0.05, steps=120)
    result = {"prototype": item["prototype"], "energy": relaxed.energy, "steps": relaxed.steps}
    atoms, reason = relaxed.atoms, ""
    if not relaxed.converged:
        reason = "not converged"
    elif min_distance_ratio(atoms) < 0.7:
        reason = "overlapping atoms"
    else:
        try:
            atoms = extract_layer(atoms).atoms
        except NotALayer:
            reason = "not one 2D component"
    return {**result, "atoms": pack_atoms(atoms), "reason": reason}


def adsorb_on(item: dict) -> dict:
    """Rigid ΔE_H at the symmetry-distinct sites of a host, all or the best few, in the smallest supercell
    with H–H >= 6 Å.
    """
    calculator = _worker["calculator"]
    host = unpack_atoms(item["atoms"])
    energy = item.get("energy")
    if item.get("relax"):
        relaxed = relax_layer(host, calculator, fmax=0.03)
        host, energy = extract_layer(relaxed.atoms).atoms, relaxed.energy
    energy = single_point(roomy(host), calculator) if energy is None else energy
    rows, slab = [], None
    for result in adsorb(
        host, calculator, adsorption_sites(host), energy, _worker["half_h2"], top=item.get("top", 0)
    ):
        slab = slab or result.start[:-1]
        to_slab = (
            slab.positions[0] - result.start.positions[0]
        )  # each pose is centred together with its own H
        rows.append(
            {
                "kind": result.site.kind,
                "face": result.site.face,
                "delta_e": result.delta_e,
                "converged": result.converged,
                "flag": result.flag,
                "start": (result.start.positions[-1] + to_slab).round(5).tolist(),
                "end": (result.end.positions[-1] + to_slab).round(5).tolist(),
                "slab": pack_atoms(slab) if not rows else None,
            }
        )
    return {"sites": rows, "energy": energy, "host": pack_atoms(host), "reason": "" if rows else "no site"}


def perturb(item: dict) -> dict:
    """Energies of the layer's off-equilibrium variants, single points."""
    elements = sorted({*METALS, *NONMETALS})
    variants = []
    for kind, atoms in perturbations(unpack_atoms(item["atoms"]), item["key"], elements):
        packed = pack_atoms(atoms)
        variants.append(
            {
                "kind": kind,
                **packed,
                "energy": round(single_point(unpack_atoms(packed), _worker["calculator"]), 5),
            }
        )
    return {"variants": variants, "reason": ""}


def relax_adsorbed(item: dict) -> dict:
    """ΔE_H with everything relaxed at a host's best rigid sites; then H is taken off and the slab relaxed
    again.
    """
    calculator, row = _worker["calculator"], item["row"]
    slab = unpack_atoms(row["sites"][0]["slab"])
    layers = len(slab) // len(row["host"]["numbers"])
    good = [site for site in row["sites"] if site["converged"] and not site["flag"]]
    sites = []
    for site in sorted(good, key=lambda site: site["delta_e"])[:RELAXED_SITES]:
        start = slab + Atoms("H", [site["end"]])
        free = relax_and_release(start, site["face"], calculator, layers * row["energy"], _worker["half_h2"])
        sites.append(
            {
                "kind": site["kind"],
                "face": site["face"],
                "start": site["start"],
                "end": free.end.positions.round(5).tolist(),
                "delta_e": free.delta_e,
                "rigid_delta_e": site["delta_e"],
                "slab_change": free.slab_change,
                "converged": free.converged,
                "flag": free.flag,
            }
        )
    return {
        "slab": row["sites"][0]["slab"],
        "host": row["host"],
        "energy": row["energy"],
        "sites": sites,
        "reason": "",
    }


def guarded(named: tuple) -> dict:
    """Row of a (task, item); one bad structure costs one row: what it raised is its reason."""
    task, item = named
    begin = time.time()
    try:
        row = task(item)
    except Exception as error:
        row = {"reason": f"{type(error).__name__}: {error}"[:200]} | {
            k: item[k] for k in ("atoms", "prototype") if k in item
        }
    return row | {"seconds": round(time.time() - begin, 2)}


LEVELS = {  # level: its task, and its items from the rows of the levels before it
    "references": (relax_reference, lambda rows: reference_items()),
    "layers": (relax_candidate, lambda rows: layer_items()),
    "adsorption": (adsorb_on, lambda rows: adsorption_items(rows["layers"])),
    "perturbed": (perturb, lambda rows: perturbed_items(rows["layers"])),
    "relaxed": (relax_adsorbed, lambda rows: relaxed_items(rows["adsorption"])),
}


def claim(path: Path, potential: str) -> None:
    """Marks the shards as one potential's, for energies of two must never be mixed.

    Raises:
        SystemExit: they are another potential's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text().strip() != potential:
        raise SystemExit(
            f"{path.parent} was made with {path.read_text().strip()}: give another --out for {potential}"
        )
    write_text(path, potential + "\n")
