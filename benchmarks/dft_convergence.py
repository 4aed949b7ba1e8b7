"""How far ΔE_H by DFT depends on its settings: python -m benchmarks.dft_convergence

One setting after another is changed from the reference on a few small hosts of the embedded set; every result
is appended to data/shards/dft_convergence.jsonl and none computed again. Writes
results/published/dft_convergence.csv.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from data.build.dft import SHARDS, embedded_items
from models.infra.files import write_rows
from models.infra.shards import Shard
from models.physics.dft import DftError, Settings, half_hydrogen, hydrogen_on

PUBLISHED = Path("results/published/dft_convergence.csv")
HOSTS = {  # small ones of every kind
    "MoS2-2H:Ta-Se": "metal",
    "Janus-1T:Bi-Te-I": "polar, gapped",
    "Janus-1T:Ru-Te-Se": "polar, metal",
    "CrI3:V-Br": "magnetic",
    "graphene:Al-P": "planar, gapped",
    "MXene-M2X:Sr-N": "bare MXene",
    "silicene:Sn-Te": "buckled, gapped",
}
CHANGES = {
    "reference": {},
    "k 12 Å": {"kpoint_length": 12.0},
    "k 18 Å": {"kpoint_length": 18.0},
    "k 36 Å": {"kpoint_length": 36.0},
    "500 eV": {"cutoff": 500.0},
    "300 eV": {"cutoff": 300.0},
    "vacuum 18 Å": {"vacuum": 18.0},
    "vacuum 9 Å": {"vacuum": 9.0},
    "spin on all": {"spin": "all"},
    "no spin": {"spin": "none"},
    "LCAO dzp": {"mode": "dzp"},
    "smearing 0.05 eV": {"smearing": 0.05},
    "tolerance 1e-3": {"tolerance": 1e-3},
}
REFERENCE = Settings(kpoint_length=24.0)


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--changes", nargs="*", default=list(CHANGES), help="which of them")
    parser.add_argument("--hosts", nargs="*", default=list(HOSTS), help="which hosts")
    parser.add_argument(
        "--hours", type=float, default=1.0, help="no new calculation is started after this time"
    )
    return parser


def main():
    args = build_parser().parse_args()
    shard, deadline = Shard(SHARDS / "dft_convergence.jsonl"), time.time() + args.hours * 3600
    poses = {
        work["key"]: work
        for work in embedded_items(SHARDS / "relaxed.jsonl")
        if work["rank"] == "best" and work["relax"] == "none"
    }
    halves = {}
    for change in args.changes:
        settings = replace(REFERENCE, **CHANGES[change])
        for host in args.hosts:
            key = f"{host}|{settings.key}"
            if key in shard.rows or time.time() > deadline:
                continue
            if settings not in halves:
                halves[settings], _ = half_hydrogen(replace(settings, spin="none"))
            work, row = poses[host], {"host": host, "change": change, "settings": settings.key}
            try:
                found = hydrogen_on(work["host"], work["pose"], settings, halves[settings])
                seconds = found.slab.seconds + found.pose.seconds
                row |= {
                    "delta_e": found.delta_e,
                    "moment": found.pose.moment,
                    "seconds": round(seconds, 1),
                    "grid": found.grid,
                }
            except DftError as error:
                row |= {"delta_e": None, "reason": str(error)}
            print(shard.append(key, row), flush=True)
    write_table(shard)


def write_table(shard: Shard) -> None:
    """A row a change: its ΔE_H minus the reference's by host, the largest of them in size, and the time
    against the reference's.
    """
    reference = {row["host"]: row for row in shard.rows.values() if row["change"] == "reference"}
    rows = []
    for change in CHANGES:
        row, differences, ratios = {"change": change}, [], []
        for found in shard.rows.values():
            base = reference.get(found["host"])
            if found["change"] != change or not base or found["delta_e"] is None or base["delta_e"] is None:
                continue
            difference = found["delta_e"] - base["delta_e"]
            row[found["host"]] = round(found["delta_e"] if change == "reference" else difference, 4)
            differences.append(abs(difference))
            ratios.append(found["seconds"] / base["seconds"])
        if differences:
            row |= {"largest_eV": round(max(differences), 4), "time": round(sum(ratios) / len(ratios), 2)}
            rows.append(row)
    write_rows(PUBLISHED, rows, ["change", *HOSTS, "largest_eV", "time"])


if __name__ == "__main__":
    main()
