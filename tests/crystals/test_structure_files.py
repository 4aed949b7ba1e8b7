"""Structures as people write them are read as what they mean; what is none costs one row with its reason."""

import gzip
import io
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from layers import known

from models.crystals.cif import MAX_ATOMS, read_cif
from models.crystals.layer import dimension
from models.crystals.structure_files import MAX_BYTES, read_structures
from models.infra.files import ROOT

ODD = Path(os.environ.get("HER2D_REFERENCE_DATA", ROOT.parent / "shared" / "data")) / "odd_cifs"
CELL = "_cell_length_a 3.18\n_cell_length_b 3.18\n_cell_length_c 20\n_cell_angle_gamma 120\n"
P1 = "loop_\n_symmetry_equiv_pos_as_xyz\n'x, y, z'\n"
MIRROR = "loop_\n_space_group_symop_operation_xyz\n'x,y,z'\n'x,y,-z'\n"
SUM = "_chemical_formula_sum 'Mo1 S2'\n"
COLUMNS = "loop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
MO, S_UP, S_DOWN = (
    "Mo1 0.333333 0.666667 0.5\n",
    "S1 0.666667 0.333333 0.578\n",
    "S2 0.666667 0.333333 0.422\n",
)
ATOMS = MO + S_UP + S_DOWN
MOS2 = "data_x\n" + CELL + P1 + COLUMNS + ATOMS


def swap(**changes) -> str:
    """The CIF of MoS2 with lines or words of it replaced; keys are names of the constants above."""
    text = MOS2
    for name, new in changes.items():
        old = globals()[name]
        assert old in text, name
        text = text.replace(old, new)
    return text


def with_column(name: str, *values: str) -> str:
    """The CIF of MoS2 with one more column of its sites."""
    text = swap(COLUMNS=f"{COLUMNS}_atom_site_{name}\n")
    for line, value in zip((MO, S_UP, S_DOWN), values):
        text = text.replace(line, f"{line.strip()} {value}\n")
    return text


# What means 1H-MoS2, whatever it looks like
MEANT = {
    "plain": MOS2,
    "byte-order mark": "\ufeff" + MOS2,
    "windows": MOS2.replace("\n", "\r\n"),
    "old mac": MOS2.replace("\n", "\r"),
    "upper-case tags": MOS2.replace("_atom_site_", "_ATOM_SITE_").replace("_cell_", "_Cell_"),
    "comment first": "# by a program\n\n" + MOS2,
    "occupancy .": with_column("occupancy", ".", ".", "1"),
    "occupancy ?": with_column("occupancy", "?", "1.0", "?"),
    "occupancy 1.000(3)": with_column("occupancy", "1.000(3)", "1.", "0.9995"),
    "fractions": swap(MO="Mo1 1/3 2/3 1/2\n", S_UP="S1 2/3 1/3 0.578(2)\n"),
    "uncertain cell": MOS2.replace("3.18\n", "3.180(2)\n").replace(" 20\n", " 20.00(1)\n"),
    "charges": with_column("type_symbol", "Mo4+", "S2-", "S2-"),
    "upper-case type": with_column("type_symbol", "MO", "S", "S"),
    "lower-case type": with_column("type_symbol", "mo", "s", "s"),
    "type ?": with_column("type_symbol", "?", "S", "S"),
    "upper-case labels": swap(MO=MO.replace("Mo1", "MO1")),
    "labels with letters": swap(MO=MO.replace("Mo1", "MoA"), S_UP=S_UP.replace("S1", "Sb1")) + SUM,
    "no symmetry": swap(P1=""),
    "ops only": swap(P1=MIRROR, S_DOWN=""),
    "ops with numbers": swap(P1=MIRROR.replace("loop_", "loop_\n_n").replace("'x", "1 'x"), S_DOWN=""),
    "numbers in the ops": swap(P1=MIRROR.replace("'x", "'1 x"), S_DOWN=""),
    "no identity": swap(P1="_space_group_symop_operation_xyz 'x,y,-z'\n", S_DOWN=""),
    "name lies, ops do not": swap(P1="_symmetry_space_group_name_H-M 'P 1'\n" + MIRROR, S_DOWN=""),
    "hall": swap(P1="_space_group_name_Hall 'P -6 2'\n", S_DOWN=""),
    "name": swap(P1="_symmetry_space_group_name_H-M 'P -6 m 2'\n", S_DOWN=""),
    "layer group": swap(P1="_symmetry_space_group_name_H-M 'p-6m2'\n", S_DOWN=""),
    "number": swap(P1="_space_group_IT_number '187'\n", S_DOWN=""),
    "name ?": swap(P1="_symmetry_space_group_name_H-M ?\n_symmetry_Int_Tables_number 187\n", S_DOWN=""),
    "rounded to 3": swap(P1="_space_group_IT_number 187\n", S_DOWN="", MO="Mo1 0.333 0.667 0.5\n",
                         S_UP="S1 0.667 0.333 0.578\n"),
    "all atoms and a group": swap(P1="_space_group_IT_number 187\n"),
    "dots in tags": MOS2.replace("_atom_site_", "_atom_site.").replace("_cell_length_", "_cell.length_"),
    "formula of two cells": MOS2 + "_chemical_formula_sum 'Mo2 S4'\n",
    "formula in one word": MOS2 + "_chemical_formula_sum MoS2\n",
    "formula upper case": MOS2 + "_chemical_formula_sum 'MO S2'\n",
    "formula ?": MOS2 + "_chemical_formula_sum ?\n",
    "a dummy": with_column("calc_flag", "d", "d", "d") + "X1 0 0 0 dum\n",
    "another block": "data_global\n_publ_author_name 'A'\n" + MOS2,
    "Cartesian": MOS2.replace("_fract_", "_Cartn_").replace(MO, "Mo1 0 1.836 10\n").replace(
        S_UP, "S1 1.59 0.918 11.56\n").replace(S_DOWN, "S2 1.59 0.918 8.44\n"),
}  # fmt: skip

# What is no crystal, and a word of the reason
REFUSED = {
    "empty": ("", "no atom sites"),
    "text": ("this is no CIF", "line 1"),
    "html": ("<!DOCTYPE html><html></html>", "no readable CIF"),
    "cut short": (MOS2[:-12], "Wrong number of values"),
    "unterminated": (MOS2.replace("'x, y, z'", "'x, y, z"), "unterminated"),
    "no cell": (swap(CELL=""), "no cell length a"),
    "cell nan": (MOS2.replace("length_c 20", "length_c nan"), "not finite"),
    "cell inf": (MOS2.replace("length_c 20", "length_c inf"), "not finite"),
    "cell 1e300": (MOS2.replace("length_c 20", "length_c 1e300"), "no crystal has it"),
    "cell 1e400": (MOS2.replace("length_c 20", "length_c 1e400"), "not finite"),
    "cell text": (MOS2.replace("length_c 20", "length_c twenty"), "no number"),
    "cell negative": (MOS2.replace("length_a 3.18", "length_a -3.18"), "no crystal has it"),
    "cell zero": (MOS2.replace("length_a 3.18", "length_a 0"), "no crystal has it"),
    "cell 0.01": (MOS2.replace("length_a 3.18", "length_a 0.01"), "no crystal has it"),
    "cell 0.6": (MOS2.replace("length_a 3.18", "length_a 0.6"), "so small"),
    "angle 0": (MOS2.replace("gamma 120", "gamma 0"), "close no cell"),
    "angle 180": (MOS2.replace("gamma 120", "gamma 180"), "close no cell"),
    "angles of no cell": (MOS2.replace("gamma 120", "gamma 60\n_cell_angle_alpha 150"), "close no cell"),
    "angle nan": (MOS2.replace("gamma 120", "gamma nan"), "not finite"),
    "coordinate nan": (swap(MO="Mo1 nan 0.666667 0.5\n"), "not finite"),
    "coordinate ?": (swap(MO="Mo1 ? 0.666667 0.5\n"), "no number"),
    "coordinate 1e300": (swap(MO="Mo1 1e300 0.666667 0.5\n"), "no atom is there"),
    "coordinate 1/0": (swap(MO="Mo1 1/0 0.666667 0.5\n"), "no number"),
    "no coordinates": ("data_x\n" + CELL + "loop_\n_atom_site_label\nMo1\nS1\n", "no coordinates"),
    "no atoms": ("data_x\n" + CELL, "no atom sites"),
    "element of no kind": (swap(MO=MO.replace("Mo1", "Q1")), "names no element"),
    "no element at all": (swap(MO=MO.replace("Mo1", "1")), "names no element"),
    "beyond plutonium": (MOS2.replace("Mo", "Cm"), "beyond plutonium (atomic number above 94): Cm"),
    "partial": (with_column("occupancy", "0.9", "1", "1"), "partial occupancy"),
    "two species": (with_column("occupancy", "0.5", "1", "1") + "W1 0.333333 0.666667 0.5 0.5\n", "partial"),
    "occupancy 0": (with_column("occupancy", "0", "1", "1"), "partial occupancy"),
    "occupancy 2": (with_column("occupancy", "2", "1", "1"), "one atom at most"),
    "occupancy negative": (with_column("occupancy", "-1", "1", "1"), "partial occupancy"),
    "occupancy nan": (with_column("occupancy", "nan", "1", "1"), "not finite"),
    "occupancy text": (with_column("occupancy", "full", "1", "1"), "no number"),
    "one place, two atoms": (MOS2 + "W1 0.333333 0.666667 0.5\n", "two atoms, Mo1 and W1"),
    "an atom twice": (MOS2 + "Mo2 0.34 0.666667 0.5\n", "two atoms, Mo1 and Mo2"),
    "across the border": (MOS2 + "W1 0 0 0.001\nW2 0 0 0.999\n", "two atoms, W1 and W2"),
    "missing atoms": (swap(S_DOWN="") + SUM, "the atoms are MoS, but the file says Mo1S2"),
    "another element": (MOS2 + "_chemical_formula_sum 'W S2'\n", "but the file says W1S2"),
    "missing hydrogen": (MOS2 + "_chemical_formula_sum 'Mo S2 H'\n", "but the file says"),
    "unknown group": (swap(P1="_symmetry_space_group_name_H-M 'Q 7 7 7'\n"), "unknown space group Q 7 7 7"),
    "group 999": (swap(P1="_space_group_IT_number 999\n"), "unknown space group 999"),
    "no Hall symbol": (swap(P1="_space_group_name_Hall 'Z 9 9'\n"), "no such Hall symbol"),
    "no operation": (swap(P1="_space_group_symop_operation_xyz 'x,y'\n"), "no symmetry operation"),
    "an operation that flattens": (swap(P1="_space_group_symop_operation_xyz 'x,x,z'\n"), "changes volumes"),
    "too many operations": (swap(P1=P1 + "x,y,z\n" * 300), "more than any"),
    "too many sites": ("data_x\n" + CELL + COLUMNS + "".join(f"C{k} 0 0 {k / 999}\n" for k in range(999)),
                       f"more than {MAX_ATOMS}"),
    "too many images": (swap(P1="_space_group_IT_number 225\n").replace("120", "90").replace(ATOMS, "".join(
        f"C{k} {0.01 * k} {0.013 * k + 0.003} {0.0171 * k + 0.001}\n" for k in range(1, 40))), "more than"),
    "a tag twice": (MOS2 + "_cell_length_a 3\n", "duplicate tag"),
    "binary": ("\x00\x01\x02" * 100, "no "),
}  # fmt: skip


def folder(tmp_path: Path, **files) -> Path:
    """A folder of files, `__` in a name for the dot."""
    for name, content in files.items():
        path = tmp_path / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def only(tmp_path: Path, text: str) -> Atoms | str:
    found = read_structures(folder(tmp_path, x__cif=text))
    assert [name for name, _ in found] == ["x"]
    return found[0][1]


@pytest.mark.parametrize("case", MEANT)
def test_a_file_that_means_a_monolayer_is_read_as_one(tmp_path, case):
    atoms = only(tmp_path, MEANT[case])
    assert not isinstance(atoms, str), atoms
    assert sorted(atoms.symbols) == ["Mo", "S", "S"] and dimension(atoms) == (1, 2)
    distances = atoms.get_all_distances(mic=True)[atoms.symbols == "Mo"][0]
    assert sorted(distances)[1:] == pytest.approx([2.41, 2.41], abs=0.02)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_crystal_says_why_in_a_line_and_at_once(tmp_path, case):
    text, reason = REFUSED[case]
    begin = time.process_time()
    found = only(tmp_path, text)
    assert isinstance(found, str) and reason in found and "\n" not in found and "Error" not in found
    assert time.process_time() - begin < 2


EXPECTED = {
    "Bi2Te3": "Bi6Te9", "CoCl2": "Cl2Co", "FeSe": "Fe2Se2", "HM": "MoS2", "MoSe2": "MoSe2", "NiOH2": "H2NiO2",
    "SnS2": "S2Sn", "alloy14": "ClCoCrCuFeMnMoNiPReRuSTiV", "alloy_dominant": "partial occupancy",
    "c_S_descending": "Mo25S50", "janus": "MoSSe", "layer_plus_H2": "H2Mo4S8",
    "mixed_valence": "partial occupancy", "no_column_two_species": "two atoms, S2 and Se4",
    "nothing": "the atoms are MoS, but the file says Mo1S2", "overlap_1.1": "occupancy 1.1 of Mo1",
    "population": "partial occupancy", "split_site": "partial occupancy",
    "vacancies": "partial occupancy",
}  # fmt: skip


@pytest.mark.skipif(not ODD.is_dir(), reason=f"{ODD} is missing: set HER2D_REFERENCE_DATA")
def test_odd_cifs_are_what_their_authors_say():
    """The 59 files; those not named above are MoS2."""
    found = read_structures(ODD)
    assert len(found) == 59
    for name, structure in found:
        wanted = next((what for start, what in EXPECTED.items() if name.startswith(start)), "MoS2")
        said = structure if isinstance(structure, str) else structure.get_chemical_formula()
        assert (wanted in said) if isinstance(structure, str) else wanted == said, f"{name}: {said}"
    atoms = dict(found)
    assert dimension(atoms["Bi2Te3_hex_axes"]) == dimension(atoms["Bi2Te3_hex_axes_plain"]) == (3, 2)
    for name in ("FeSe_o1_number", "FeSe_o2_name", "FeSe_o2_number", "FeSe_o2_hall"):
        distances = atoms[name].get_all_distances(mic=True)
        assert np.sort(distances[distances > 0])[:2] == pytest.approx(
            np.sort(atoms["FeSe_P1"].get_all_distances(mic=True).ravel())[4:6], abs=1e-3
        )


def test_two_origins_that_both_fit_are_not_guessed(tmp_path):
    text = (
        MOS2.replace(P1, "_space_group_IT_number 129\n").replace("120", "90").replace(ATOMS, "C1 0 0.5 0.1\n")
    )
    found = only(tmp_path, text)
    assert isinstance(found, str) and "two origins" in found and "symmetry operations" in found


def test_every_block_is_a_structure_of_its_own(tmp_path):
    """ASE, VESTA and databases write several blocks, also under one name."""
    other = MOS2.replace("Mo1", "W1").replace("data_x", "data_WS2")
    found = dict(
        read_structures(folder(tmp_path, a__cif=MOS2 + other, b__cif=MOS2 + MOS2 + "data_z\n_x 1\n"))
    )
    assert {name: str(atoms.symbols) for name, atoms in found.items()} == {
        "a/x": "MoS2",
        "a/WS2": "WS2",
        "b/1": "MoS2",
        "b/2": "MoS2",
    }
    assert [name for name, _ in read_cif(MOS2 + other)] == ["x", "WS2"]


def test_names_of_files_are_names_and_nothing_else(tmp_path):
    """ASE splits a path at @; x.cif and x.CIF are two structures; a name may be no UTF-8."""
    folder(tmp_path, x__cif=MOS2, x__CIF=MOS2.replace("Mo1", "W1"))
    names = ["Pt@C3N4.cif", "=cmd|' C'!A0.cif", "a b.cif", "MoS₂.cif", "<script>.cif", "x.cif.gz"]
    for name in names:
        raw = MOS2.encode()
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.cif")).write_text(MOS2)
    found = read_structures(tmp_path)
    assert all(isinstance(atoms, Atoms) for _, atoms in found)
    ids = [name for name, _ in found]
    assert len(set(ids)) == len(ids) == 9
    assert {"Pt@C3N4", "a b", "MoS₂", "\\xff", "x.cif", "x.CIF", "x.cif.gz"} <= set(ids)
    assert {str(atoms.symbols) for name, atoms in found if name == "x.CIF"} == {"WS2"}


def test_other_formats_are_read(tmp_path):
    layer = known("1H-MoS2")
    for name in ("POSCAR", "POSCAR_2", "CONTCAR", "m.vasp", "m.poscar"):
        write(tmp_path / name, layer, format="vasp")
    write(tmp_path / "one.extxyz", layer)
    write(tmp_path / "three.xyz", [layer, known("h-BN"), known("graphene")], format="extxyz")
    found = dict(read_structures(tmp_path))
    assert list(found) == sorted(
        "CONTCAR POSCAR POSCAR_2 m.poscar m.vasp one three/1 three/2 three/3".split()
    )
    for name, atoms in found.items():
        assert not isinstance(atoms, str), f"{name}: {atoms}"
        assert dimension(atoms) == (1, 2)
    assert str(found["three/3"].symbols) == "C2"


def test_a_molecule_and_a_broken_frame_cost_a_row_each(tmp_path):
    write(tmp_path / "water.xyz", Atoms("H2O", [[0, 0, 0], [0, 1, 0], [1, 0, 0]]), format="xyz")
    folder(
        tmp_path,
        broken__extxyz='3\nLattice="1 2"\nMo 0 0 0\n',
        old__vasp="MoS2\n1\n3 0 0\n0 3 0\n0 0 20\n1 2\n",
    )
    folder(
        tmp_path,
        huge__vasp="x\n1\n9 0 0\n0 9 0\n0 0 9\nC\n100000000\nDirect\n0 0 0\n",
        empty__xyz="",
        many__xyz="9" * 99,
    )
    found = dict(read_structures(tmp_path))
    assert len(found) == 6 and all(
        isinstance(reason, str) and "\n" not in reason for reason in found.values()
    )
    assert "no lattice" in found["water"] and "VASP 4" in found["old"] and "more than" in found["huge"]


def zipped(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_what_a_generator_writes_is_read_once(tmp_path, capsys):
    """MatterGen: one extended XYZ, the same structures as a zip of CIFs, and trajectories."""
    layers = [known(name) for name in ("1H-MoS2", "h-BN", "graphene")]
    write(tmp_path / "generated_crystals.extxyz", layers)
    cifs = {}
    for number, layer in enumerate(layers):
        buffer = io.BytesIO()
        write(buffer, layer, format="cif")
        cifs[f"gen_{number}.cif"] = buffer.getvalue()
    zipped(tmp_path / "generated_crystals_cif.zip", cifs)
    zipped(tmp_path / "generated_trajectories.zip", {"gen_0.extxyz": b"x"})
    found = read_structures(tmp_path)
    assert [name for name, _ in found] == [f"generated_crystals/{k}" for k in (1, 2, 3)]
    said = capsys.readouterr().err
    assert "generated_crystals_cif.zip: its 3 structures were read" in said
    assert "1 files in" in said and "generated_trajectories.zip" in said
    alone = read_structures(tmp_path / "generated_crystals_cif.zip")
    assert [name for name, _ in alone] == [f"generated_crystals_cif/gen_{k}" for k in range(3)]


def test_nested_folders_are_read_where_there_is_nothing_else(tmp_path, capsys):
    for name in ("a", "a/b", "c", ".git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.cif").write_text(MOS2)
    assert [name for name, _ in read_structures(tmp_path)] == ["a/b/x", "a/x", "c/x"]
    (tmp_path / "top.cif").write_text(MOS2)
    capsys.readouterr()
    assert [name for name, _ in read_structures(tmp_path)] == ["top"]
    assert capsys.readouterr().err.count("not read: 1 structure files in") == 3


def test_formats_that_are_not_read_are_named(tmp_path, capsys):
    folder(tmp_path, a__cif=MOS2, b__xsf="", c__pdb="", d__tar__gz=b"", e__csv="", f__cif__bz2=b"")
    assert [name for name, _ in read_structures(tmp_path)] == ["a"]
    said = capsys.readouterr().err
    assert all(f"{name}: no format" in said for name in ("b.xsf", "c.pdb", "d.tar.gz", "f.cif.bz2"))
    assert "e.csv" not in said


def test_files_that_are_none_cost_a_row(tmp_path):
    folder(
        tmp_path,
        good__cif=MOS2,
        short__cif__gz=gzip.compress(MOS2.encode())[:50],
        no__cif__gz=b"x",
        no__zip=b"PK",
    )
    folder(tmp_path, big__cif=b"#" * (MAX_BYTES + 1), bomb__cif__gz=gzip.compress(b"#" * (1 << 28)))
    zipped(tmp_path / "bomb.zip", {"x.cif": b"#" * (1 << 28)})
    os.mkfifo(tmp_path / "pipe.cif")
    (tmp_path / "link.cif").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "dir.cif").mkdir()
    begin = time.process_time()
    found = dict(read_structures(tmp_path))
    assert time.process_time() - begin < 5
    good = [name for name, atoms in found.items() if isinstance(atoms, Atoms)]
    assert good == ["good"] and len(found) == 9
    assert all(reason.startswith("unreadable: ") for name, reason in found.items() if name not in good)


def test_nothing_to_read_says_what_to_do(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="--cifs"):
            read_structures(path)
