"""Searches competing phases of chemical systems for the embedded hull: python -m data.build.competitors

Systems come from formulas (--formulas) and from the rows of ASE databases (--db) that hold no nonmetal, whose
hull the base prototypes of items.py do not cover. What is in data/shards/competitors.jsonl is never computed
again and packed into data/reference_phases.db at the end (--pack-only packs what is there).
"""

import argparse
import time
from pathlib import Path

import ase.db
from tqdm import tqdm

from data.build.levels import HERE, claim
from data.build.pack import pack_references
from models.crystals.bulk import is_ionic
from models.infra.files import ROOT
from models.infra.shards import Shard
from models.physics.competitors import phases_of, search, systems_of
from models.physics.hull import Hull
from models.physics.potentials import load_potential


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--formulas", nargs="*", default=[], help="search all systems inside these first")
    parser.add_argument("--db", type=Path, nargs="*", default=[ROOT / "data" / "her2d.db"])
    parser.add_argument("--hull-phases", type=int, default=6, help="full relaxations a system")
    parser.add_argument("--potential", default="sevennet")
    parser.add_argument("--hours", type=float, default=1e6, help="start no new system after this time")
    parser.add_argument("--pack-only", action="store_true", help="search nothing")
    parser.add_argument("--out", type=Path, default=HERE, help="folder with shards/ and reference_phases.db")
    return parser


def wanted_systems(formulas: list[str], databases: list[Path]) -> list[tuple[str, ...]]:
    """Systems inside the formulas, then those without a nonmetal inside the rows of the databases."""
    systems = [system for formula in formulas for system in systems_of(formula)]
    for path in databases:
        found = {system for row in ase.db.connect(path).select() for system in metallic_systems(row.formula)}
        systems += sorted(found, key=lambda system: (len(system), system))
    return list(dict.fromkeys(systems))


def metallic_systems(formula: str) -> list[tuple[str, ...]]:
    return [system for system in systems_of(formula) if not is_ionic(system)]


def search_all(systems: list[tuple[str, ...]], shard: Shard, args) -> None:
    """Searches the systems that the shard lacks or knows with a smaller budget."""
    hull = Hull.read(args.out / "reference_phases.db", points=None)
    for row in shard.sorted_rows():
        hull.add(phases_of(row))
    calculator = load_potential(args.potential).calculator
    deadline = time.time() + args.hours * 3600
    for system in tqdm(systems, desc="systems", mininterval=2):
        name = "-".join(system)
        known = shard.rows.get(name, {}).get("budget", 0) >= args.hull_phases
        if not known and time.time() < deadline:
            begin = time.time()
            row = search(system, hull, calculator, args.hull_phases)
            shard.append(name, row | {"seconds": round(time.time() - begin, 1)})


def main():
    args = build_parser().parse_args()
    shards = args.out / "shards"
    claim(shards / "potential.txt", args.potential)
    shard = Shard(shards / "competitors.jsonl")
    if not args.pack_only:
        search_all(wanted_systems(args.formulas, args.db), shard, args)
    references, layers = (Shard(shards / f"{n}.jsonl").sorted_rows() for n in ("references", "layers"))
    path = args.out / "reference_phases.db"
    potential = ase.db.connect(path).metadata["potential"]
    pack_references(references, layers, path, potential, shard.sorted_rows())


if __name__ == "__main__":
    main()
