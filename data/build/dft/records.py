"""Items of work for DFT, in their order, and the records that they become."""

import argparse
import csv
import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read
from tqdm import tqdm

from data.build.rows import checked
from models.crystals.layer import pack_atoms, primitive_layer, reduced_formula, unpack_atoms
from models.crystals.sites import adsorption_flag, spaced_supercell
from models.crystals.split import split_of
from models.datasets.lmdb_data import LmdbDataset
from models.infra.files import ROOT, UnreadableFile, digest, file_text
from models.infra.runs import take_output
from models.infra.shards import Shard
from models.physics.dft import (
    Energy,
    Settings,
    adsorption_record,
    core_seconds,
    half_hydrogen,
    hydrogen_on,
)
from models.physics.hydrogen import CORRECTION, HydrogenOracle
from models.physics.parallel import OracleSettings

SHARDS = ROOT / "data" / "shards"
REFERENCE = Path(os.environ.get("HER2D_REFERENCE_DATA", ROOT / "../shared/data"))
MAX_ATOMS = 16  # of a supercell without its H, in the random and targeted samples; larger hosts wait
MAX_ATOMS_LITERATURE = 30
MAX_E_HULL = 0.3  # eV/atom of a C2DB layer
TARGET, WINDOW = -0.27, 0.3  # eV: ΔE_H at which ΔG_H is 0, and how far off a targeted host may lie
SURFACES = ("fcc", "hcp", "bcc", "skin", "buried")  # keys of the embedded set that are no monolayers
ORACLE_SITES = 3  # at which H is relaxed alone, before everything is at the best of them
# Over and over. Layers with V, Cr, Mn, Fe, Co or Ni cost three to ten times as much for their spin: they
# are a
# stratum of their own (sample "magnetic", shuffled as the random one is), one calculation in eleven.
ORDER = "embedded c2db top20 embedded literature embedded c2db magnetic embedded targeted top20".split()
SECOND_EVERY, RELAX_EVERY = 6, 20  # of the embedded hosts: the second-best site too; H relaxed by DFT too

# Layers whose ΔE_H or ΔG_H by DFT is in the literature, by their keys in the embedded set.
LITERATURE = """
MoS2-2H:Mo-S honeycomb-A:C phosphorene:P graphene:B-N MXene-M2XT2:Ti-C-O MoS2-2H:W-S MXene-M2XT2:Mo-C-O
MoS2-2H:Mo-Se MXene-M2XT2:Nb-C-O CdI2-1T:Mo-S MoS2-2H:W-Se MXene-M2XT2:V-C-O CdI2-1T:Pt-S MoS2-2H:Nb-S
MXene-M2XT2:Ti-N-O MoS2-2H:Ta-S CdI2-1T:W-S honeycomb-A:Si CdI2-1T:Pt-Se CdI2-1T:Ti-S MoS2-2H:V-S
GaSe:Ga-S GaSe:In-Se CdI2-1T:Sn-S C3N:C-N Janus-2H:Mo-S-Se honeycomb-A:Ge honeycomb-A:Sb PdSe2-penta:Pd-Se
FeSe:Fe-Se CrI3:Cr-I honeycomb-A:As SnS:Ge-S SnS:Sn-S
""".split()

EARLY = set("Sc Y Ti Zr Hf V Nb Ta Cr Mo W".split())
TRANSITION = EARLY | set("Mn Tc Re Fe Ru Os Co Rh Ir Ni Pd Pt".split())


def material_class(atoms: Atoms) -> str:
    """Class of a layer by its composition: the most electronegative kind of anion decides."""
    elements = set(atoms.symbols)
    if len(elements) == 1:
        return "element"
    metals, anions = elements & EARLY, elements - EARLY
    share = sum(symbol in metals for symbol in atoms.symbols) / len(atoms)
    if (
        metals
        and anions & {"C", "N"}
        and share >= 0.4 - 1e-6
        and anions <= set("C N O F Cl Br I S Se Te H".split())
    ):
        return "MXene"
    if elements & set("F Cl Br I".split()):
        return "halide"
    if "O" in elements:
        return "oxide"
    chalcogens = elements & set("S Se Te".split())
    if (
        chalcogens
        and elements - chalcogens <= TRANSITION
        and sum(s in chalcogens for s in atoms.symbols) * 3 == len(atoms) * 2
    ):
        return "TMD"
    if chalcogens:
        return "chalcogenide"
    if elements & set("N P As Sb Bi".split()):
        return "pnictide"
    if elements & {"C", "B", "Si", "Ge"}:
        return "carbide, boride, silicide"
    return "metal"


def item(key: str, sample: str, source: str, host: Atoms, **more) -> dict:
    """A piece of work; `more` has the pose, face and delta_e where SevenNet has been there already, else its
    oracle is asked.
    """
    return {
        "key": key,
        "sample": sample,
        "source": source,
        "host": host,
        "rank": "best",
        "relax": "none",
        **more,
    }


def embedded_items(shard: Path) -> list[dict]:
    """Monolayers of the embedded set at the relaxed level, shuffled by hash: the better of their two sites,
    of some the other one too.
    """
    rows = sorted(checked(shard).rows.values(), key=lambda row: digest("dft" + row["key"]))
    items, hosts = [], 0
    for row in rows:
        if row["reason"] or row["key"].startswith(SURFACES) or len(row["slab"]["numbers"]) > MAX_ATOMS:
            continue
        slab, good = unpack_atoms(row["slab"]), []
        for site in row["sites"]:
            pose = Atoms([*slab.numbers, 1], site["end"], cell=slab.cell, pbc=slab.pbc)
            if site["converged"] and not site["flag"] and not adsorption_flag(pose, site["face"]):
                good.append(
                    {"pose": pose, "delta_e": site["delta_e"], "site": _label(site["kind"], site["face"])}
                )
        if not good:
            continue
        good.sort(key=lambda site: site["delta_e"])
        hosts += 1
        first = item(row["key"], "random", "embedded", unpack_atoms(row["host"]), **good[0])
        items.append(first)
        # Of a symmetric layer the two sites may be one: then there is no second.
        if hosts % SECOND_EVERY == 0 and len(good) > 1 and good[1]["delta_e"] - good[0]["delta_e"] > 0.005:
            items.append(first | good[1] | {"rank": "second"})
        if hosts % RELAX_EVERY == 0:
            items.append(first | {"relax": "h"})
    return items


def _label(kind: str, face: int) -> str:
    return f"{kind}-{'top' if face > 0 else 'bottom'}"


def c2db_items(path: Path, magnetic: bool) -> Iterator[dict]:
    """Layers of C2DB with or without elements that need spin, shuffled by hash, in supercells of MAX_ATOMS at
    most; SevenNet has still to relax them. None where the database is not there.
    """
    if not path.is_file():
        print(f"{path} is not there: no layers of C2DB (HER2D_REFERENCE_DATA names the folder)")
        return
    import ase.db

    database, found = ase.db.connect(path), []
    for row in database.select():
        small = row.natoms <= MAX_ATOMS and row.get("ehull", 9.0) < MAX_E_HULL
        if small and Settings().polarised(row.symbols) == magnetic:
            found.append((digest("dft" + row.uid), row.uid, row.id))
    for _, uid, number in sorted(found):
        atoms = database.get_atoms(number)
        if len(spaced_supercell(atoms)) <= MAX_ATOMS:
            yield item(uid, "magnetic" if magnetic else "random", "C2DB", None, unrelaxed=atoms)


def targeted_items(folder: Path) -> list[dict]:
    """Layers that the generator drew and SevenNet calls active, of each formula and layer group the first by
    hash.
    """
    found = {}
    for path in sorted(folder.glob("her2d_h_generated_*.lmdb")):
        for record in LmdbDataset(path):
            if abs(record.y_relaxed - TARGET) <= WINDOW and record.natoms <= MAX_ATOMS + 1:
                found[record.host_uid + f" {record.y_relaxed:.3f}"] = record
    items, seen = [], set()
    for key in sorted(found, key=lambda key: digest("dft" + key)):
        record = found[key]
        if record.host_uid in seen:
            continue
        cell, numbers = record.cell[0].numpy().astype(float), record.atomic_numbers.numpy()
        slab = Atoms(numbers[:-1], record.pos[:-1].numpy().astype(float), cell=cell, pbc=(True, True, False))
        pose = Atoms(numbers, record.pos_relaxed.numpy().astype(float), cell=cell, pbc=(True, True, False))
        face = 1 if pose.positions[-1, 2] > pose.positions[:-1, 2].mean() else -1
        if adsorption_flag(pose, face):
            continue
        seen.add(record.host_uid)
        host = primitive_layer(slab, 0.02)
        items.append(
            item(
                key,
                "targeted",
                "generated",
                host,
                pose=pose,
                delta_e=float(record.y_relaxed),
                site=_label("relaxed", face),
            )
        )
    return items


def literature_items(shard: Path) -> list[dict]:
    """Layers of LITERATURE as SevenNet relaxed them in the embedded set; hydrogen is still to be put on."""
    rows = checked(shard).rows
    return [
        item(key, "literature", "embedded", None, unrelaxed=unpack_atoms(rows[key]["atoms"]))
        for key in LITERATURE
        if key in rows and rows[key]["reason"] == ""
    ]


def top20_items(folder: Path) -> list[dict]:
    """The published top 20 at the pose that was published with them, cheap ones first: all of them shall be
    done.
    """
    with (folder / "top20.csv").open() as file:
        rows = list(csv.DictReader(file))
    items = []
    for row in rows:
        name = row["material_id"]
        host, pose = read(folder / f"{name}.cif"), read(folder / f"{name}_H.cif")
        delta_e = float(row["delta_g_h_oracle_eV"]) - CORRECTION
        for atoms in (host, pose):
            atoms.pbc = (True, True, False)
        items.append(
            item(f"top20 {name}", "top20", "published", host, pose=pose, delta_e=delta_e, site=row["h_site"])
        )
    return sorted(
        items, key=lambda work: len(work["pose"]) * (3 if Settings().polarised(work["host"].symbols) else 1)
    )


def mixed(*sources: Iterable[dict]) -> Iterator[dict]:
    """One of each in turn, until all are used up."""
    for together in zip_longest(*sources):
        for work in together:
            if work:
                yield work


def work_items() -> Iterator[dict]:
    """All work in its order: ORDER over and over, a source that is used up left out; each item only once."""
    embedded, magnetic, seen = [], [], set()
    for work in embedded_items(SHARDS / "relaxed.jsonl"):
        if Settings().polarised(work["host"].symbols):
            magnetic.append(work | {"sample": "magnetic"})
        else:
            embedded.append(work)
    c2db = REFERENCE / "c2db" / "c2db.db"
    sources = {
        "embedded": embedded,
        "c2db": c2db_items(c2db, magnetic=False),
        "magnetic": mixed(magnetic, c2db_items(c2db, magnetic=True)),
        "targeted": targeted_items(ROOT / "data"),
        "literature": literature_items(SHARDS / "layers.jsonl"),
        "top20": top20_items(ROOT / "results" / "published" / "top20"),
    }
    queues = {name: iter(items) for name, items in sources.items()}
    while queues:
        for name in ORDER:
            work = next(queues[name], None) if name in queues else None
            if work is None:
                queues.pop(name, None)
            elif (work["key"], work["rank"], work["relax"]) not in seen:
                seen.add((work["key"], work["rank"], work["relax"]))
                yield work


@cache
def load_oracle(potential: str) -> HydrogenOracle:
    """The oracle, loaded when the first layer needs it; its numbers are ΔE_H."""
    return OracleSettings(potential, correction=0.0, sites=ORACLE_SITES).load()


def place(work: dict, potential: str) -> tuple[dict, str]:
    """The item with layer and hydrogen relaxed by the potential, and why there is none, or an empty text."""
    limit = MAX_ATOMS_LITERATURE if work["sample"] == "literature" else MAX_ATOMS
    oracle = load_oracle(potential)
    host, _ = oracle.own_layer(work["unrelaxed"])
    placed = work | {"host": host}
    size = len(spaced_supercell(host))
    if size > limit:
        return placed, f"too large: {size} atoms"
    found = oracle.delta_g(host)
    if found.pose is None:
        return placed, f"no adsorption: {found.flags_text}"
    return placed | {"pose": found.pose, "delta_e": found.delta_g_h, "site": found.site}, ""


def record(work: dict, settings: Settings, half_h2: float, potential: str, slab: Energy | None) -> dict:
    """The row of an item: numbers, or the reason why there are none."""
    row = {
        "sample": work["sample"],
        "source": work["source"],
        "rank": work["rank"],
        "relax": work["relax"],
        "settings": settings.key,
    }
    reason = ""
    if "pose" not in work:
        work, reason = place(work, potential)
    host, pose = work["host"], work.get("pose")
    if host is not None:
        row |= {"formula": reduced_formula(host), "class": material_class(host), "host": pack_atoms(host)}
        row["split"] = split_of(row["formula"])
    if reason:
        return row | {"reason": reason}
    row |= {
        "site": work["site"],
        "pose": pack_atoms(pose),
        "delta_e_sevennet": round(float(work["delta_e"]), 5),
    }
    found = hydrogen_on(host, pose, settings, half_h2, work["relax"], slab)
    row |= adsorption_record(found, host, pose, half_h2)
    return row | {"reason": ""}


def _out_of_time(*_):
    raise TimeoutError("took more processor time than it was given")


def _finished(row: dict | None, seconds: float) -> bool:
    """Whether a record stands: all do but those that ran out of time and are given more now."""
    return row is not None and not (
        row.get("reason", "").startswith("TimeoutError") and row["limit"] < seconds
    )


def done(shard: Shard, settings: Settings) -> list[dict]:
    """Records with numbers, of one setting."""
    return [row for row in shard.sorted_rows() if row.get("reason") == "" and row["settings"] == settings.key]


def make(
    shard: Shard, items: Iterable[dict], settings: Settings, hours: float, potential: str, seconds: float
) -> None:
    """Computes what the shard lacks, in order, until the time is up; `seconds` of processor time an item."""
    deadline, reference = time.time() + hours * 3600, f"H2|{settings.key}"
    if reference not in shard.rows:
        half, bond = half_hydrogen(settings)
        row = {"sample": "reference", "settings": settings.key, "half_h2": half, "bond": bond}
        shard.append(reference, row | {"all": vars(settings)})
    half = shard.rows[reference]["half_h2"]
    signal.signal(signal.SIGPROF, _out_of_time)
    for work in tqdm(items, desc="DFT", mininterval=5):
        key = "|".join([work["key"], work["rank"], work["relax"], settings.key])
        if _finished(shard.rows.get(key), seconds):
            continue
        if time.time() > deadline:
            break
        # A pose that is relaxed by DFT starts from a record whose slab is the same.
        start = shard.rows.get("|".join([work["key"], work["rank"], "none", settings.key]), {})
        slab = None
        if start.get("reason") == "":
            slab = Energy(start["energies"]["slab"], start["moments"]["slab"], start["gaps"]["slab"], 1, 0.0)
        begin = core_seconds()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            row = record(work, settings, half, potential, slab)
        except Exception as error:  # one bad structure costs one row
            row = {name: work[name] for name in ("sample", "source", "rank", "relax")}
            row |= {"settings": settings.key, "limit": seconds}
            if work["host"] is not None:
                formula = reduced_formula(work["host"])
                row |= {"formula": formula, "class": material_class(work["host"]), "split": split_of(formula)}
            row |= {"reason": f"{type(error).__name__}: {' '.join(str(error).split())}"[:250]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        shard.append(key, row | {"seconds": round(core_seconds() - begin, 1)})


def add_evaluated(shard: Shard, path: Path) -> int:
    """Appends what `test.py --dft` computed (its dft.jsonl) and the shard lacks; returns how many records."""
    added = 0
    for row in Shard(path).sorted_rows():
        if "material_id" not in row or row["reason"]:  # the H2 molecule, or one that failed
            continue
        host = unpack_atoms(row["host"])
        formula = reduced_formula(host)
        name = f"evaluated {formula} {digest(json.dumps([row['host'], row['pose']]))[:8]}"
        key = "|".join([name, "best", row["relax"], row["settings"]])
        if key in shard.rows:
            continue
        about = {"sample": "evaluated", "source": "evaluated", "rank": "best", "formula": formula}
        about |= {"class": material_class(host), "split": split_of(formula), "site": ""}
        kept = {name: value for name, value in row.items() if name not in ("key", "material_id")}
        shard.append(key, about | kept)
        added += 1
    return added


def records(path: Path) -> Shard:
    """The shard of the records, with what a continued run reads of them checked.

    Raises:
        UnreadableFile: a row is no record of DFT.
    """
    shard = Shard(path)
    for key, row in shard.rows.items():
        if not _is_record(row):
            raise UnreadableFile(
                f"{file_text(path)}: the row {key[:80]!r} is no record of DFT: take it out, or give "
                "another --out"
            )
    return shard


def _is_record(row: dict) -> bool:
    sample, reason = row.get("sample"), row.get("reason")
    if sample == "reference":
        return isinstance(row.get("half_h2"), float)
    if not isinstance(sample, str) or not isinstance(reason, str):
        return False
    if reason.startswith("TimeoutError"):
        return isinstance(row.get("limit"), (int, float))
    return bool(reason) or {"energies", "moments", "gaps"} <= row.keys()


def counts(shard: Shard) -> str:
    """How many records there are, by sample and by what became of them."""
    table = defaultdict(int)
    for row in shard.rows.values():
        table[row["sample"], row.get("reason", "").split(":")[0] or "done"] += 1
    return "\n".join(f"{sample:12s}{state:30s}{count}" for (sample, state), count in sorted(table.items()))


def run(args: argparse.Namespace) -> None:
    """Computes what the shard lacks until the time is up; args are the parsed flags."""
    np.seterr(all="ignore")
    settings = Settings(code=args.dft_calculator)
    items = (work for work in work_items() if not args.only or work["sample"] in args.only)
    take_output(args.out, out_is_file=True)
    shard = records(args.out)
    for path in args.evaluated:
        print(f"{path}: {add_evaluated(shard, path)} records added")
    make(shard, items, settings, args.hours, args.potential, args.seconds)
    print(counts(shard))
