"""The builder of the embedded data, on a tiny preset with a cheap calculator: interrupted or not, it makes
the same set.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.db
import pytest
from layers import known, lennard_jones
from torch_geometric.data import InMemoryDataset

from data.build.items import HOST_SITES, RELAXED_HOSTS, balanced, reference_items, relaxed_items
from models.crystals.layer import min_distance_ratio, pack_atoms, unpack_atoms
from models.crystals.split import split_of
from models.datasets.graphs import layer_graph
from models.datasets.lmdb_data import LmdbDataset
from models.infra.files import ROOT
from models.infra.shards import Shard

LEVELS = ("references", "layers", "adsorption", "perturbed", "relaxed")


def start(out: Path, *more) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "data.build",
        *more,
        "--out",
        out,
        "--limit",
        "3",
        "--jobs",
        "2",
        "--potential",
        "layers:lennard_jones",
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/tests:{ROOT}/tests/build", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        map(str, command),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def shards(out: Path) -> dict:
    """Rows of every level by key, less the time that they took."""
    rows = {level: Shard(out / "shards" / f"{level}.jsonl").rows for level in LEVELS}
    return {
        level: {key: {**row, "seconds": 0} for key, row in found.items()} for level, found in rows.items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    process = start(out)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return out


def test_killed_builder_ends_with_the_same_set(whole, tmp_path):
    moments = random.Random(0)
    for _ in range(3):
        process = start(tmp_path)
        time.sleep(moments.uniform(2, 9))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert shards(tmp_path) == shards(whole)
    for name in sorted(path.name for path in whole.glob("*.lmdb")):
        ours, theirs = (list(LmdbDataset(folder / name)) for folder in (tmp_path, whole))
        assert [record.to_dict().keys() for record in ours] == [record.to_dict().keys() for record in theirs]
        assert all(a.pos.equal(b.pos) and a.y_relaxed == b.y_relaxed for a, b in zip(ours, theirs))
    for name in ("her2d.db", "reference_phases.db"):
        ours, theirs = (
            [(row.formula, row.key_value_pairs) for row in ase.db.connect(f / name).select()]
            for f in (tmp_path, whole)
        )
        assert ours == theirs


def sleeper(path: str):
    """What a process of the pool does: says who it is, and never ends."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def test_processes_end_with_a_killed_parent(tmp_path):
    job = (
        "from test_build import *; from models.infra.jobs import run_jobs;"
        "run_jobs(sleeper, {'a': 'pid'}, Shard(Path('s')), 1, print, (), '')"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests:{ROOT}/tests/build"}
    parent = subprocess.Popen(
        [sys.executable, "-c", f"if __name__ == '__main__':\n    {job}"], cwd=tmp_path, env=environment
    )
    within(60, lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    within(20, lambda: not is_running(child))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def within(seconds: float, done):
    """Waits until something holds, so long and no longer."""
    end = time.time() + seconds
    while not done():
        assert time.time() < end, f"not within {seconds} s"
        time.sleep(0.1)


def test_every_level_makes_rows_and_counts(whole):
    rows = shards(whole)
    assert all(len(rows[level]) == 3 for level in ("references", "layers", "adsorption"))
    assert rows["relaxed"]
    for row in rows["relaxed"].values():
        for site in row["sites"]:
            assert len(site["end"]) == len(row["slab"]["numbers"]) + 1
            assert site["delta_e"] <= site["rigid_delta_e"] + 0.02  # more freedom, lower energy
    counts = json.loads((whole / "data.json").read_text())
    assert counts["layers"]["tried"] == 3 and counts["potential"] == "layers:lennard_jones"


def test_layers_of_stage_2_take_hydrogen_in_the_place_of_the_own_ones(tmp_path):
    layers = {name: known(name) for name in ("graphene", "1T-TiS2", "1H-MoS2")}
    (tmp_path / "processed").mkdir()
    InMemoryDataset.save(
        [layer_graph(atoms, name) for name, atoms in layers.items()], tmp_path / "processed" / "train.pt"
    )
    process = start(tmp_path / "out", "adsorption", "pack", "--hosts", tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    rows = shards(tmp_path / "out")["adsorption"]
    assert set(rows) == set(layers)
    lost = rows.pop("graphene")  # atoms of this size collapse in it: no reference for hydrogen
    assert "relaxation: energy changed" in lost["reason"] and "sites" not in lost
    for name, row in rows.items():
        assert 0 < len(row["sites"]) <= HOST_SITES
        host = unpack_atoms(row["host"])
        host.calc = lennard_jones()
        assert (
            abs(host.get_forces()).max() < 0.1
            and host.get_chemical_formula() == layers[name].get_chemical_formula()
        )  # relaxed first
    counts = json.loads((tmp_path / "out" / "data.json").read_text())
    assert "layers" not in counts and not (tmp_path / "out" / "her2d.db").exists()
    splits = {split_of(atoms.get_chemical_formula()) for atoms in layers.values()}
    assert {path.stem for path in (tmp_path / "out").glob("*.lmdb")} <= {
        f"her2d_h_{split}" for split in splits
    }


def test_shards_of_another_potential_are_not_touched(whole):
    command = [
        sys.executable,
        "-m",
        "data.build",
        "references",
        "--out",
        str(whole),
        "--potential",
        "sevennet-0",
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode != 0 and "was made with layers:lennard_jones" in found.stderr


def test_charge_balance_of_known_compounds():
    assert (
        balanced({"Al": 2, "O": 3}) and balanced({"Na": 1, "Cr": 1, "S": 2}) and balanced({"Ti": 1, "O": 2})
    )
    assert (
        not balanced({"Na": 1, "O": 2})
        and not balanced({"Al": 1, "Cl": 2})
        and not balanced({"Ca": 1, "Na": 1})
    )


def test_reference_phases_are_distinct_and_not_overlapping():
    items = reference_items()
    assert len({item["key"] for item in items}) == len(items) > 3500
    molecules = [item for item in items if not any(item["atoms"]["pbc"])]
    assert {"H2O:molecule", "P-O:capped cage", "S-F:octahedron"} <= {item["key"] for item in molecules}
    assert min(min_distance_ratio(unpack_atoms(item["atoms"])) for item in molecules) > 0.75
    cage = next(unpack_atoms(item["atoms"]) for item in molecules if item["key"] == "P-O:capped cage")
    assert cage.get_chemical_formula() == "O10P4"


def test_relaxed_hosts_are_stratified_and_stable_under_growth():
    site = {"converged": True, "flag": ""}
    metals = [
        f"{a}{n}S"
        for a in ("Ti", "Zr", "Hf", "V", "Nb", "Ta", "Cr", "Mo", "W", "Mn", "Re", "Fe")
        for n in range(1, 90)
    ]
    from ase import Atoms

    rows = [{"key": name, "sites": [site], "host": pack_atoms(Atoms(name))} for name in metals]
    rows.append(
        {"key": "bare", "sites": [{"converged": True, "flag": "desorbed"}], "host": pack_atoms(Atoms("Au"))}
    )
    taken = relaxed_items(rows)
    counts = {split: sum(split_of(item["key"]) == split for item in taken) for split in RELAXED_HOSTS}
    assert (
        counts["train"] == RELAXED_HOSTS["train"]
        and counts["val"] == RELAXED_HOSTS["val"]
        and counts["test"] == RELAXED_HOSTS["test"]
    )
    assert "bare" not in {item["key"] for item in taken}
