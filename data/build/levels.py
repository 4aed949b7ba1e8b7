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
from models.crystals.sites import roomy
from models.infra.files import ROOT, digest, write_text
from models.infra.shards import Shard
from models.physics.hull import MAX_ENERGY, relax_phase
from models.physics.hydrogen import Adsorption, HydrogenOracle
from models.physics.potentials import relax_layer, single_point

HERE = ROOT / "data"
RELAXED_SITES = 2  # best rigid sites of a host that are relaxed with it
HOST_FMAX = (
    0.03  # eV/Å; a host is relaxed further than a layer, or what it still relaxes by is taken for adsorption
)


def relax_reference(item: dict, oracle: HydrogenOracle) -> dict:
    """Relaxes a bulk phase, cell and atoms."""
    atoms, energy, converged = relax_phase(unpack_atoms(item["atoms"]), oracle.calculator)
    reason = "" if converged else "not converged"
    if abs(energy) > MAX_ENERGY * len(atoms):
        reason = "a hole in the potential"
    return {"atoms": pack_atoms(atoms), "energy": energy, "reason": reason}


def relax_candidate(item: dict, oracle: HydrogenOracle) -> dict:
    """Relaxes a layer; `reason` says why it is dropped, if it is."""
    start = unpack_atoms(item["atoms"])
    start.rattle(0.02, seed=int(digest(item["key"])[:8], 16))
    relaxed = relax_layer(start, oracle.calculator, fmax=0.05, steps=120)
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


def adsorb_on(item: dict, oracle: HydrogenOracle) -> dict:
    """Rigid ΔE_H at the symmetry-distinct sites of a host, all or the best few, in the smallest supercell
    with H–H >= 6 Å.
    """
    host, energy = unpack_atoms(item["atoms"]), item.get("energy")
    if item.get("relax"):
        host, energy = oracle.own_layer(host, HOST_FMAX)
    elif energy is None:
        energy = single_point(roomy(host), oracle.calculator)
    results = oracle.adsorb(host, energy, item.get("top", 0))
    slab = results[0].start[:-1] if results else None
    sites = [_site_row(result, slab) for result in results]
    if sites:
        sites[0]["slab"] = pack_atoms(slab)
    return {"sites": sites, "energy": energy, "host": pack_atoms(host), "reason": "" if sites else "no site"}


def _site_row(result: Adsorption, slab: Atoms) -> dict:
    """A site in a shard; its poses are centred together with their own H, the slab is stored once."""
    to_slab = slab.positions[0] - result.start.positions[0]
    return {
        "kind": result.site.kind,
        "face": result.site.face,
        "delta_e": result.delta_e,
        "converged": result.converged,
        "flag": result.flag,
        "start": (result.start.positions[-1] + to_slab).round(5).tolist(),
        "end": (result.end.positions[-1] + to_slab).round(5).tolist(),
        "slab": None,
    }


def perturb(item: dict, oracle: HydrogenOracle) -> dict:
    """Energies of the layer's off-equilibrium variants, single points."""
    elements = sorted({*METALS, *NONMETALS})
    variants = []
    for kind, atoms in perturbations(unpack_atoms(item["atoms"]), item["key"], elements):
        packed = pack_atoms(atoms)
        energy = round(single_point(unpack_atoms(packed), oracle.calculator), 5)
        variants.append({"kind": kind, **packed, "energy": energy})
    return {"variants": variants, "reason": ""}


def relax_adsorbed(item: dict, oracle: HydrogenOracle) -> dict:
    """ΔE_H with everything relaxed at a host's best rigid sites; then H is taken off and the slab relaxed
    again.
    """
    row = item["row"]
    packed_slab = row["sites"][0]["slab"]
    slab = unpack_atoms(packed_slab)
    slab_energy = len(slab) // len(row["host"]["numbers"]) * row["energy"]
    good = [site for site in row["sites"] if site["converged"] and not site["flag"]]
    good.sort(key=lambda site: site["delta_e"])
    sites = []
    for site in good[:RELAXED_SITES]:
        free = oracle.release(slab + Atoms("H", [site["end"]]), site["face"], slab_energy)
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
    return {"slab": packed_slab, "host": row["host"], "energy": row["energy"], "sites": sites, "reason": ""}


def guarded(named: tuple, oracle: HydrogenOracle) -> dict:
    """Row of a (task, item); one bad structure costs one row: what it raised is its reason."""
    task, item = named
    begin = time.time()
    try:
        row = task(item, oracle)
    except Exception as error:
        row = {"reason": f"{type(error).__name__}: {error}"[:200]} | {
            k: item[k] for k in ("atoms", "prototype") if k in item
        }
    return row | {"seconds": round(time.time() - begin, 2)}


LEVELS = {  # level: its task, the level whose rows its items are made of ("" for none), and the items
    "references": (relax_reference, "", reference_items),
    "layers": (relax_candidate, "", layer_items),
    "adsorption": (adsorb_on, "layers", adsorption_items),
    "perturbed": (perturb, "layers", perturbed_items),
    "relaxed": (relax_adsorbed, "adsorption", relaxed_items),
}


def items_of(level: str, shards: dict[str, Shard]) -> list[dict]:
    """Work items of a level, from the shard of the level before it."""
    _, before, make = LEVELS[level]
    return make(shards[before].sorted_rows()) if before else make()


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
