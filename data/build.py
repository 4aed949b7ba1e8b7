"""Builds the embedded data with an interatomic potential: python data/build.py --jobs 2

Three levels, each a list of work items and an append-only shard of JSON lines (data/shards/*.jsonl): reference
phases, layers, hydrogen on layers and metal surfaces. What is in a shard is never computed again, so the builder may
be killed and started at any moment; databases and LMDBs are packed from the shards, sorted, and so do not depend on
the order of work.
"""

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from ase import Atoms
from ase.build import bcc110, fcc111, hcp0001
from ase.data import atomic_numbers
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data.prototypes import (  # noqa: E402
    ALKALI,
    ALKALINE_EARTH,
    CHALCOGENS,
    HALOGENS,
    PNICTOGENS,
    PROTOTYPES,
    TETRELS,
    TRANSITION,
    TRIELS,
)
from models.adsorption import adsorb, adsorption_sites, hydrogen_energy, roomy  # noqa: E402
from models.hull import MAX_ENERGY, relax_phase  # noqa: E402
from models.layer import NotALayer, extract_layer, min_distance_ratio  # noqa: E402
from models.potentials import load_potential, relax_layer, single_point  # noqa: E402
from models.shards import Shard, digest, pack_atoms, unpack_atoms  # noqa: E402
from models.templates import substitute  # noqa: E402

HERE = Path(__file__).resolve().parent
METALS = ALKALI + ALKALINE_EARTH + TRANSITION + TRIELS + ["Si", "Ge", "Sn", "Pb", "Sb", "Bi"]
NONMETALS = TETRELS[:3] + PNICTOGENS + CHALCOGENS + HALOGENS + ["B"]

# AFLOW prototype tags of the elemental phases tried; the lowest energy is the element's reference.
CLOSE_PACKED = ["A_cF4_225_a", "A_cI2_229_a", "A_hP2_194_c"]
ELEMENTAL = {
    "B": ["A_hR12_166_2h"], "C": ["A_hP4_194_bc"], "N": ["A_cP8_205_c"], "O": ["A_hR2_166_c", "A_mC4_12_i"],
    "F": ["A_mC4_12_i", "A_oC8_64_f"], "Si": ["A_cF8_227_a"], "P": ["A_oC8_64_f"], "S": ["A_hP3_152_a"],
    "Cl": ["A_oC8_64_f"], "Ga": ["A_oC8_64_f"], "Ge": ["A_cF8_227_a"], "As": ["A_hR2_166_c"], "Se": ["A_hP3_152_a"],
    "Br": ["A_oC8_64_f"], "In": ["A_tI2_139_a"], "Sn": ["A_cF8_227_a", "A_tI4_141_a"], "Sb": ["A_hR2_166_c"],
    "Te": ["A_hP3_152_a"], "I": ["A_oC8_64_f"], "Bi": ["A_hR2_166_c"],
}  # fmt: skip
# Competing binaries, tried for every metal with every nonmetal, one prototype after the other: rock salt, fluorite, antifluorite,
# NiAs, zincblende, CsCl, rutile, Bi2Te3, ReO3. True: the metal takes the rarer site.
BINARY = [("AB_cF8_225_a_b", True), ("AB2_cF12_225_a_c", True), ("AB2_cF12_225_a_c", False), ("AB_hP4_194_c_a", True),
          ("AB_cF8_216_c_a", True), ("AB_cP2_221_b_a", True), ("A2B_tP6_136_f_a", True), ("A2B3_hR5_166_c_ac", True),
          ("A3B_cP4_221_d_a", True)]  # fmt: skip
SURFACES = {
    fcc111: dict(Pt=3.97, Pd=3.95, Ni=3.52, Cu=3.64, Ag=4.15, Au=4.16, Rh=3.84, Ir=3.87, Al=4.04),
    hcp0001: dict(Co=2.50, Ru=2.72, Re=2.77, Os=2.76, Ti=2.94, Zr=3.23),
    bcc110: dict(Mo=3.16, W=3.19, Nb=3.31, V=3.00, Fe=2.83, Cr=2.85),
}  # Å, PBE lattice constants, rounded; the potential relaxes them


def _aflow() -> dict:
    from pymatgen.analysis.prototypes._data import AFLOW_PROTOTYPE_LIBRARY
    from pymatgen.io.ase import AseAtomsAdaptor

    found = {}
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure.get_primitive_structure()
        found.setdefault(entry["tags"]["aflow"], AseAtomsAdaptor.get_atoms(structure, msonable=False))
    return found


def reference_items() -> list[dict]:
    """Elemental phases, then binaries of every metal with every nonmetal."""
    elements = sorted({*METALS, *NONMETALS}, key=atomic_numbers.get)
    aflow = _aflow()
    items = []
    for element in elements:
        for tag in ELEMENTAL.get(element, CLOSE_PACKED):
            items.append((f"{element}:{tag}", aflow[tag], {s: element for s in aflow[tag].symbols}))
    pairs = sorted((p for p in itertools.product(METALS, NONMETALS) if p[0] != p[1]), key=lambda pair: digest("".join(pair)))
    for (tag, metal_is_rare), (metal, nonmetal) in itertools.product(BINARY, pairs):
        rarest_first = sorted(set(aflow[tag].symbols), key=list(aflow[tag].symbols).count)
        fill = (metal, nonmetal) if metal_is_rare else (nonmetal, metal)
        items.append((f"{'-'.join(fill)}:{tag}", aflow[tag], dict(zip(rarest_first, fill))))
    made = {key: pack_atoms(substitute(atoms, elements)) for key, atoms, elements in items}
    molecule = pack_atoms(Atoms("H2", [(0, 0, 0), (0, 0, 0.75)], cell=[15.0] * 3))  # its molecular crystal collapses in SevenNet
    return [{"key": key, "atoms": atoms} for key, atoms in {"H:molecule": molecule, **made}.items()]


def layer_items() -> list[dict]:
    """Every decoration of every prototype that SMACT calls sensible, and the references themselves."""
    from smact.screening import smact_validity

    items = {}
    for prototype in PROTOTYPES:
        slots = list(prototype.decorations)
        for choice in itertools.product(*prototype.decorations.values()):
            if len(set(choice)) < len(choice) and len(slots) == len(set(prototype.reference.values())):
                continue
            fill = {prototype.reference[slot]: element for slot, element in zip(slots, choice)}
            atoms = substitute(prototype.atoms(), fill)
            if fill != {e: e for e in fill} and not smact_validity(atoms.get_chemical_formula(empirical=True)):
                continue
            key = f"{prototype.name}:{'-'.join(choice)}"
            items[key] = {"key": key, "prototype": prototype.name, "atoms": pack_atoms(atoms)}
    return sorted(items.values(), key=lambda item: digest(item["key"]))


def adsorption_items(layers: list[dict]) -> list[dict]:
    """Metal surfaces, then the layers that were kept."""
    items = []
    for build, metals in SURFACES.items():
        for metal, a in metals.items():
            slab = build(metal, (1, 1, 4), a=a, vacuum=8.0)
            items.append({"key": f"{build.__name__}:{metal}", "atoms": pack_atoms(slab), "surface": True})
    kept = [row for row in layers if row["reason"] == ""]
    for row in sorted(kept, key=lambda row: digest(row["key"])):
        items.append({"key": row["key"], "atoms": row["atoms"], "energy": row["energy"]})
    return items


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
    """Rigid ΔE_H at every symmetry-distinct site of a host, in the smallest supercell with H–H >= 6 Å."""
    calculator = _worker["calculator"]
    host = unpack_atoms(item["atoms"])
    energy = item.get("energy")
    if item.get("surface"):
        relaxed = relax_layer(host, calculator, fmax=0.03)
        host, energy = extract_layer(relaxed.atoms).atoms, relaxed.energy
    energy = single_point(roomy(host), calculator) if energy is None else energy
    rows, slab = [], None
    for result in adsorb(host, calculator, adsorption_sites(host), energy, _worker["half_h2"]):
        slab = slab or result.start[:-1]
        to_slab = slab.positions[0] - result.start.positions[0]  # each pose is centred together with its own H
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


def guarded(task, item: dict) -> dict:
    """Row of an item; one bad structure costs one row: what it raised is its reason."""
    begin = time.time()
    try:
        row = task(item)
    except Exception as error:
        row = {"reason": f"{type(error).__name__}: {error}"[:200], "atoms": item["atoms"]}
        row.update({k: item[k] for k in ("prototype",) if k in item})
    return row | {"seconds": round(time.time() - begin, 2)}


def run_level(name: str, task, items: list[dict], shard: Shard, args) -> None:
    """Computes the items that the shard lacks, `args.jobs` at a time."""
    items = items[: args.limit] if args.limit else items
    todo = [item for item in items if item["key"] not in shard.rows]
    if not todo:
        return
    context = multiprocessing.get_context("spawn")
    deadline = time.time() + args.hours * 3600
    with ProcessPoolExecutor(args.jobs, context, start_worker, (args.potential,)) as pool:
        queue = iter(todo)
        running = {pool.submit(guarded, task, item): item["key"] for item in itertools.islice(queue, 2 * args.jobs)}
        with tqdm(total=len(items), initial=len(items) - len(todo), desc=name, mininterval=5) as bar:
            while running:
                done = next(as_completed(running))
                shard.append(running.pop(done), done.result())
                bar.update()
                following = next(queue, None) if time.time() < deadline else None
                if following:
                    running[pool.submit(guarded, task, following)] = following["key"]


def claim(path: Path, potential: str) -> None:
    """Marks the shards as one potential's, for energies of two must never be mixed.

    Raises:
        SystemExit: they are another potential's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text().strip() != potential:
        raise SystemExit(f"{path.parent} was made with {path.read_text().strip()}: give another --out for {potential}")
    path.write_text(potential + "\n")


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("levels", nargs="*", default=["references", "layers", "adsorption", "pack"],
                        help="which of references, layers, adsorption, pack to do, in this order")  # fmt: skip
    parser.add_argument("--potential", default="sevennet", help="potential that makes the data (models/potentials.py)")
    parser.add_argument("--out", type=Path, default=HERE, help="where the shards and the packed files go")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, one thread each")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many items of each level, 0 for all")
    parser.add_argument("--hours", type=float, default=1e6, help="start no new item of a level after this time")
    return parser


def main():
    args = build_parser().parse_args()
    claim(args.out / "shards" / "potential.txt", args.potential)
    shards = {name: Shard(args.out / "shards" / f"{name}.jsonl") for name in ("references", "layers", "adsorption")}
    if "references" in args.levels:
        run_level("reference phases", relax_reference, reference_items(), shards["references"], args)
    if "layers" in args.levels:
        run_level("layers", relax_candidate, layer_items(), shards["layers"], args)
    if "adsorption" in args.levels:
        run_level("adsorption", adsorb_on, adsorption_items(shards["layers"].sorted_rows()), shards["adsorption"], args)
    if "pack" in args.levels:
        from data.pack import pack

        pack(shards, args.out, args.potential)


if __name__ == "__main__":
    main()
