"""Files that appear by rename or not at all (text, JSON, CSV, checkpoints), read as text and numbers only.

Whatever is read may come from strangers: a checkpoint is loaded without running anything in it and within a
bound of memory, and text that came from a file never becomes a formula of a spreadsheet.
"""

import csv
import json
import math
import numbers
import os
import re
import resource
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

# The repository: weights and embedded data are found from any working directory.
ROOT = Path(__file__).resolve().parents[2]
FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet takes for a formula, and what we made of one
SPARE = 1 << 30  # bytes that reading a file may take beside 4 times its size: torch and Python objects


class UnreadableFile(ValueError):
    """A file is not what it should be; the message names it, says what it holds and what to do."""


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file beside `path`, of the same suffix, which takes its place when the block ends.

    If the block raises, `path` stays as it was. A killed process leaves `.NAME.tmp.SUFFIX`, which the next
    writing of the same file overwrites.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a full disk is said here, and a power cut leaves the old file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def shipped(name: str) -> Path:
    """A file of the repository, found from any working directory: its plain name where that is the root."""
    return Path(name) if Path.cwd() == ROOT else ROOT / name


def file_text(name: str | os.PathLike) -> str:
    """A file name as clean text, whatever the locale: bytes that are no UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments as plain types, for checkpoints and JSON."""
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def write_text(path: str | os.PathLike, text: str) -> None:
    """UTF-8 text by rename, with unix line ends; what UTF-8 cannot hold is written as an escape."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def _strict(value: Any) -> Any:
    """The value in strict JSON's types: a number that is not finite (NaN, infinity) becomes null."""
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if value is None or isinstance(value, (str, bool, numbers.Integral)):
        return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars, torch's tensors
        return _strict(value.tolist())
    return float(value) if math.isfinite(value) else None


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Strict JSON by rename; NaN and infinity become null (the text "NaN", sodium nitride, stays)."""
    write_text(path, json.dumps(_strict(content), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableFile: it holds no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"{file_text(path)} is no JSON ({error}): make it again") from None


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would run gets an apostrophe in front; numbers, also as text, stay."""
    if not isinstance(value, str) or not FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return "'" + value
    return value


def read_rows(path: str | os.PathLike) -> list[dict[str, str]]:
    """Rows of a CSV, as the text that was given to `write_rows`.

    Raises:
        UnreadableFile: the file is no CSV of UTF-8 text.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{file_text(path)} is no CSV of UTF-8 text ({error})") from None
    for row in rows:
        for name, text in row.items():
            if isinstance(text, str) and text.startswith("'") and FORMULA.match(text):
                row[name] = text[1:]
    return rows


def write_rows(path: str | os.PathLike, rows: Iterable[dict], columns: Iterable[str]) -> None:
    """A CSV (UTF-8) of some columns of the rows, by rename; text that begins as a formula does (= + - @) is
    quoted with an apostrophe, which `read_rows` takes off again.
    """
    with atomic(path) as temporary:
        with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, list(columns), extrasaction="ignore")
            writer.writeheader()
            for row in rows:
                writer.writerow({name: _cell(value) for name, value in row.items()})


def markdown_row(cells: Iterable[Any]) -> str:
    """A line of a markdown table; a bar, a backslash or a line break in a cell stays in its cell."""
    escaped = []
    for cell in cells:
        text = " ".join(str(cell).splitlines())
        escaped.append(text.replace("\\", "\\\\").replace("|", "\\|"))
    return "| " + " | ".join(escaped) + " |"


def markdown_table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A markdown table."""
    lines = [markdown_row(head), "|" + "---|" * len(head)]
    lines += [markdown_row(row) for row in rows]
    return "\n".join(lines)


def save_checkpoint(path: str | os.PathLike, content: dict) -> None:
    """torch.save by rename; plain types and tensors only, to be read by `load_checkpoint`."""
    import torch  # late: most of this file's users need no torch, whose import takes a second

    with atomic(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: str | os.PathLike, device: Any = "cpu") -> Any:
    """Content of any `.pt` or `.pth` of ours or of strangers: tensors and plain types, nothing runs.

    Args:
        path: file that torch.save wrote (the zip format, since torch 1.6).
        device: where its tensors go.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableFile: it is truncated, foreign, wants more memory than its size explains, or names
            something other than tensors and plain types; nothing of it was run.
    """
    import torch

    path = Path(path)
    name = file_text(path)
    if path.is_dir():
        raise UnreadableFile(f"{name} is a folder, not a checkpoint: name the file in it")
    if not path.is_file():
        raise FileNotFoundError(f"{name} does not exist: name a checkpoint that torch.save wrote")
    _check_archive(path, name)
    try:
        with bounded_memory(SPARE + 4 * path.stat().st_size):
            return torch.load(path, map_location=device, weights_only=True)
    except (MemoryError, RecursionError):
        raise UnreadableFile(f"{name} unpacks to far more than its size explains: not loaded") from None
    except Exception as error:  # torch raises whatever a broken file makes its parser stumble over
        raise UnreadableFile(f"{name} {_why_unread(path, error)}") from None


def _why_unread(path: Path, error: Exception) -> str:
    """What torch's long refusal comes to, in words that follow the file's name."""
    import torch

    try:  # walks through the pickle and runs nothing
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        named = []
    if named:
        return f"names {', '.join(named)}, which is code: nothing of it was run"
    if "alloc" in str(error) or "memory" in str(error):
        return "asks for far more memory than its size explains: not loaded"
    first = (str(error).strip() or "no reason given").splitlines()[0]
    return f"is damaged or no checkpoint ({type(error).__name__}: {first[:120]}): copy it again"


def _check_archive(path: Path, name: str) -> None:
    """Refuses what is no zip of stored entries: torch never compresses, so a compressed one is a bomb.

    Raises:
        UnreadableFile: with the reason.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        head = path.open("rb").read(16)
        kind = "empty" if not head else "cut short" if head.startswith(b"PK") else f"no zip ({head!r} …)"
        raise UnreadableFile(
            f"{name} is {kind}, not a file of torch.save: copy it or make it again"
        ) from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UnreadableFile(f"{name} is a compressed archive, which torch.save never writes: not loaded")


@contextmanager
def bounded_memory(extra: int) -> Iterator[None]:
    """Lets this process take at most `extra` more bytes of data; beyond it allocations fail (MemoryError in
    Python and NumPy, RuntimeError in torch). Where the system has no such account, nothing is bounded.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    bounded = limit_memory(extra)
    try:
        yield
    finally:
        if bounded:
            resource.setrlimit(resource.RLIMIT_DATA, before)


def limit_memory(extra: int) -> bool:
    """Bounds the data of this process (Linux: private memory, `VmData`) to `extra` bytes above what it is."""
    try:
        used = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        used = None
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if used is None:
        return False
    limit = int(used[1]) * 1024 + extra
    for other in (soft, hard):
        limit = limit if other == resource.RLIM_INFINITY else min(limit, other)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return True


def digest(text: str) -> str:
    """16 hex digits that depend on the text alone."""
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def file_hash(path: str | os.PathLike) -> str:
    """First 12 hex digits of a file's SHA-256."""
    return sha256(Path(path).read_bytes()).hexdigest()[:12]
