"""Searches competing phases of chemical systems for the embedded hull: python -m data.build.competitors

Systems come from formulas (--formulas) and from the rows of ASE databases (--db) that hold no nonmetal, whose
hull the base prototypes of items.py do not cover. What is in data/shards/competitors.jsonl is never computed
again and packed into data/reference_phases.db at the end (--pack-only packs what is there).
"""

import argparse
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from models.infra.cli import real, whole
from models.infra.files import ROOT
from models.infra.runs import run_script, take_output
from models.infra.shards import Shard


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--formulas", nargs="*", default=[], help="search all systems inside these first")
    parser.add_argument("--db", type=Path, nargs="*", default=[ROOT / "data" / "her2d.db"])
    parser.add_argument("--hull-phases", type=whole(0), default=6, help="full relaxations a system")
    parser.add_argument("--potential", default="sevennet")
    parser.add_argument("--hours", type=real(0), default=1e6, help="start no new system after this time")
    parser.add_argument("--pack-only", action="store_true", help="search nothing")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "data", help="folder with shards/ and reference_phases.db"
    )
    return parser


def wanted_systems(formulas: list[str], databases: list[Path]) -> list[tuple[str, ...]]:
    """Systems inside the formulas, then those without a nonmetal inside the rows of the databases."""
    from models.crystals.ase_database import readable_rows
    from models.physics.competitors import systems_of

    systems = [system for formula in formulas for system in systems_of(formula)]
    for path in databases:
        dropped, found = Counter(), set()
        for row, _ in readable_rows(path, dropped, "--db"):
            found |= set(metallic_systems(row.formula))
        for reason, count in dropped.items():
            print(f"{path}: {count} rows are passed over: {reason}")
        systems += sorted(found, key=lambda system: (len(system), system))
    return list(dict.fromkeys(systems))


def metallic_systems(formula: str) -> list[tuple[str, ...]]:
    """The chemical systems inside a formula that hold no nonmetal."""
    from models.crystals.bulk import is_ionic
    from models.physics.competitors import systems_of

    return [system for system in systems_of(formula) if not is_ionic(system)]


def search_all(systems: list[tuple[str, ...]], shard: Shard, args) -> None:
    """Searches the systems that the shard lacks or knows with a smaller budget."""
    from models.physics.competitors import phases_of, search
    from models.physics.hull import Hull
    from models.physics.potentials import load_potential

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


def main() -> None:
    """Searches, unless --pack-only, and packs.

    Raises:
        FileNotFoundError, ValueError: a database or a shard is missing or unreadable.
    """
    args = build_parser().parse_args()
    # late: torch takes seconds, and wrong flags none
    from data.build.levels import claim
    from data.build.pack import pack_references
    from data.build.rows import checked
    from models.crystals.ase_database import metadata

    shards, path = args.out / "shards", args.out / "reference_phases.db"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: make it with python -m data.build")
    potential = metadata(path, "reference_phases.db").get("potential")
    if not potential:
        raise ValueError(
            f"{path} does not name its potential in its metadata: make it with python -m data.build"
        )
    take_output(args.out)
    claim(shards / "potential.txt", args.potential)
    shard = checked(shards / "competitors.jsonl")
    references, layers = (
        checked(shards / f"{name}.jsonl").sorted_rows() for name in ("references", "layers")
    )
    if not args.pack_only:
        search_all(wanted_systems(args.formulas, args.db), shard, args)
    pack_references(references, layers, path, potential, shard.sorted_rows())


if __name__ == "__main__":
    run_script(main)
