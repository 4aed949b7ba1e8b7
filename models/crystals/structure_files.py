"""A folder of structures as people have them (CIF, POSCAR, extended XYZ, gzipped, zipped) to atoms.

Nothing is left out without a word: a file that should be a structure and is none gives its reason as a row, a
format that is not read is named on stderr.
"""

import gzip
import io
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry.minkowski_reduction import minkowski_reduce
from ase.io import read

from models.crystals.cif import MAX_ATOMS, CifError, checked_cell, read_cif, refuse_overlaps
from models.crystals.thresholds import HEAVIEST, TOO_HEAVY
from models.infra.files import file_text

MAX_BYTES = 16 << 20  # of a file: 500 atoms take 50 kB, the frames of a generator's output some MB
MAX_MEMBERS = 100_000  # files of an archive, frames of a file
UNREAD = (".xyz.gz", ".extxyz.gz", ".poscar.gz", ".vasp.gz", ".cif.bz2", ".cif.xz", ".tar.gz", ".tgz", ".tar")
UNREAD += (".mcif", ".mmcif", ".pdb", ".xsf", ".cssr", ".res", ".gen", ".traj", ".db", ".xtl", ".aselmdb")

Found = tuple[str, Atoms | str]


def read_structures(folder: str | Path) -> list[Found]:
    """(id, structure) of all in a folder (or a file), sorted by file; what is none gives its reason as text.

    Files of the folder come first: *.cif, *.cif.gz, POSCAR*, CONTCAR*, *.vasp, *.poscar, *.extxyz, *.xyz with
    a lattice, *.zip of CIFs and POSCARs. Folders in it are read only where it holds no such file itself, for
    they often hold the same structures again (relaxed ones, for instance). The id is the file's name without
    its ending, `name/member` in an archive, `name/block` or `name/number` in a file of several, and the
    whole name where two files would share one.

    Raises:
        FileNotFoundError: there is no structure.
    """
    folder = Path(folder)
    paths = [folder] if folder.is_file() else _files(folder)
    root = folder.parent if folder.is_file() else folder
    names = [PurePosixPath(path.relative_to(root)) for path in paths]
    stems = [str(name.with_name(_stem(name.name))) for name in names]
    shared = Counter(stems)
    found: list[Found] = []
    for path, name, stem in zip(paths, names, stems):
        identity = file_text(str(name) if shared[stem] > 1 else stem)
        held = _same_again(_structures(path, identity), found, name)
        found += held
    if not found:
        raise FileNotFoundError(
            f"{file_text(folder)} holds no structure: give a folder of *.cif, POSCAR or *.extxyz with --cifs"
        )
    return found


def _files(folder: Path) -> list[Path]:
    """Structure files of a folder, or, if it has none, of the folders in it; says what is not read."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{file_text(folder)} does not exist: give a folder of structures with --cifs"
        )
    everything = sorted(path for path in folder.rglob("*") if not path.is_dir())
    visible = [path for path in everything if not _hidden(path.relative_to(folder))]
    for path in visible:
        if path.name.lower().endswith(UNREAD):
            _say(f"not read: {file_text(path)}: no format of structures that is read here, convert it to CIF")
    chosen = [path for path in visible if _format(path.name)]
    own = [path for path in chosen if path.parent == folder]
    nested = Counter(path.parent for path in chosen if path.parent != folder)
    if not own:
        return chosen
    for parent, count in sorted(nested.items()):
        _say(f"not read: {count} structure files in {file_text(parent)}: give that folder with --cifs")
    return own


def _hidden(name: Path) -> bool:
    """Whether a file, or a folder on the way to it, is none of the user's: .git, __MACOSX, ._x.cif."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _format(name: str) -> str:
    """Format by a file's name; empty if it is no structure file."""
    lower = name.lower()
    if lower.endswith((".cif", ".cif.gz")):
        return "cif"
    if lower.endswith((".extxyz", ".xyz")):
        return "extxyz"
    if lower.endswith((".vasp", ".poscar")) or re.match(r"(poscar|contcar)(?![^\W_])", lower):
        return "" if lower.endswith((".gz", ".txt", ".csv")) else "poscar"
    return "zip" if lower.endswith(".zip") else ""


def _stem(name: str) -> str:
    """A file's name without the ending that says its format: x of x.cif.gz, POSCAR.MoS2 as it is."""
    return re.sub(r"(?i)\.(cif\.gz|cif|extxyz|xyz|vasp|poscar|zip)$", "", name)


def _structures(path: Path, identity: str) -> list[Found]:
    """All structures of a file; a reason where it cannot be read."""
    if not path.is_file():
        return [(identity, "unreadable: a broken link, a pipe or a device")]
    try:
        if _format(path.name) == "zip":
            return list(_members(path, identity))
        raw = _opened(path)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return [(identity, f"unreadable: {reason}")]
    return _parsed(raw, _format(path.name), identity)


def _opened(path: Path) -> bytes:
    """Bytes of a file, gzipped or not, MAX_BYTES + 1 at most."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _members(path: Path, identity: str) -> Iterator[Found]:
    """Structures of a zip; frames of trajectories in it are not read and said so."""
    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        chosen = [name for name in names if not _hidden(Path(name)) and _format(name) in ("cif", "poscar")]
        if not chosen or len(chosen) < len(names):
            _say(f"not read: {len(names) - len(chosen)} files in {file_text(path)} that are no CIF or POSCAR")
        for name in sorted(chosen)[:MAX_MEMBERS]:
            member = f"{identity}/{file_text(_stem(name))}"
            with archive.open(name) as file:
                raw = file.read(MAX_BYTES + 1)
            raw = zlib.decompress(raw, 31, MAX_BYTES) if name.lower().endswith(".gz") else raw
            yield from _parsed(raw, _format(name), member)


def _parsed(raw: bytes, kind: str, identity: str) -> list[Found]:
    """Structures of a file's bytes, checked; the reason where they are none."""
    if len(raw) > MAX_BYTES:
        return [(identity, f"unreadable: more than {MAX_BYTES >> 20} MB, no structure is so large")]
    try:
        text = raw.decode("utf-8-sig") if b"\0" not in raw[:4] else raw.decode("utf-16")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    try:
        parts = PARSERS[kind](text)
    except CifError as error:
        return [(identity, f"unreadable: {error}")]
    except Exception as error:  # ASE's readers fail in any way on a broken file
        return [(identity, f"unreadable: no {kind} ({_reason(error)})")]
    if len(parts) == 1:
        return [(identity, _checked(parts[0][1]))]
    return [(f"{identity}/{name}", _checked(part)) for name, part in _unique(parts)]


def _unique(parts: list[Found]) -> list[Found]:
    """The parts with numbers where names are missing or shared."""
    shared = Counter(name for name, _ in parts)
    named = []
    for number, (name, part) in enumerate(parts, start=1):
        label = re.sub(r"[^\w.+-]", "_", name) if name and shared[name] == 1 else f"{number}"
        named.append((label, part))
    if len({label for label, _ in named}) < len(named):
        named = [(f"{number}", part) for number, (_, part) in enumerate(parts, start=1)]
    return named


def _reason(error: Exception) -> str:
    """An exception in words: its message, or, where that is empty, what kind it is."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _extxyz(text: str) -> list[Found]:
    """Frames of an extended XYZ file."""
    _check_counts(text)
    frames = read(io.StringIO(text), format="extxyz", index=":")
    if not frames:
        raise CifError("no frame in this file")
    width = len(str(len(frames)))
    return [(f"{number:0{width}d}", atoms) for number, atoms in enumerate(frames, start=1)]


def _check_counts(text: str) -> None:
    """Raises CifError where a frame announces atoms that do not follow: ASE would count to any number."""
    lines, at, frames = text.splitlines(), 0, 0
    while at < len(lines) and lines[at].strip():
        count = lines[at].strip()
        if not re.fullmatch(r"\d{1,9}", count) or at + 2 + int(count) > len(lines):
            raise CifError(f"frame {frames + 1} announces {count[:20]} atoms, which do not follow")
        at, frames = at + 2 + int(count), frames + 1
    if frames > MAX_MEMBERS:
        raise CifError(f"{frames} frames, more than {MAX_MEMBERS}")


def _poscar(text: str) -> list[Found]:
    """The structure of a POSCAR with a line of elements (VASP 5)."""
    lines = text.splitlines()
    if len(lines) > 5 and re.fullmatch(r"[\s\d]+", lines[5] or "x"):
        raise CifError("a POSCAR without a line of elements (VASP 4): write them above the counts")
    counts = re.findall(r"\d+", lines[6]) if len(lines) > 6 else []
    if sum(map(float, counts)) > MAX_ATOMS:
        raise CifError(f"more than {MAX_ATOMS} atoms in the cell: give a smaller one")
    return [("", read(io.StringIO(text), format="vasp"))]


PARSERS: dict[str, Callable[[str], list[Found]]] = {"cif": read_cif, "extxyz": _extxyz, "poscar": _poscar}


def _checked(part: Atoms | str) -> Atoms | str:
    """The atoms without calculator and constraints, or the reason why they are no crystal."""
    if isinstance(part, str):
        return part if part.startswith("partial occupancy") else f"unreadable: {part}"
    try:
        atoms = Atoms(part.numbers, part.positions, cell=part.cell, pbc=part.pbc)
        _refuse_impossible(atoms)
    except CifError as error:
        return f"unreadable: {error}"
    return atoms


def _refuse_impossible(atoms: Atoms) -> None:
    """Raises CifError for what no crystal is."""
    if len(atoms) == 0:
        raise CifError("no atoms")
    if len(atoms) > MAX_ATOMS:
        raise CifError(f"{len(atoms)} atoms, more than {MAX_ATOMS}: give a smaller cell")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise CifError("numbers that are not finite")
    if abs(atoms.positions).max() > 1e5:
        raise CifError(f"a coordinate of {abs(atoms.positions).max():g} Å: no atom is there")
    if atoms.numbers.min() < 1:
        raise CifError("an atom of no element (X)")
    if atoms.numbers.max() > HEAVIEST:
        raise CifError(f"{TOO_HEAVY}: {chemical_symbols[atoms.numbers.max()]}")
    if atoms.cell.rank < 2:
        raise CifError("no lattice: an isolated molecule or a file without a cell")
    cell = atoms.cell.complete()
    checked_cell(cell.lengths().tolist(), cell.angles().tolist())
    reduced, _ = minkowski_reduce(cell.array)  # a skewed basis of a good crystal has planes close together
    normals = np.cross(np.roll(reduced, 1, 0), np.roll(reduced, -1, 0))
    heights = abs(cell.volume) / np.linalg.norm(normals, axis=1)
    if heights.min() < 1:
        raise CifError(f"planes of the lattice {heights.min():.2g} Å apart: no crystal is so small")
    refuse_overlaps(Atoms(atoms, cell=cell))


def _same_again(held: list[Found], found: list[Found], name: PurePosixPath) -> list[Found]:
    """What a file of several holds; nothing, and said so, if all of it was read already: MatterGen writes its
    structures as a zip of CIFs and as one extended XYZ.
    """
    key = lambda part: (part.get_chemical_formula(), round(part.cell.volume, 1))
    own = Counter(key(part) for _, part in held if isinstance(part, Atoms))
    known = Counter(key(part) for _, part in found if isinstance(part, Atoms))
    if len(held) > 1 and own and own <= known:
        _say(f"not read: {file_text(name)}: its {len(held)} structures were read from another file already")
        return []
    return held
