"""OC20-type LMDB files (IS2RE, S2EF): a reader that trusts nothing in the file, and a writer.

A record is a pickle, and a pickle is a program. Here it is not allowed to do anything: every class or
function that it names must be in `ALLOWED`, and even those are replaced by inert stand-ins that only remember
what they were given. What they stand for (tensors and arrays) is built afterwards from those remains, by the
functions of this file. A record may not take more memory than its size explains (a pickle of nine bytes can
ask for gigabytes), and each of its values is looked at for its size before it is unfolded.
"""

import io
import math
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from torch.utils.data import Dataset
from torch_geometric.data import Data

from models.infra.files import atomic, bounded_memory

MAX_ATOMS = 2000  # of a record; OC20's largest have 234
MAX_BYTES = 64 << 20  # of a record; one of 234 atoms with its edges takes 1 MB
MAX_FOLDED = 10_000  # numbers of a tensor that repeats its storage (`expand`)
MAX_NAME = 500  # characters of a record's or a host's name
SPARE = 256 << 20  # bytes that reading a record may take beside 100 times its size


class RecordError(ValueError):
    """A record cannot be read; the message names the file and the key."""


class UnsafeRecordError(RecordError):
    """A record asks for a class or function that no such record needs; nothing of it was run."""


class _Inert:
    """Stand-in for an allowed name: keeps its arguments and state, and does nothing."""

    __slots__ = ("args", "state")
    role = ""

    def __new__(cls, *args: Any) -> "_Inert":
        self = object.__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


_ROLES = {
    "data": ["torch_geometric.data.data.Data"],
    "fields": ["torch_geometric.data.storage.GlobalStorage"],
    "label": ["torch_geometric.data.data.DataEdgeAttr", "torch_geometric.data.data.DataTensorAttr"],
    "tensor": ["torch._utils._rebuild_tensor_v2"],
    "storage": ["torch.storage._load_from_bytes"],
    "hooks": ["collections.OrderedDict"],
    "dtype": ["numpy.dtype"],
    "class": ["numpy.ndarray"],
    "array": ["numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"],
    "buffer": ["numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"],
    "scalar": ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"],
    "encode": ["_codecs.encode"],
}
ALLOWED = {
    tuple(name.rsplit(".", 1)): type(name, (_Inert,), {"__slots__": (), "role": role})
    for role, names in _ROLES.items()
    for name in names
}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Inert]:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise UnsafeRecordError(f"refuses to load {module}.{name}: no OC20 record needs it") from None


def _load_storage(raw: bytes) -> torch.storage.TypedStorage:
    try:
        storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = re.findall(r"GLOBAL\s+(\S+)", str(error))
        raise UnsafeRecordError(
            f"refuses to load a tensor storage that names {names or 'more than numbers'}"
        ) from None
    if not isinstance(storage, torch.storage.TypedStorage):
        raise RecordError(f"holds a {type(storage).__name__} where a tensor storage belongs")
    return storage


def _build_tensor(
    storage: torch.storage.TypedStorage, offset: int, size: tuple, stride: tuple
) -> torch.Tensor:
    untyped = storage._untyped_storage
    flat = torch.empty(0, dtype=storage.dtype)
    flat.set_(untyped, 0, (untyped.nbytes() // flat.element_size(),), (1,))
    if math.prod(size) > max(flat.numel(), MAX_FOLDED):  # a stride of 0 unfolds one number to any size
        raise RecordError(f"holds a tensor of shape {list(size)} on {flat.numel()} numbers")
    return flat.as_strided(size, stride, offset)  # checks the bounds, where set_() would grow the storage


def _build_dtype(spec: str, byteorder: str = "=") -> np.dtype:
    if not re.fullmatch(r"[biufcSU]\d{1,3}", spec) or byteorder not in "<>=|":
        raise RecordError(f"holds an array of type {byteorder}{spec[:20]}; numbers and text only")
    return np.dtype(byteorder + spec)


def _build(stub: _Inert, memo: dict[int, Any]) -> Any:
    """Value of one stand-in: a tensor, an array, a scalar, or one of their parts."""
    args, state = _resolve(stub.args, memo), _resolve(stub.state, memo)
    match stub.role:
        case "storage":
            return _load_storage(*args)
        case "tensor":
            return _build_tensor(*args[:4])
        case "hooks":
            return {}
        case "encode":
            return args[0].encode("latin1")
        case "dtype":
            return _build_dtype(args[0], state[1] if state else "=")
        case "scalar":
            return np.frombuffer(args[1], args[0])[0].item()
        case "buffer":
            return np.frombuffer(args[0], args[1]).reshape(args[2], order=args[3])
        case "array":
            _, shape, dtype, fortran, raw = state
            return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
    raise RecordError(f"holds a {type(stub).__name__} where a number or an array belongs")


def _resolve(value: Any, memo: dict[int, Any]) -> Any:
    """The value with every stand-in in it replaced by what it stands for (shared parts once, through the
    memo).
    """
    if not isinstance(value, (_Inert, dict, list, tuple)):
        return value
    if id(value) not in memo:
        if isinstance(value, _Inert):
            memo[id(value)] = _build(value, memo)
        elif isinstance(value, dict):
            memo[id(value)] = {key: _resolve(item, memo) for key, item in value.items()}
        else:
            memo[id(value)] = type(value)(_resolve(item, memo) for item in value)
    return memo[id(value)]


def _fields(stub: Any) -> dict[str, Any]:
    """Fields of a pickled Data of PyG 2.x (in `_store._mapping`) or 1.x (in the object's own dict)."""
    if getattr(stub, "role", None) != "data" or not isinstance(stub.state, dict):
        raise RecordError("is no pickled torch_geometric Data")
    state = stub.state
    if "_store" in state:
        store = state["_store"]
        if getattr(store, "role", None) != "fields" or not isinstance(store.state, dict):
            raise RecordError("has no readable fields in its _store")
        state = store.state.get("_mapping", {})
    return {key: value for key, value in state.items() if value is not None}


def safe_loads(raw: bytes) -> dict[str, Any]:
    """Fields of a pickled torch_geometric `Data`, read without running any of it.

    Args:
        raw: Pickle of a PyG 1.x or 2.x `Data` whose fields are tensors, NumPy arrays and plain values.

    Returns:
        Field name to tensor, array or plain value; fields that are None are left out.

    Raises:
        UnsafeRecordError: The pickle, or a tensor storage in it, names anything that is not in `ALLOWED`.
        RecordError: The bytes are truncated, corrupt, or no Data.
    """
    if len(raw) > MAX_BYTES:
        raise RecordError(f"has {len(raw)} bytes, more than any record of {MAX_ATOMS} atoms needs")
    try:
        with bounded_memory(SPARE + 100 * len(raw)):
            fields = _resolve(_fields(_InertUnpickler(io.BytesIO(raw)).load()), {})
    except RecordError:
        raise
    except MemoryError:
        raise RecordError("asks for far more memory than its size explains") from None
    except Exception as error:  # a corrupt pickle can fail in any way; nothing of ours is hidden by this
        raise RecordError(f"is truncated or corrupt ({type(error).__name__}: {str(error)[:200]})") from error
    if not all(isinstance(key, str) for key in fields):
        raise RecordError("has a field whose name is no text")
    return fields


def _tensor(fields: dict, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if name not in fields:
        raise RecordError(f"has no `{name}`; its fields are {sorted(fields)[:20]}")
    value = fields[name]
    if not torch.is_tensor(value):
        value = torch.from_numpy(np.array(_bounded(value, name, math.prod(shape))))
    if value.numel() != math.prod(shape):
        raise RecordError(f"has `{name}` of shape {list(value.shape)}, expected {list(shape)}")
    if value.is_complex():
        raise RecordError(f"has complex numbers in `{name}`")
    value = value.to(dtype)
    if not torch.isfinite(value).all():
        raise RecordError(f"has numbers in `{name}` that are not finite")
    return value.reshape(shape)


def _bounded(value: Any, name: str, most: int) -> Any:
    """The value, once it is sure that its lists hold no more than `most` numbers.

    Raises:
        RecordError: they hold more: one list that is inside itself many times over unfolds to any size.
    """
    todo, seen = [value], 0
    while todo:
        part = todo.pop()
        if isinstance(part, (list, tuple)):
            todo.extend(part)
            seen += not part  # empty lists count too
        else:
            seen += 1
        if seen + len(todo) > 2 * most + 16:
            raise RecordError(f"has more values in `{name}` than the {most} that belong there")
    return value


def _energy(value: Any, name: str) -> float:
    """A finite energy in eV.

    Raises:
        RecordError: it is none.
    """
    if torch.is_tensor(value) or isinstance(value, np.ndarray):
        value = value.item() if math.prod(value.shape) == 1 else None
    try:
        energy = float(value)
    except (TypeError, ValueError, OverflowError):
        energy = math.nan
    if not math.isfinite(energy):
        raise RecordError(f"has a `{name}` that is no finite number")
    return energy


def _identity(value: Any, name: str) -> int | str:
    """A number or a text of reasonable length that names a record or its host.

    Raises:
        RecordError: it is something else.
    """
    if torch.is_tensor(value) or isinstance(value, np.ndarray):
        value = value.item() if math.prod(value.shape) == 1 else None
    if isinstance(value, str) and len(value) <= MAX_NAME:
        return value
    if isinstance(value, (int, float)) and abs(value) < 2**63:
        return int(value)
    raise RecordError(f"has a `{name}` that is neither a whole number nor a short text")


def normalise(fields: dict[str, Any]) -> Data:
    """Fields of a record in one form, whichever program wrote it.

    Args:
        fields: As `safe_loads` returns them.

    Returns:
        Data with pos [N, 3] Å float32, cell [1, 3, 3] Å float32 (rows), atomic_numbers, tags, fixed [N] int64
        (tags and fixed are 0 where missing), natoms, sid; host_uid, pos_relaxed [N, 3] Å and the energies
        `y`, `y_*` in eV (float) only where present.

    Raises:
        RecordError: A needed field is missing, or shapes disagree.
    """
    n = _atom_count(fields.get("atomic_numbers", ()))
    data = Data(
        pos=_tensor(fields, "pos", torch.float32, (n, 3)),
        cell=_tensor(fields, "cell", torch.float32, (1, 3, 3)),
        atomic_numbers=_tensor(fields, "atomic_numbers", torch.int64, (n,)),
        natoms=n,
    )
    for name in ("tags", "fixed"):
        data[name] = _tensor({name: np.zeros(n), **fields}, name, torch.int64, (n,))
    if "sid" in fields:
        data.sid = _identity(fields["sid"], "sid")
    if "host_uid" in fields:
        data.host_uid = str(_identity(fields["host_uid"], "host_uid"))
    if "pos_relaxed" in fields:
        data.pos_relaxed = _tensor(fields, "pos_relaxed", torch.float32, (n, 3))
    for name in fields:
        if name == "y" or name.startswith("y_"):
            data[name] = _energy(fields[name], name)
    return data


def _atom_count(numbers: Any) -> int:
    """How many atoms a record has.

    Raises:
        RecordError: none, or more than any record.
    """
    if torch.is_tensor(numbers) or isinstance(numbers, np.ndarray):
        count = math.prod(numbers.shape)
    else:
        count = len(numbers) if isinstance(numbers, (list, tuple)) else 1
    if count == 0:
        raise RecordError("has no atoms")
    if count > MAX_ATOMS:
        raise RecordError(f"has {count} atoms, more than {MAX_ATOMS}")
    return count


def _open(path: Path) -> lmdb.Environment:
    try:
        env = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise RecordError(f"{path} cannot be opened as an LMDB file: {error}") from error
    expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if path.stat().st_size < expected:  # LMDB maps the file: reading past its end would kill the process
        env.close()
        raise RecordError(f"{path} is cut short: {path.stat().st_size} bytes of {expected}; copy it again")
    return env


def lmdb_files(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """LMDB files behind one path or several; a directory stands for the `*.lmdb` in it, sorted by name.

    Raises:
        FileNotFoundError: A path does not exist, or a directory holds no `*.lmdb`.
    """
    files = []
    for path in map(Path, [paths] if isinstance(paths, (str, os.PathLike)) else paths):
        found = sorted(path.glob("*.lmdb")) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            raise FileNotFoundError(f"{path}: no such LMDB file, and no directory with *.lmdb files")
        files += found
    return files


class LmdbDataset(Dataset):
    """Records of one or more OC20-type LMDB files (single file each, ASCII integer keys; other keys are
    ignored).

    A file is opened for each read and closed again: that costs 0.1 ms, and lets the data set be pickled or
    forked into workers and the same file be open elsewhere (LMDB forbids to open a file twice in one
    process).

    Args:
        paths: File, directory of `*.lmdb`, or several of them.

    Raises:
        FileNotFoundError: A path does not exist.
        RecordError: A file is no LMDB.
    """

    def __init__(self, paths: str | os.PathLike | Iterable[str | os.PathLike]):
        self.files = lmdb_files(paths)
        self.keys = [
            (number, key) for number, path in enumerate(self.files) for key in self._integer_keys(path)
        ]

    @staticmethod
    def _integer_keys(path: Path) -> list[int]:
        with _open(path) as env, env.begin() as txn:
            keys = txn.cursor().iternext(values=False)
            return sorted(int(key) for key in keys if re.fullmatch(rb"0|[1-9]\d*", key))

    def __len__(self) -> int:
        return len(self.keys)

    def raw(self, index: int) -> bytes:
        """Pickle of a record, for `safe_loads` only."""
        number, key = self.keys[index]
        with _open(self.files[number]) as env, env.begin() as txn:
            return txn.get(str(key).encode("ascii")) or b""

    def __getitem__(self, index: int) -> Data:
        """Record as `normalise` returns it, with sid = its key where it has none.

        Raises:
            UnsafeRecordError: The record asks for code (see `safe_loads`).
            RecordError: The record is truncated, corrupt or incomplete.
        """
        number, key = self.keys[index]
        try:
            data = normalise(safe_loads(self.raw(index)))
        except RecordError as error:
            raise type(error)(f"{self.files[number]}, key {key}: {error}") from error.__cause__
        except Exception as error:  # a field of any kind where a number belongs; nothing of ours is hidden
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise RecordError(f"{self.files[number]}, key {key}: unusable field ({reason})") from error
        if "sid" not in data:
            data.sid = key
        return data


class _OneStorage(pickle.Pickler):
    """Pickles tensors that are views of one storage with that storage written once: it costs 350 bytes a
    tensor.
    """

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=-1)
        self.storages = {}

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        storage = self.storages.setdefault(value.untyped_storage().data_ptr(), value._typed_storage())
        where = (value.storage_offset(), tuple(value.shape), value.stride())
        return torch._utils._rebuild_tensor_v2, (storage, *where, False, OrderedDict())


def compact_pickle(record: Data) -> bytes:
    """Pickle of a record half as long as pickle's own, read by pickle.loads alike: its tensors share one
    float32 storage (OC20 keeps atomic numbers as floats too).
    """
    tensors = {name: value.float() for name, value in record.to_dict().items() if torch.is_tensor(value)}
    flat = torch.cat([value.flatten() for value in tensors.values()]).split(
        [value.numel() for value in tensors.values()]
    )
    small = record.clone()
    for (name, value), part in zip(tensors.items(), flat):
        small[name] = part.view(value.shape)
    file = io.BytesIO()
    _OneStorage(file).dump(small)
    return file.getvalue()


def write_lmdb(path: str | os.PathLike, records: Iterable[Data]) -> int:
    """Write records as an OC20-type LMDB: keys "0", "1", …, and `length`; compact pickles, which upstream
    reads as any. Keys go in as LMDB sorts them, as text, which leaves its pages full.

    Args:
        path: File to make; it appears by rename, complete or not at all.
        records: `Data` objects with the fields of `normalise` (or more).

    Returns:
        Number of records written.
    """
    pickles = [compact_pickle(record) for record in records]
    with atomic(path) as temporary:
        with lmdb.open(str(temporary), subdir=False, lock=False, map_size=2**40, meminit=False) as env:
            with env.begin(write=True) as txn:
                for key in sorted(str(number).encode("ascii") for number in range(len(pickles))):
                    txn.put(key, pickles[int(key)], append=True)
                txn.put(b"length", pickle.dumps(len(pickles), protocol=-1), append=True)
            env.sync(True)
    return len(pickles)
