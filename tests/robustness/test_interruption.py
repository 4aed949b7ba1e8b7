"""Killed at any moment, a stage leaves whole files, and a second start gives the same bytes.

HER2D_KILLS says how many kills a stage (1 in `make test`, 50 in `make test-long`).
"""

import csv
import io
import json
import os
import random
import signal
import tempfile
from pathlib import Path

import ase.db
import pytest
import stages
import torch

from models.infra.shards import Shard

KILLS = int(os.environ.get("HER2D_KILLS", "1"))
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
STATUS = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
NAMES = ("pretrain_dimenet", "material_dataset", "optimization", "structure_generator", "evaluate_external")
NAMES += ("builder",)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("stages")
    stages.write_inputs(root)
    return root


def assert_whole(folder: Path) -> None:
    """Every file that has its final name can be read to its end."""
    for path in folder.rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".pt" | ".pth":
                torch.load(path, weights_only=True)
            case ".jsonl":
                Shard(path)
            case ".csv":
                rows = list(csv.reader(path.open(newline="", encoding="utf-8")))
                assert len({len(row) for row in rows}) == 1 and path.read_bytes().endswith(b"\n")
            case ".db":
                assert all(row.natoms for row in ase.db.connect(path).select())
            case ".png":
                assert path.read_bytes().endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_stage_goes_on_to_the_same_bytes(root, tmp_path, name, record_property):
    stage, folder = stages.stages(root)[name], tmp_path / "run"
    seconds = stages.finish(stage, folder)
    expected = stages.contents(folder)
    assert expected
    rng = random.Random(name)
    for kill in range(KILLS):
        folder.rename(tmp_path / f"done{kill}")
        number = SIGNALS[kill % len(SIGNALS)]
        status = stages.kill_after(rng.uniform(0.05, 0.95) * seconds, stage, folder, number)
        assert status in (STATUS[number], 0), (tmp_path / "log.txt").read_text()[-2000:]
        assert_whole(folder)
        stages.finish(stage, folder, *stage.again)
        found = stages.contents(folder)
        assert found.keys() == expected.keys()
        different = [
            file for file in found if comparable(file, found[file]) != comparable(file, expected[file])
        ]
        assert not different, f"kill {kill}, {number!r}"
    record_property("cases", KILLS)


def comparable(name: str, raw: bytes) -> object:
    """A file without the seconds that its work took and the flag --resume, which no second run repeats."""
    if name.endswith((".pt", ".pth")):
        return plain(torch.load(io.BytesIO(raw), weights_only=False))  # written by this test: graphs, weights
    if name.endswith(".jsonl"):
        rows = [json.loads(line) for line in raw.splitlines()]
        return sorted(json.dumps(without_time(row), sort_keys=True) for row in rows)
    if name.endswith(".csv"):
        return [without_time(row) for row in csv.DictReader(raw.decode().splitlines())]
    if name.endswith(".db"):
        return rows_of(raw)
    if name.endswith(".json"):
        return without_time(json.loads(raw))
    return raw


def rows_of(raw: bytes) -> list:
    """What the rows of an ASE database say, without the moment at which they were written."""
    with tempfile.NamedTemporaryFile(suffix=".db") as file:
        Path(file.name).write_bytes(raw)
        database = ase.db.connect(file.name)
        rows = [
            repr((row.toatoms(), row.positions.tolist(), row.key_value_pairs)) for row in database.select()
        ]
        return [database.metadata, *rows]


def plain(content: object) -> object:
    """Nested content with tensors as bytes, so that it is equal or not, to the bit."""
    if isinstance(content, torch.Tensor):
        return str(content.dtype), tuple(content.shape), content.numpy().tobytes()
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in ("args", "run", "seconds")}
        return {key: plain(value) for key, value in kept.items()}
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    return repr(content) if isinstance(content, float) else content  # NaN is NaN


def without_time(row: dict) -> dict:
    """Without seconds and core-hours; the seconds in a potential's name stay."""
    timed = lambda key: key == "core_hours" or ("second" in key and "potential" not in key)
    return {key: value for key, value in row.items() if not timed(key)}


def test_two_runs_into_one_output_are_one(root, tmp_path):
    """The second says so and stops before it has changed anything."""
    stage, folder = stages.stages(root)["structure_generator"], tmp_path / "run"
    first = stages.child(stage, folder)
    while not (folder / "cifs" / ".lock").exists():
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(stages.child(stage, folder), 0)[1]) == 1
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == 0
    assert f"is being written by another run (process {first})" in (tmp_path / "log.txt").read_text()
