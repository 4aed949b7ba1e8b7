"""LMDB records: what is read, what is refused, what comes back after a round trip."""

import collections
import io
import math
import os
import pickle
import sys
import time
import types
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from models.crystals.split import host_formula, split_of
from models.datasets.lmdb_data import (
    LmdbDataset,
    RecordError,
    UnsafeRecordError,
    compact_pickle,
    normalise,
    safe_loads,
    write_lmdb,
)
from models.infra.files import ROOT

REFERENCE = Path(os.environ.get("HER2D_REFERENCE_DATA", ROOT / "../shared/data"))
SAMPLE = REFERENCE / "is2re_lmdb" / "sample.lmdb"


def record(sid=7, **extra):
    return Data(
        pos=torch.arange(9.0).reshape(3, 3),
        cell=torch.eye(3)[None] * 9,
        atomic_numbers=torch.tensor([42.0, 16, 1]),
        tags=torch.tensor([1, 1, 2]),
        fixed=torch.tensor([1, 0, 0]),
        natoms=3,
        sid=sid,
        **extra,
    )


def write_raw(path, values, size=2**24):
    with lmdb.open(str(path), subdir=False, lock=False, map_size=size) as env, env.begin(write=True) as txn:
        for key, value in values.items():
            txn.put(key.encode(), value)
    return path


def test_round_trip_in_numeric_order(tmp_path):
    path = tmp_path / "a.lmdb"
    assert write_lmdb(path, [record(sid, y_relaxed=sid / 10) for sid in range(12)]) == 12
    dataset = LmdbDataset(path)
    assert [data.sid for data in dataset] == list(range(12)) and len(dataset) == 12
    data = dataset[11]
    assert data.pos.dtype == data.cell.dtype == torch.float32 and data.cell.shape == (1, 3, 3)
    assert data.atomic_numbers.tolist() == [42, 16, 1] and data.tags.tolist() == [1, 1, 2]
    assert data.fixed.tolist() == [1, 0, 0] and data.natoms == 3
    assert data.y_relaxed == pytest.approx(1.1) and "pos_relaxed" not in data and "y_init" not in data
    assert [file.name for file in tmp_path.iterdir()] == ["a.lmdb"]


def test_written_file_is_plain_for_upstream_readers(tmp_path):
    write_lmdb(tmp_path / "a.lmdb", [record(y_init=0.5), record(y_init=0.6)])
    with (
        lmdb.open(str(tmp_path / "a.lmdb"), subdir=False, readonly=True, lock=False) as env,
        env.begin() as txn,
    ):
        assert pickle.loads(txn.get(b"length")) == 2
        assert torch.equal(pickle.loads(txn.get(b"1")).pos, record().pos)


def test_failed_write_leaves_nothing(tmp_path):
    def records():
        yield record()
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_lmdb(tmp_path / "a.lmdb", records())
    assert not list(tmp_path.iterdir())


def test_directory_several_files_pickling_and_forked_workers(tmp_path):
    for name, sid in [("b.lmdb", 1), ("a.lmdb", 0)]:
        write_lmdb(tmp_path / name, [record(sid)])
    (tmp_path / "a.lmdb-lock").touch()
    dataset = pickle.loads(pickle.dumps(LmdbDataset(tmp_path)))
    assert [data.sid for data in dataset] == [0, 1]
    both = LmdbDataset([tmp_path / "b.lmdb", tmp_path / "a.lmdb"])
    assert [data.sid for data in both] == [1, 0]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context="fork"
    )
    assert [data.sid for data in loader] == [0, 1]


@pytest.mark.parametrize("protocol", [2, 4, pickle.HIGHEST_PROTOCOL])
def test_numpy_values_of_either_numpy_major_version(protocol):
    values = record(a=np.arange(6.0).reshape(2, 3).T, y_relaxed=np.float64(-1.5), count=np.int32(4))
    raw = pickle.dumps(values, protocol=protocol)
    fields = safe_loads(raw)
    np.testing.assert_array_equal(fields["a"], np.arange(6.0).reshape(2, 3).T)
    assert fields["y_relaxed"] == -1.5 and fields["count"] == 4
    if protocol == 2:
        assert b"numpy._core.multiarray" in raw
        assert (
            safe_loads(raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))["y_relaxed"] == -1.5
        )


def test_tensor_views_keep_offset_and_stride():
    base = torch.arange(24.0)
    data = Data(a=base[6:].reshape(3, 6)[:, ::2], b=base.reshape(4, 6).T, half=base.half(), flag=base > 3)
    fields = safe_loads(pickle.dumps(data, protocol=-1))
    assert all(torch.equal(fields[name], data[name]) for name in ("a", "b", "half", "flag"))


def test_pyg_1_record_without_store(tmp_path, monkeypatch):
    """PyG 1.x kept the fields, unset ones as None, in the object's own dict."""
    module = types.ModuleType("torch_geometric.data.data")
    old = type("Data", (), {"__module__": module.__name__})
    module.Data = old
    data = old()
    data.__dict__ |= {
        "x": None,
        "edge_index": None,
        "y": None,
        "pos": torch.ones(2, 3),
        "cell": torch.eye(3)[None],
        "atomic_numbers": torch.tensor([1.0, 8.0]),
        "y_relaxed": -0.4,
        "natoms": 2,
        "sid": 3,
    }
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        raw = pickle.dumps(data, protocol=-1)
    read = LmdbDataset(write_raw(tmp_path / "old.lmdb", {"0": raw}))[0]
    assert (
        read.atomic_numbers.tolist() == [1, 8]
        and read.tags.tolist() == [0, 0]
        and read.fixed.tolist() == [0, 0]
    )
    assert read.y_relaxed == -0.4 and read.sid == 3 and "y" not in read


def test_other_keys_are_ignored_and_sid_defaults_to_the_key(tmp_path):
    data = record()
    del data.sid
    values = {"5": pickle.dumps(data), "length": b"junk", "metadata": b"junk", "-1": b"junk", "07": b"junk"}
    dataset = LmdbDataset(write_raw(tmp_path / "a.lmdb", values))
    assert len(dataset) == 1 and dataset[0].sid == 5


# ---------------------------------------------------------------- malice and damage


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def storage_bytes(payload):
    """What torch would accept as storage bytes with weights_only=False, and run."""
    buffer = io.BytesIO()
    torch.save(payload, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def attacks(command):
    code = f"__import__('os').system({command!r})"
    load = torch.storage._load_from_bytes
    return {
        "system": (Call(os.system, command), r"(posix|nt)\.system"),
        "eval": (Call(eval, code), r"builtin(s|__)\.eval"),
        "exec": (Call(exec, code), r"builtin(s|__)\.exec"),
        "getattr": (Call(getattr, Data, "to"), r"builtin(s|__)\.getattr"),
        "torch.load": (Call(torch.load, "payload.pt"), r"torch\.serialization\.load"),
        "nested storage": (Call(load, storage_bytes(Call(os.system, command))), r"(posix|nt)"),
        "nested zip": (Call(load, zip_bytes(Call(os.system, command))), r"(posix|nt)"),
        "object array": (np.array([Call(os.system, command)], dtype=object), r"(posix|nt)\.system"),
    }


def zip_bytes(payload):
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", sorted(attacks("true")))
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_malicious_pickle_is_refused_and_runs_nothing(tmp_path, name, protocol):
    proof = tmp_path / "ran"
    payload, refused = attacks(f"touch {proof}")[name]
    root = write_raw(tmp_path / "root.lmdb", {"0": pickle.dumps(payload, protocol)})
    field = write_raw(tmp_path / "field.lmdb", {"0": pickle.dumps(record(extra=payload), protocol)})
    with pytest.raises(RecordError, match=f"{root}, key 0: "):
        LmdbDataset(root)[0]
    with pytest.raises(UnsafeRecordError, match=f"{field}, key 0: .*{refused}"):
        LmdbDataset(field)[0]
    assert not proof.exists()


def test_opcodes_cannot_change_the_reader():
    """BUILD on an allowed class must not set attributes on it, nor may allowed names be dotted into."""
    data = b"ctorch_geometric.data.data\nData\n"
    with pytest.raises(RecordError):
        safe_loads(b"\x80\x02" + data + b"N}U\x0b__setstate__c_codecs\nencode\ns\x86b.")
    with pytest.raises(UnsafeRecordError, match="Data.to"):
        safe_loads(b"\x80\x04\x8c\x19torch_geometric.data.data\x8c\x07Data.to\x93.")
    safe_loads(pickle.dumps(record(), protocol=-1))


def test_array_type_cannot_smuggle_pointers():
    raw = pickle.dumps(record(a=np.zeros(2)), protocol=2)
    assert raw.count(b"f8") == 1
    with pytest.raises(RecordError, match="numbers and text only"):
        safe_loads(raw.replace(b"f8", b"O8"))


def test_tensor_bounds_are_checked():
    raw = pickle.dumps(Data(a=torch.arange(3.0)), protocol=2)
    grown = raw.replace(b"K\x03\x85", b"K\x7f\x85")
    assert grown != raw
    with pytest.raises(RecordError, match="truncated or corrupt"):
        safe_loads(grown)


@pytest.mark.parametrize("cut", [0, 1, 200, -20, -1])
def test_truncated_record_names_file_and_key(tmp_path, cut):
    path = write_raw(tmp_path / "a.lmdb", {"3": pickle.dumps(record(), protocol=-1)[:cut] or b"\x80"})
    with pytest.raises(RecordError, match=rf"{path}, key 3: is truncated or corrupt"):
        LmdbDataset(path)[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pos": None}, "has no `pos`"),
        ({"pos": torch.zeros(2, 3)}, r"`pos` of shape \[2, 3\]"),
        ({"cell": torch.full((1, 3, 3), float("nan"))}, "not finite"),
        ({"y_relaxed": "high"}, "`y_relaxed` that is no finite number"),
    ],
)
def test_incomplete_record_says_what_is_wrong(tmp_path, change, message):
    data = record()
    for name, value in change.items():
        data[name] = value
    write_lmdb(tmp_path / "a.lmdb", [data])
    with pytest.raises(RecordError, match=message):
        LmdbDataset(tmp_path / "a.lmdb")[0]


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such LMDB"):
        LmdbDataset(tmp_path / "none.lmdb")
    (tmp_path / "text.lmdb").write_text("no database " * 1000)
    with pytest.raises(RecordError, match=r"text\.lmdb cannot be opened"):
        LmdbDataset(tmp_path)
    write_lmdb(tmp_path / "cut.lmdb", [record(sid) for sid in range(50)])
    os.truncate(tmp_path / "cut.lmdb", 20_000)
    with pytest.raises(RecordError, match="cut short"):
        LmdbDataset(tmp_path / "cut.lmdb")


# ---------------------------------------------------------------- bombs: little on disk, much in memory


def shared(depth: int) -> list:
    """A list of 2**depth numbers that takes `depth` lists: each holds the one before twice."""
    part = [1.0, 2.0]
    for _ in range(depth):
        part = [part, part]
    return part


class Folded:
    """Pickles as a tensor of `size` on a storage of four numbers, with strides of 0."""

    def __init__(self, *size: int):
        self.size = size

    def __reduce__(self):
        storage = torch.zeros(4)._typed_storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, self.size, (0,) * len(self.size), False, {})


BOMBS = {
    "shared lists": {"pos": shared(40)},
    "shared lists as numbers": {"atomic_numbers": shared(40)},
    "shared lists as a name": {"host_uid": shared(40)},
    "shared lists as an energy": {"y_relaxed": shared(40)},
    "shared lists as a sid": {"sid": shared(40)},
    "empty lists": {"pos": [[]] * 300_000},
    "stride 0": {"pos": Folded(10**12, 3)},
    "stride 0 numbers": {"atomic_numbers": Folded(10**12)},
    "stride 0 of no field": {"other": Folded(10**6, 10**6)},
    "a huge array": {"pos": np.zeros((0, 3)), "a": np.empty((10**9, 0))},
    "a huge integer": {"y_relaxed": 10**400},
    "a huge sid": {"sid": 10**400},
    "sid inf": {"sid": math.inf},
    "sid nan": {"sid": math.nan},
    "sid a list": {"sid": [1]},
    "sid a long text": {"sid": "x" * 10_000},
    "energy nan": {"y_relaxed": math.nan},
    "energy inf": {"y_init": math.inf},
    "energy a vector": {"y": torch.zeros(3)},
    "energy a text": {"y": "1e400"},
    "energy None in a list": {"y": [None]},
    "positions inf": {"pos": torch.full((3, 3), math.inf)},
    "positions a text": {"pos": "a" * 9},
    "positions complex": {"pos": np.zeros((3, 3), complex)},
    "numbers a dict": {"atomic_numbers": {"a": 1}},
    "tags a text": {"tags": "122"},
    "one atom too many": {"tags": torch.zeros(4)},
    "no atom": {"atomic_numbers": torch.zeros(0)},
    "a million atoms": {"atomic_numbers": torch.zeros(1_000_000, dtype=torch.int8)},
    "cell of text": {"cell": np.array([["a"] * 3] * 3)},
    "cell nested": {"cell": [[[[1.0]]]]},
    "a key that is a number": {5: 1},
    "a key that is None": {None: 1},
    "keys of two kinds": {5: 1, "pos": None},
    "a key that is a tuple": {("y_relaxed",): 1},
}
RAW = {
    "nine bytes for 2 GB": b"\x80\x04Nr\xff\xff\xff\x0f.",
    "a byte array of 8 EB": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "a byte array of 2 GB": b"\x80\x05\x96\x00\x00\x00\x80\x00\x00\x00\x00.",
    "a frame of 8 EB": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x0fN.",
    "a text of 4 GB": b"\x80\x04X\xff\xff\xff\xffa.",
    "deep nesting": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a number of many digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "an endless tower": b"\x80\x04" + b"(" * 200_000 + b"t" * 200_000 + b".",
    "nothing": b".",
    "no pickle": b"hello",
}


@pytest.mark.parametrize("name", [*BOMBS, *RAW])
def test_a_bomb_costs_one_record_at_once(tmp_path, name):
    raw = RAW.get(name)
    if raw is None:
        data = record()
        for field, value in BOMBS[name].items():
            data._store._mapping[field] = value
        raw = pickle.dumps(data, protocol=4)
    good = pickle.dumps(record(3), protocol=4)
    path = write_raw(tmp_path / "a.lmdb", {"0": good, "1": raw, "2": good}, 2**27)
    dataset, begin = LmdbDataset(path), time.process_time()
    with pytest.raises(RecordError, match=rf"{path}, key 1: ") as refusal:
        dataset[1]
    assert time.process_time() - begin < 3 and len(str(refusal.value)) < 1000
    assert dataset[0].sid == dataset[2].sid == 3


# ---------------------------------------------------------------- the real file, and the split


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"no reference data at {SAMPLE} (set HER2D_REFERENCE_DATA)")
def test_real_sample():
    dataset = LmdbDataset(SAMPLE)
    assert len(dataset) == 32
    for data in dataset:
        assert data.pos.shape == (data.natoms, 3) and data.cell.shape == (1, 3, 3)
        assert (data.tags == 0).all() and -2 < data.y_relaxed < 0 and "pos_relaxed" not in data


def test_split_is_stable_and_by_reduced_formula():
    assert split_of("MoS2") == split_of("Mo4S8") == split_of("S2Mo")
    assert [split_of(f) for f in ("MoS2", "WTe2", "TiO2")] == ["train", "val", "test"]
    counts = collections.Counter(
        split_of(f"{a}{n}{b}") for a in ELEMENTS for b in ELEMENTS for n in range(1, 6)
    )
    shares = {name: count / counts.total() for name, count in counts.items()}
    assert abs(shares["train"] - 0.8) < 0.05 and abs(shares["val"] - shares["test"]) < 0.05


def test_host_formula():
    assert host_formula([42, 16, 16, 1], [1, 1, 1, 2]) == "MoS2"
    assert host_formula([1, 1, 8], [0, 0, 0]) == host_formula([1, 1, 8], [2, 2, 2]) == "H2O"


ELEMENTS = "Mo W S Se Te Ti Zr Hf Nb Ta V Cr Mn Fe Co Ni Pd Pt Cl Br I O N P".split()


def test_compact_records_are_plain_pickles_of_the_same_numbers():
    data = record(7, y_relaxed=0.25)
    raw = compact_pickle(data)
    plain, ours, expected = pickle.loads(raw), normalise(safe_loads(raw)), normalise(data.to_dict())
    for name in expected.keys():
        np.testing.assert_array_equal(np.array(plain[name]), np.array(expected[name]), err_msg=name)
        np.testing.assert_array_equal(np.array(ours[name]), np.array(expected[name]), err_msg=name)
    assert len(raw) < 0.7 * len(pickle.dumps(data, protocol=-1))
