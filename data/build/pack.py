"""Packs the builder's shards into what the pipeline reads: ASE databases in C2DB's schema and OC20-schema
LMDBs.
"""

import json
from collections import Counter
from pathlib import Path

import ase.db
import numpy as np
import torch
from ase import Atoms
from ase.geometry import find_mic
from pymatgen.core import Composition
from torch_geometric.data import Data

from data.build.rows import checked
from models.crystals.layer import min_distance_ratio, pack_atoms, unpack_atoms
from models.crystals.matching import Fingerprint, Register, layer_group
from models.crystals.sites import adsorption_flag, adsorption_sites, roomy, with_hydrogen
from models.crystals.split import split_of
from models.crystals.thresholds import OVERLAP_SCALE
from models.datasets.lmdb_data import LmdbDataset, safe_loads, write_lmdb
from models.infra.files import ROOT, atomic, read_rows, save_checkpoint, write_json
from models.infra.shards import Shard
from models.physics.hull import MAX_ENERGY, Hull
from models.physics.potentials import load_potential

HERE = ROOT / "data"
TABLE_NAMES = {  # names of known_layers.csv -> of prototypes.py, where they differ
    "BN": {"graphene"},
    "silicene": {"silicene", "honeycomb-A"},
    "graphene": {"graphene", "honeycomb-A"},
    "MgOH2": {"brucite"},
    "perovskite": {"K2NiF4"},
    "RuCl3": {"CrI3"},
    "MPX3": {"CrGeTe3"},
    "MXene-M2XT2": {"MXene-M2XT2", "MXene-M2X(OH)2"},
    "other": {"MnBi2Te4", "Janus-1T", "CuI"},
}


def known_layers() -> dict:
    """(reduced formula, prototype) -> source, of the layers made in experiment."""
    rows = read_rows(HERE / "known_layers.csv")
    names = lambda row: TABLE_NAMES.get(row["prototype"], {row["prototype"]})
    return {(row["formula"], name): row["doi"] or row["source"] for row in rows for name in names(row)}


def pack_references(references, layers, path: Path, potential: str, competitors=()) -> Hull:
    """Lowest converged phase of each formula, layers included; returns the hull that an evaluation reads from
    them, with the points and offsets that serve the potential.

    What overlaps is left out, a hole of the potential that looks like a compound: rutile NiI2 at 1.4 eV/atom.

    Args:
        references, layers: rows of these levels' shards.
        competitors: rows of competitors.jsonl, systems searched on demand.
    """
    best, searched = {}, {}
    rows = [row for row in (*references, *layers) if not row["reason"]]
    for system in competitors:
        searched[system["key"]] = system["budget"]
        rows += [{**phase, "key": phase["name"]} for phase in system["phases"]]
    for row in rows:
        atoms = unpack_atoms(row["atoms"])
        if min_distance_ratio(atoms) < OVERLAP_SCALE:
            continue
        formula, units = Composition(atoms.get_chemical_formula()).get_reduced_formula_and_factor()
        if formula not in best or row["energy"] / units < best[formula][0]:
            best[formula] = row["energy"] / units, row, atoms
    with atomic(path) as temporary:
        with ase.db.connect(temporary) as database:
            for _, row, atoms in (best[formula] for formula in sorted(best)):
                database.write(atoms, name=row["key"], energy_eV=row["energy"])
        database.metadata = {"potential": potential, "searched": searched}
    return Hull.read(path)


def pack_layers(layers, hull: Hull, path: Path, potential: str) -> tuple[list[str], Counter]:
    """her2d.db, duplicates dropped (the stablest stays); returns the keys kept and what was dropped."""
    known, seen, dropped, rows = known_layers(), Register(), Counter(), []
    for row in layers:
        if row["reason"]:
            dropped[row["reason"] if ":" not in row["reason"] else "calculation failed"] += 1
            continue
        atoms = unpack_atoms(row["atoms"])
        try:
            stability = hull.stability(atoms.get_chemical_formula(), row["energy"])
        except ValueError as error:
            dropped[str(error)] += 1
            continue
        rows.append((stability, row, atoms))
    kept = []
    with atomic(path) as temporary:
        with ase.db.connect(temporary) as database:
            for stability, row, atoms in sorted(rows, key=lambda item: (item[0].e_form, item[1]["key"])):
                fingerprint = Fingerprint(atoms)
                if seen.find(fingerprint) is not None:
                    dropped["duplicate"] += 1
                    continue
                seen.add(row["key"], fingerprint)
                kept.append(row["key"])
                source = known.get((fingerprint.formula, row["prototype"]))
                database.write(
                    atoms,
                    uid=row["key"],
                    hform=stability.e_form,
                    ehull=stability.e_hull,
                    layergroup=layer_group(atoms),
                    prototype=row["prototype"],
                    crystal_type=row["prototype"],
                    source=f"{potential}, data/build.py",
                    **({"doi": source} if source else {}),
                )
        database.metadata = {"potential": potential, "counts": dict(dropped)}
    return kept, dropped


def _flagged(slab: Atoms, end: np.ndarray, site: dict) -> str:
    """Why a site's end is no adsorption, judged anew but for what only the builder saw; else empty."""
    pose = Atoms([*slab.numbers, 1], end, cell=slab.cell, pbc=slab.pbc)
    reconstructed = "reconstructed" if site["flag"] == "reconstructed" else ""
    return (
        adsorption_flag(pose, site["face"]) or reconstructed or ("" if site["converged"] else "not converged")
    )


def adsorption_records(row, sid: int):
    """OC20-schema records of a host's sites, rigid or relaxed; what is no adsorption is counted, not trained
    on.
    """
    records, dropped = [], Counter()
    if row["reason"]:
        return records, Counter({"calculation failed" if ":" in row["reason"] else row["reason"]: 1})
    slab = unpack_atoms(row.get("slab") or row["sites"][0]["slab"])
    numbers = torch.tensor([*slab.numbers, 1])
    tags = torch.tensor([1] * len(slab) + [2])
    for k, site in enumerate(row["sites"]):
        start = np.vstack([slab.positions, site["start"]])
        everything_moved = len(np.shape(site["end"])) == 2
        end = np.array(site["end"]) if everything_moved else np.vstack([slab.positions, site["end"]])
        flag = _flagged(slab, end, site)
        if flag:
            dropped[flag] += 1
            continue
        records.append(
            Data(
                pos=torch.tensor(start, dtype=torch.float32),
                pos_relaxed=torch.tensor(end, dtype=torch.float32),
                cell=torch.tensor(slab.cell.array[None], dtype=torch.float32),
                atomic_numbers=numbers,
                natoms=len(numbers),
                tags=tags,
                fixed=torch.zeros(len(numbers)) if everything_moved else (tags != 2).float(),
                sid=sid * 100 + k,
                y_relaxed=site["delta_e"],
                host_uid=row["key"],
                site=f"{site['kind']}-{'top' if site['face'] > 0 else 'bottom'}",
            )
        )
    return records, dropped


def evaluated_rows(path: Path) -> list[dict]:
    """What the oracle said of a set, as rows of the relaxed level: the best site of each layer.

    Args:
        path: adsorbed.jsonl, which test.py and evaluate_external.py leave. Where H started is the site of the
            same kind and face that its pose is nearest to.
    """
    rows = []
    for result in Shard(path).rows.values():
        if result["pose"] is None:
            continue
        layer, pose = unpack_atoms(result["layer"]), unpack_atoms(result["pose"])
        starts = [
            (site, roomy(with_hydrogen(layer, site)))
            for site in adsorption_sites(layer)
            if site.label == result["row"]["h_site"]
        ]
        apart = lambda start: find_mic(start[1].positions[-1] - pose.positions[-1], pose.cell, pose.pbc)[1]
        if not starts:  # one bad structure costs one row
            print(f"not packed: {result['key']} has no site {result['row']['h_site']}")
            continue
        site, start = min(starts, key=apart)
        delta_e = result["row"]["delta_g_h_oracle_eV"] - result["correction"]
        found = {
            "kind": site.kind,
            "face": site.face,
            "start": start.positions[-1].tolist(),
            "end": pose.positions.tolist(),
            "delta_e": delta_e,
            "converged": True,
            "flag": "",
        }
        # what two sets both hold counts once
        key = f"{layer.get_chemical_formula()} {layer_group(layer)} {delta_e:.2f} eV"
        rows.append(
            {
                "key": key,
                "reason": "",
                "slab": pack_atoms(start[:-1]),
                "host": pack_atoms(layer),
                "sites": [found],
            }
        )
    return rows


def pack_evaluated(paths: list[Path], out: Path) -> None:
    """her2d_h_generated_{train,val,test}.lmdb of what the oracle said of several sets."""
    rows = {row["key"]: row for path in paths for row in evaluated_rows(path)}
    print(
        json.dumps(pack_adsorption([rows[key] for key in sorted(rows)], out, "her2d_h_generated"), indent=1)
    )


def rejudge(path: Path) -> dict:
    """Drops from a packed LMDB the records whose relaxed pose is no adsorption by the rules of today; for
    sets whose shards are not kept. The others stay as they are, under new keys.
    """
    stored, kept, dropped = LmdbDataset([path]), [], Counter()
    for index in range(len(stored)):
        fields = safe_loads(stored.raw(index))
        numbers, end, cell = (np.asarray(fields[k]) for k in ("atomic_numbers", "pos_relaxed", "cell"))
        pose = Atoms(numbers.astype(int), end, cell=cell[0], pbc=(True, True, False))
        flag = adsorption_flag(pose, 1 if fields["site"].endswith("-top") else -1)
        if flag:
            dropped[flag] += 1
        else:
            kept.append(Data(**fields))
    if dropped:
        write_lmdb(path, kept)
    return {"file": path.name, "kept": len(kept), "dropped": dict(dropped)}


def pack_adsorption(rows, out: Path, prefix: str) -> dict:
    """{prefix}_{train,val,test}.lmdb, split by the host's reduced formula."""
    splits, dropped, hosts = {"train": [], "val": [], "test": []}, Counter(), Counter()
    for sid, row in enumerate(rows):
        records, lost = adsorption_records(row, sid)
        dropped += lost
        if records:
            split = split_of(unpack_atoms(row["host"]).get_chemical_formula())
            splits[split] += records
            hosts[split] += 1
    for name, records in splits.items():
        if records:
            write_lmdb(out / f"{prefix}_{name}.lmdb", records)
    return {"records": {k: len(v) for k, v in splits.items()}, "hosts": dict(hosts), "dropped": dict(dropped)}


def pack_perturbed(rows, hull: Hull, path: Path) -> dict:
    """perturbed.pt, tensors of M structures one after another: natoms [M], atomic_numbers [ΣN], pos [ΣN, 3]
    Å, cell [M, 3, 3] Å, e_hull [M] eV/atom above the hull (single points, not relaxed), kind [M] and uid [M]
    (the layer's).
    """
    fields = {name: [] for name in ("natoms", "atomic_numbers", "pos", "cell", "e_hull", "kind", "uid")}
    dropped = Counter()
    for row in rows:
        if row["reason"]:
            dropped["calculation failed"] += 1
            continue
        for variant in row["variants"]:
            atoms = unpack_atoms({name: variant[name] for name in ("numbers", "positions", "cell", "pbc")})
            if abs(variant["energy"]) > MAX_ENERGY * len(atoms):
                dropped["a hole in the potential"] += 1
                continue
            try:
                e_hull = hull.stability(atoms.get_chemical_formula(), variant["energy"]).e_hull
            except ValueError as error:
                dropped[str(error)] += 1
                continue
            values = (
                len(atoms),
                torch.tensor(atoms.numbers, dtype=torch.uint8),
                torch.tensor(atoms.positions, dtype=torch.float32),
                torch.tensor(atoms.cell.array, dtype=torch.float32),
                e_hull,
                variant["kind"],
                row["key"],
            )
            for name, value in zip(fields, values):
                fields[name].append(value)
    if fields["natoms"]:
        joined = {name: torch.cat(fields[name]) for name in ("atomic_numbers", "pos")}
        tensors = {
            "natoms": torch.tensor(fields["natoms"]),
            "cell": torch.stack(fields["cell"]),
            "e_hull": torch.tensor(fields["e_hull"]),
        }
        save_checkpoint(path, {**fields, **joined, **tensors})
    return {"structures": dict(Counter(fields["kind"])), "dropped": dict(dropped)}


def pack(shards: dict, out: Path, potential: str) -> None:
    """Writes databases, LMDBs, perturbed.pt and data.json with the counts."""
    name = load_potential(potential).name
    rows = {level: shard.sorted_rows() for level, shard in shards.items()}
    counts = {"potential": name}
    if rows["layers"]:
        searched = checked(out / "shards" / "competitors.jsonl").sorted_rows()
        references = out / "reference_phases.db"
        hull = pack_references(rows["references"], rows["layers"], references, name, searched)
        kept, dropped = pack_layers(rows["layers"], hull, out / "her2d.db", name)
        counts |= {
            "reference_phases": sum(not row["reason"] for row in rows["references"]),
            "layers": {"tried": len(rows["layers"]), "kept": len(kept), "dropped": dict(dropped)},
            "perturbed": pack_perturbed(rows["perturbed"], hull, out / "perturbed.pt"),
        }
    counts |= {
        "adsorption": pack_adsorption(rows["adsorption"], out, "her2d_h"),
        "adsorption_relaxed": pack_adsorption(rows["relaxed"], out, "her2d_h_relaxed"),
        "core_hours": {
            level: round(sum(row.get("seconds", 0) for row in found) / 3600, 2)
            for level, found in rows.items()
        },
    }
    write_json(out / "data.json", counts)
    print(json.dumps(counts, indent=1))
