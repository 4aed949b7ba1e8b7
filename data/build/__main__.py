"""Builds the embedded data with an interatomic potential: python -m data.build --jobs 2

What is in a shard (data/shards/*.jsonl) is never computed again, so the builder may be killed and started at
any moment; databases and LMDBs are packed from the shards, sorted, and so do not depend on the order of work.
"""

import argparse
import json
import os
from pathlib import Path

from models.infra.cli import real, whole
from models.infra.files import ROOT
from models.infra.runs import run_script, take_output

STEPS = ("references", "layers", "adsorption", "perturbed", "relaxed", "pack")  # levels.LEVELS, then pack


def step(name: str) -> str:
    """Type of a flag: one of STEPS."""
    if name not in STEPS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(STEPS)}")
    return name


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "levels",
        nargs="*",
        type=step,
        default=list(STEPS),
        help=f"which of {', '.join(STEPS)} to do, in this order",
    )
    parser.add_argument(
        "--potential", default="sevennet", help="potential that makes the data (models/physics/potentials.py)"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "data", help="where the shards and the packed files go"
    )
    parser.add_argument(
        "--hosts", type=Path, help="folder of stage 2 whose layers take hydrogen in the place of the own ones"
    )
    parser.add_argument(
        "--evaluated",
        type=Path,
        nargs="*",
        metavar="ADSORBED.jsonl",
        help="only pack what the oracle said of scored sets (test.py) into her2d_h_generated_*.lmdb",
    )
    parser.add_argument("--jobs", type=whole(1), default=os.cpu_count(), help="processes, one thread each")
    parser.add_argument(
        "--rejudge",
        type=Path,
        nargs="*",
        metavar="FILE.lmdb",
        help="only drop from packed LMDBs what is no adsorption by the rules of today",
    )
    parser.add_argument(
        "--limit", type=whole(0), default=0, help="only the first so many items of each level, 0 for all"
    )
    parser.add_argument(
        "--hours", type=real(0), default=1e6, help="start no new item of a level after this time"
    )
    return parser


def main() -> None:
    """Computes what the shards lack, level by level, and packs them."""
    args = build_parser().parse_args()
    # late: torch takes seconds, and wrong flags none
    from data.build.items import host_items
    from data.build.levels import LEVELS, claim, guarded, items_of
    from data.build.pack import pack, pack_evaluated, rejudge
    from data.build.rows import checked
    from models.physics.parallel import OracleSettings, run_with_oracle

    if args.evaluated:
        return pack_evaluated(args.evaluated, args.out)
    if args.rejudge:
        return print(json.dumps([rejudge(path) for path in args.rejudge], indent=1))
    take_output(args.out)
    claim(args.out / "shards" / "potential.txt", args.potential)
    shards = {name: checked(args.out / "shards" / f"{name}.jsonl") for name in LEVELS}
    oracle = OracleSettings(args.potential)
    for name, (task, _, _) in LEVELS.items():
        if name not in args.levels:
            continue
        foreign = args.hosts and name == "adsorption"
        items = host_items(args.hosts) if foreign else items_of(name, shards)
        work = {item["key"]: (task, item) for item in items[: args.limit or None]}
        lost = run_with_oracle(guarded, work, shards[name], args.jobs, oracle, name, args.hours)
        if lost:
            print(f"{name}: {len(lost)} items lost ({next(iter(lost.values()))}); start the builder again")
    if "pack" in args.levels:
        pack(shards, args.out, args.potential)


if __name__ == "__main__":
    run_script(main)
