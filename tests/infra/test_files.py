"""What is written appears whole or not at all; what is read runs nothing, and is refused in one line."""

import csv
import io
import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt

from models.infra.files import (
    ROOT,
    UnreadableFile,
    atomic,
    bounded_memory,
    file_text,
    load_checkpoint,
    markdown_table,
    read_json,
    read_rows,
    save_checkpoint,
    write_json,
    write_rows,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_failed_writing_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    with atomic(tmp_path / "a.txt") as temporary:
        leftover = temporary
        temporary.write_text("whole")
    leftover.write_text("half")
    write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "new"


def test_json_is_strict(tmp_path):
    content = {"nan": math.nan, "inf": [math.inf, -math.inf], "text": "NaN", "array": np.array([1.0, np.nan])}
    write_json(tmp_path / "x.json", content | {"n": np.int64(3), "path": Path("a"), "flag": True, 4: None})

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    found = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert found == {
        "nan": None,
        "inf": [None, None],
        "text": "NaN",
        "array": [1.0, None],
        "n": 3,
        "path": "a",
        "flag": True,
        "4": None,
    }


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000])
def test_broken_json_is_named(tmp_path, raw):
    (tmp_path / "x.json").write_bytes(raw)
    with pytest.raises(UnreadableFile, match=r"x\.json is no JSON"):
        read_json(tmp_path / "x.json")


HOSTILE = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "'=1", "''@x"]
PEACEFUL = ["MoS2", "-0.5", "+1e-3", "", "a,b", 'quote"', "line\nbreak", "'tis", "−0.5", "é"]


def test_no_cell_is_a_formula_and_text_comes_back_as_it_was(tmp_path):
    rows = [{"id": text, "x": -0.5} for text in HOSTILE + PEACEFUL]
    write_rows(tmp_path / "x.csv", rows, ["id", "x"])
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        cells = [row["id"] for row in csv.DictReader(file)]
    for cell, text in zip(cells, HOSTILE + PEACEFUL):
        assert cell[:1] not in {"=", "+", "-", "@", "\t"} or text in PEACEFUL
    found = read_rows(tmp_path / "x.csv")
    assert [row["id"] for row in found] == HOSTILE + PEACEFUL
    assert {row["x"] for row in found} == {"-0.5"}


NAMES = ("a|b", "|", r"a\|b", r"a\\|b", "a\\", "two\nlines", "a\r\n|b", "ordinary", " ", "||||")


def test_a_name_stays_in_its_cell():
    """Markdown tables, read back by a parser: file names with bars, backslashes and line breaks."""
    text = markdown_table(["set", *NAMES], [[name, *NAMES] for name in NAMES])
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = [token.type for token in tokens]
    assert kinds.count("table_open") == 1 and kinds.count("tr_open") == len(NAMES) + 1
    assert kinds.count("td_open") == len(NAMES) * (len(NAMES) + 1)
    cells = []
    for token in tokens:
        if token.type == "inline":
            cells.append("".join(child.content for child in token.children))
    plain = [" ".join(name.split()) for name in NAMES]
    assert [" ".join(cell.split()) for cell in cells[1 : len(NAMES) + 1]] == plain


def test_any_name_can_be_written_in_any_locale(tmp_path):
    """A name that is no UTF-8, and LC_ALL=C with UTF-8 mode off: neither may cost the table."""
    code = """
import os, sys
from models.infra.files import file_text, write_rows, write_json
names = sorted(file_text(name) for name in os.listdir('.'))
write_rows('out/x.csv', [{'id': name} for name in names] + [{'id': '\\u0394G \\udcff'}], ['id'])
write_json('out/x.json', names)
"""
    (tmp_path / "MoS₂.cif").touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.cif")).touch()
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    environment |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert [row["id"] for row in read_rows(tmp_path / "out/x.csv")] == [
        "MoS₂.cif",
        "bad\\xff.cif",
        "ΔG \\udcff",
    ]
    assert read_json(tmp_path / "out/x.json") == ["MoS₂.cif", "bad\\xff.cif"]


def test_file_text():
    assert file_text("a/MoS₂.cif") == "a/MoS₂.cif" and file_text(os.fsdecode(b"\xff")) == "\\xff"


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def touch(path) -> Call:
    return Call(exec, f"open({str(path)!r}, 'w')")


HOLDERS = {
    "alone": lambda evil: evil,
    "in a list": lambda evil: [1, [evil]],
    "as a key": lambda evil: {"model": {}, "hparams": evil},
    "beside a tensor": lambda evil: {"model": {"w": torch.zeros(2)}, "x": evil},
    "as a tuple": lambda evil: (evil,),
}
CALLS = {
    "exec": lambda path: touch(path),
    "system": lambda path: Call(os.system, f"touch {path}"),
    "popen": lambda path: Call(subprocess.check_output, ["touch", str(path)]),
    "nested pickle": lambda path: Call(pickle.loads, pickle.dumps(touch(path))),
    "torch.load": lambda path: Call(torch.load, str(path) + ".pt"),
    "safe_globals": lambda path: Call(torch.serialization.add_safe_globals, [exec]),
    "write": lambda path: Call(Path.write_text, Path(path), "x"),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("call", CALLS)
def test_no_checkpoint_runs_anything(tmp_path, holder, call):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save(HOLDERS[holder](CALLS[call](trace)), path)
    with pytest.raises(UnreadableFile, match=r"evil\.pt names .+, which is code: nothing of it was run"):
        load_checkpoint(path)
    assert not trace.exists()


def zipped(path: Path, compression=zipfile.ZIP_DEFLATED, size: int = 1 << 26) -> None:
    """The checkpoint of a tensor, compressed: what takes 64 kB on disk is 64 MB in memory."""
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(size // 4)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))


def test_broken_checkpoints_are_refused_in_one_line(tmp_path):
    good = tmp_path / "good.pt"
    save_checkpoint(good, {"w": torch.arange(1000.0), "name": "x"})
    assert load_checkpoint(good)["w"].sum() == 499_500
    raw = good.read_bytes()
    broken = {
        "empty": b"",
        "short": raw[: len(raw) // 2],
        "text": b"version https://git-lfs.github.com/spec/v1\n",
        "html": b"<!DOCTYPE html><html>404</html>",
        "pickle": pickle.dumps({"w": 1}),
        "scrambled": raw[:200] + bytes(200) + raw[400:],
    }
    for name, content in broken.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
        with pytest.raises(UnreadableFile, match=rf"{name}\.pt is ") as refusal:
            load_checkpoint(tmp_path / f"{name}.pt")
        assert "\n" not in str(refusal.value)
    with pytest.raises(FileNotFoundError, match="none.pt does not exist"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(UnreadableFile, match="is a folder"):
        load_checkpoint(tmp_path)
    zipped(tmp_path / "bomb.pt")
    with pytest.raises(UnreadableFile, match="compressed"):
        load_checkpoint(tmp_path / "bomb.pt")


class Huge:
    """Pickles as a tensor of 2 TB on a storage of 4 bytes."""

    def __reduce__(self):
        storage = torch.zeros(1)._typed_storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, (2**39,), (1,), False, {})


def test_a_checkpoint_takes_no_more_memory_than_its_size_explains(tmp_path):
    torch.save({"w": Huge()}, tmp_path / "huge.pt")
    with pytest.raises(UnreadableFile, match=r"huge\.pt "):
        load_checkpoint(tmp_path / "huge.pt")


def test_memory_is_bounded_and_given_back():
    with pytest.raises(MemoryError), bounded_memory(1 << 26):
        np.ones(1 << 25)
    assert np.ones(1 << 25).sum() == 1 << 25
