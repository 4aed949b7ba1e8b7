"""ΔE_H at the level of DFT for packed adsorption records: python -m data.build.dft_labels data/her2d_h_*.lmdb

The poses of the records are SevenNet's, rigid or relaxed. diep weighs each once more (a single point), trees
expect the band gap of its layer, and the correction (models/physics/dft_correction.py) makes ΔE_H by DFT of
it, with a standard deviation: the fields `y_dft` and `y_dft_std` (eV), which stage 1 learns from with
`--target y_dft`. What diep said is kept by the content of the pose, so that a second start, or a set that
grew, costs what is new.
"""

import argparse
import time
from itertools import groupby
from pathlib import Path

import numpy as np
from ase import Atoms
from torch_geometric.data import Data
from tqdm import tqdm

from data.build.dft.records import SURFACES
from models.infra.cli import real
from models.infra.files import ROOT, digest

SHARD = ROOT / "data" / "shards" / "second_potential.jsonl"
WEIGHTS = ROOT / "models" / "weights"
SAME_PLANE = 0.02  # Å, tolerance of the primitive cell: the hosts were relaxed in theirs


def pose_of(record: Data) -> Atoms:
    """Supercell with its H, as the potential left it."""
    cell = record.cell[0].numpy().astype(float)
    positions = record.pos_relaxed.numpy().astype(float)
    return Atoms(record.atomic_numbers.numpy(), positions, cell=cell, pbc=(True, True, False))


def slab_of(record: Data) -> Atoms:
    """The supercell before H came; H is a record's last atom."""
    pose = pose_of(record)[:-1]
    pose.positions = record.pos.numpy().astype(float)[:-1]
    return pose


def key_of(record: Data) -> str:
    """The same for the same pose on the same slab, wherever it is packed."""
    numbers, pos, end = (record[name].numpy() for name in ("atomic_numbers", "pos", "pos_relaxed"))
    return digest(f"{numbers.tolist()} {pos[:-1].round(3).tolist()} {end.round(3).tolist()}")[:20]


def slab_key(record: Data) -> str:
    """The same for the sites of a host."""
    slab = slab_of(record)
    return digest(f"{slab.numbers.tolist()} {slab.cell.array.round(3)} {slab.positions.round(3).tolist()}")


def weigh(records: list[Data], shard, second: str, hours: float) -> None:
    """ΔE_H by the second potential at every pose that the shard lacks; the slab of a host once."""
    from models.crystals.sites import roomy
    from models.physics.hydrogen import HydrogenOracle
    from models.physics.potentials import load_potential, single_point

    deadline, oracle = time.time() + hours * 3600, None
    missing = [record for record in records if key_of(record) not in shard.rows]
    missing.sort(key=slab_key)  # by a hash: what is done when the time is up is a sample of the whole
    bar = tqdm(total=len(missing), desc=second, mininterval=10)
    for _, group in groupby(missing, key=slab_key):
        oracle, slab_energy = oracle or HydrogenOracle(load_potential(second).calculator), None
        for record in group:
            if time.time() > deadline:
                return
            try:
                if slab_energy is None:
                    slab_energy = single_point(roomy(slab_of(record)), oracle.calculator)
                energy = single_point(roomy(pose_of(record)), oracle.calculator)
                row = {"delta_e": round(energy - slab_energy - oracle.half_h2, 4)}
            except Exception as error:  # one bad structure costs one record
                row = {"reason": f"{type(error).__name__}: {error}"[:200]}
            shard.append(key_of(record), row)
            bar.update()


def label(records: list[Data], shard) -> int:
    """Adds y_dft and y_dft_std to the records that both potentials have weighed; how many that are."""
    from models.crystals.layer import primitive_layer
    from models.networks.gap import load_gap, predict_gap
    from models.physics.dft_correction import DftCorrection

    gaps, known = {}, []
    forest, correction = load_gap(WEIGHTS / "gap.pt"), DftCorrection.load(WEIGHTS / "dft_correction.json")
    for record in tqdm(records, desc="gaps", mininterval=10):
        if "delta_e" not in shard.rows.get(key_of(record), {}):
            continue
        host = record.host_uid
        if host not in gaps and host.startswith(SURFACES):
            gaps[host] = (0.0, 0.0)  # slabs of metals: the trees know layers alone
        if host not in gaps:
            gap, std = predict_gap(forest, [primitive_layer(slab_of(record), SAME_PLANE)])
            gaps[host] = float(gap[0]), float(std[0])
        known.append(record)
    first = np.array([record.y_relaxed for record in known])
    second = np.array([shard.rows[key_of(record)]["delta_e"] for record in known])
    gap, gap_std = np.array([gaps[record.host_uid] for record in known]).reshape(-1, 2).T
    for record, mean, std in zip(known, *correction.delta_e(first, second, gap, gap_std)):
        record.y_dft, record.y_dft_std = round(float(mean), 4), round(float(std), 4)
    return len(known)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("lmdb", nargs="+", type=Path, help="files to be labelled, in place")
    parser.add_argument("--energies", type=Path, default=SHARD, help="JSON lines of what it said, resumable")
    parser.add_argument("--hours", type=real(0), default=1e6, help="weigh nothing new after this time")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    from models.datasets.lmdb_data import LmdbDataset, safe_loads, write_lmdb  # late: torch takes seconds
    from models.infra.shards import Shard
    from models.physics.dft_correction import DftCorrection

    shard = Shard(args.energies)
    second = DftCorrection.load(WEIGHTS / "dft_correction.json").second
    stored = {}
    for path in args.lmdb:
        dataset = LmdbDataset([path])
        stored[path] = [Data(**safe_loads(dataset.raw(index))) for index in range(len(dataset))]
    weigh([record for records in stored.values() for record in records], shard, second, args.hours)
    for path, records in stored.items():
        count = label(records, shard)
        write_lmdb(path, records)
        print(f"{path}: {count} of {len(records)} records with ΔE_H at the level of DFT")


if __name__ == "__main__":
    main()
