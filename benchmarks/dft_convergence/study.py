"""ΔE_H of the hosts with one setting of DFT changed after the other, and the table of it."""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.dft_convergence.changes import CHANGES, HOSTS
from data.build.dft.records import SHARDS, embedded_items
from models.infra.files import write_rows
from models.infra.shards import Shard
from models.physics.dft import DftError, Settings, half_hydrogen, hydrogen_on

PUBLISHED = Path("results/published/dft_convergence.csv")
REFERENCE = Settings(kpoint_length=24.0)


def run(args: argparse.Namespace) -> None:
    """The study; args are the parsed flags."""
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
