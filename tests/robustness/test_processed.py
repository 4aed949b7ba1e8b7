"""Processed folders of strangers: nothing in them runs, and what is no graph is refused in a line."""

import os
import subprocess
import sys

import pytest
import torch
from layers import known
from torch_geometric.data import InMemoryDataset

import optimization
from data.build.items import host_items
from models.datasets.graphs import LayerGraphs, layer_graph
from models.infra.files import ROOT

SPLITS = ("train", "val", "test")


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def folder(tmp_path):
    """A folder of stage 2 with one graph a split."""
    (tmp_path / "processed").mkdir()
    for split in SPLITS:
        graph = layer_graph(known("1H-MoS2"), split, e_hull=0.0, delta_g_h=0.1)
        InMemoryDataset.save([graph], tmp_path / "processed" / f"{split}.pt")
    return tmp_path


def exploits(trace) -> dict[str, object]:
    code = f"open({str(trace)!r}, 'w')"
    own, slices, kind = torch.load(trace.parent / "processed" / "train.pt", weights_only=False)
    return {
        "alone": (Call(exec, code),),
        "in the place of the class": (own, slices, Call(exec, code)),
        "in the place of the slices": (own, Call(exec, code), kind),
        "as a field": (own | {"uid": Call(exec, code)}, slices, kind),
        "as a key": ({Call(exec, code): own}, slices, kind),
        "beside safe globals": (Call(torch.serialization.add_safe_globals, [exec]), Call(exec, code)),
        "system": (own, slices, Call(os.system, f"touch {trace}")),
        "getattr": (own, slices, Call(getattr, Call(__import__, "os"), "system")),
    }


@pytest.mark.parametrize("number", range(8))
def test_no_processed_folder_runs_anything(folder, number, record_property):
    trace = folder / "trace"
    torch.save(list(exploits(trace).values())[number], folder / "processed" / "train.pt")
    for read in (lambda: LayerGraphs(folder, "train"), lambda: host_items(folder)):
        with pytest.raises(ValueError, match=r"train\.pt .*nothing of it was run"):
            read()
    with pytest.raises((ValueError, SystemExit)) as refusal:
        optimization.main(["--data", str(folder), "--out", str(folder / "m.pth"), "--device", "cpu"])
    record_property("executed", int(trace.exists()))
    assert "train.pt" in str(refusal.value) and not trace.exists()


def broken(whole: bytes, own: dict, slices: dict, kind: type) -> dict[str, object]:
    """Name -> content of a train.pt that holds no graphs."""
    return {
        "nothing": b"",
        "half": whole[: len(whole) // 2],
        "text": b"no graphs",
        "a tensor": torch.zeros(3),
        "a dict": {"a": 1},
        "two numbers": (1, 2),
        "no slices": (own, {}, kind),
        "no positions": ({key: value for key, value in own.items() if key != "pos"}, slices, kind),
        "positions in two dimensions": (own | {"pos": own["pos"][:, :2]}, slices, kind),
        "positions of other atoms": (own | {"pos": own["pos"][:2]}, slices, kind),
        "a cell of two vectors": (own | {"cell": own["cell"][:, :2]}, slices, kind),
        "no label": ({key: value for key, value in own.items() if key != "e_hull"}, slices, kind),
        "labels of other number": (own | {"e_hull": torch.zeros(2)}, slices, kind),
        "text for numbers": (own | {"atomic_numbers": "MoS"}, slices, kind),
    }


def test_a_folder_without_graphs_is_refused_in_a_line(folder, record_property):
    path = folder / "processed" / "train.pt"
    whole = path.read_bytes()
    cases = broken(whole, *torch.load(path, weights_only=False))
    record_property("cases", len(cases))
    for name, content in cases.items():
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(ValueError, match=r"train\.pt ") as refusal:
            LayerGraphs(folder, "train")
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500, name
    with pytest.raises(FileNotFoundError, match="material_dataset.py"):
        LayerGraphs(folder / "none", "train")


@pytest.mark.long
def test_the_script_says_it_in_a_line(folder):
    (folder / "processed" / "train.pt").write_bytes(b"no graphs")
    command = [sys.executable, ROOT / "optimization.py", "--data", folder, "--out", folder / "m.pth"]
    done = subprocess.run([*command, "--device", "cpu"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and "train.pt is no zip" in done.stderr and "Traceback" not in done.stderr
