"""Stage 2: every reason for dropping a row, the labels, the split, and the graphs that come out."""

import argparse
import json
import os
import sqlite3
from pathlib import Path

import ase.db
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from layers import disguised, known

import material_dataset
from models.crystals.layer import extract_layer
from models.crystals.matching import Fingerprint
from models.crystals.split import split_of
from models.crystals.thresholds import LAYER_VACUUM
from models.datasets.graphs import LayerGraphs, graph_atoms, labelled_layers
from models.infra.files import ROOT, write_json
from models.networks.dimenet import PeriodicDimeNetPlusPlus, load_dimenet, predict, save_dimenet
from models.networks.layers import collate
from models.stages import labelling
from models.stages.labelling import read_layers, synthesizable, write_splits

MOS2 = Path(os.environ.get("HER2D_REFERENCE_DATA", ROOT / "../shared/data")) / "c2db_asr" / "mos2.db"


def periodic(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.pbc = True
    return atoms


def bilayer() -> Atoms:
    one, two = known("1H-MoS2"), known("1H-MoS2")
    two.positions[:, 2] += 6.2
    two.cell[2, 2] = one.cell[2, 2] = 30
    return periodic(one + two)


def overlapping() -> Atoms:
    atoms = known("Janus-MoSSe")
    atoms.positions[1] += (atoms.positions[0] - atoms.positions[1]) * 0.5
    return atoms


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One row for each fate; what is kept is written last, and a duplicate before the stabler original."""
    path = tmp_path_factory.mktemp("db") / "toy.db"
    rows = [
        # the reason, structure, keys
        ("no energy", known("h-BN"), dict(hform=-1.0)),
        ("no energy", known("h-BN"), dict(ehull=0.0)),
        ("more than 12 atoms", known("graphene").repeat((4, 2, 1)), dict(hform=0.0, ehull=0.0)),
        ("ehull above 0.25 eV/atom", known("1T-MoS2"), dict(hform=-0.6, ehull=0.26)),
        ("not one 2D component", bilayer(), dict(hform=-1.0, ehull=0.0)),
        ("not one 2D component", bulk("NaCl", "rocksalt", a=5.64), dict(hform=-1.0, ehull=0.0)),
        ("not one 2D component", periodic(molecule("H2O", vacuum=6)), dict(hform=-1.0, ehull=0.0)),
        ("overlapping atoms", overlapping(), dict(hform=-1.0, ehull=0.0)),
        ("thicker than 12.0 Å", fcc111("Pt", (1, 1, 7), vacuum=8), dict(hform=0.0, ehull=0.0)),
        ("duplicate", disguised(known("1H-MoS2"), 1), dict(hform=-0.9, ehull=0.03, uid="worse MoS2")),
        ("duplicate", known("1H-MoS2").repeat((2, 1, 1)), dict(hform=-0.91, ehull=0.02, uid="doubled MoS2")),
        (None, known("1H-MoS2"), dict(hform=-0.92, ehull=0.0, uid="MoS2", icsd_id=38401, gap=1.6)),
        (None, known("1T-MoS2"), dict(hform=-0.65, ehull=0.25, uid="1T", crystal_type="AB2")),
        (None, disguised(known("Ti2CO2"), 3), dict(hform=-2.0, ehull=0.01, uid="mxene")),
        (None, known("graphene"), dict(hform=0.0, ehull=0.0, uid="graphene", doi="10.1126/science.1102896")),
        (
            None,
            known("phosphorene"),
            dict(hform=0.03, ehull=0.03, uid="phosphorene", dynamic_stability_phonons="high"),
        ),
    ]
    with ase.db.connect(path) as connection:
        for _, atoms, keys in rows:
            connection.write(atoms, **keys)
    return path, [reason for reason, _, _ in rows]


def test_cleaning_counts_every_reason(database):
    path, reasons = database
    rows, dropped = read_layers(path, max_atoms=12, max_e_hull=0.25)
    wanted = {reason: reasons.count(reason) for reason in reasons if reason}
    assert dict(dropped) == wanted
    assert {uid for uid, _, _ in rows} == {"MoS2", "1T", "mxene", "graphene", "phosphorene"}
    assert len(rows) + sum(dropped.values()) == len(reasons)


def test_kept_rows_are_layers_in_the_convention_with_their_labels(database):
    rows, _ = read_layers(database[0], max_atoms=12, max_e_hull=0.25)
    labels = {uid: label for uid, _, label in rows}
    assert {uid: label["synthesizable"] for uid, label in labels.items()} == pytest.approx(
        {"MoS2": 1, "1T": 0, "mxene": np.nan, "graphene": 1, "phosphorene": 0}, nan_ok=True
    )
    assert labels["MoS2"]["e_hull"] == 0.0 and labels["MoS2"]["e_form"] == -0.92
    for uid, atoms, _ in rows:
        assert atoms.pbc.tolist() == [True, True, False]
        assert atoms.cell[2, 2] == pytest.approx(np.ptp(atoms.positions[:, 2]) + LAYER_VACUUM), uid
    atoms = {uid: atoms for uid, atoms, _ in rows}
    assert Fingerprint(atoms["mxene"]).same(Fingerprint(known("Ti2CO2")))


def test_synthesizable_is_one_zero_or_unknown():
    class Row(dict):
        pass

    assert (
        synthesizable(Row(icsd_id=1))
        == synthesizable(Row(cod_id=7, gap=0.0))
        == synthesizable(Row(doi="10.1/x"))
        == 1.0
    )
    assert synthesizable(Row(gap=0.0)) == synthesizable(Row(dynamic_stability_stiffness="low")) == 0.0
    assert synthesizable(Row(icsd_id=None, doi="", gap=1.0)) == 0.0  # empty is not known
    assert np.isnan(synthesizable(Row(hform=-1.0, ehull=0.0, uid="x")))


def test_a_missing_database_and_an_unreadable_row_are_said(tmp_path, database, monkeypatch):
    with pytest.raises(FileNotFoundError, match="--db"):
        read_layers(tmp_path / "none.db", 12, 0.25)

    def broken(atoms):
        if "Ti" in atoms.symbols:
            raise RuntimeError("boom")
        return extract_layer(atoms)

    monkeypatch.setattr(labelling, "extract_layer", broken)
    rows, dropped = read_layers(database[0], 12, 0.25)
    assert len(rows) == 4 and dropped["unreadable (RuntimeError)"] == 1


@pytest.mark.skipif(not MOS2.is_file(), reason=f"{MOS2} is missing: set HER2D_REFERENCE_DATA")
def test_c2dbs_own_mos2():
    """2H (on the hull) and 1T (0.277 eV/atom above it), both known; with a lower limit only 2H."""
    rows, dropped = read_layers(MOS2, 20, 0.3)
    assert [label["e_hull"] for _, _, label in rows] == pytest.approx([0.0, 0.277], abs=1e-3)
    assert [label["synthesizable"] for _, _, label in rows] == [1, 1] and not dropped
    assert [Fingerprint(atoms).group for _, atoms, _ in rows] == ["p-6m2", "p-3m1"]
    rows, dropped = read_layers(MOS2, 20, 0.2)
    assert len(rows) == 1 and dropped == {"ehull above 0.2 eV/atom": 1}


def many_layers():
    """MX2 of many metals, so that each split holds some."""
    layer = known("1H-MoS2")
    rows = []
    for metal in "Ti V Cr Zr Nb Mo Hf Ta W Re Fe Co Ni Pd Pt Sn Mn Sc Y Cd Zn Mg Ca Ge Pb".split():
        for anion in ("S", "Se"):
            atoms = layer.copy()
            atoms.symbols = [metal if s == "Mo" else anion for s in layer.symbols]
            rows.append(
                (f"{metal}{anion}2", atoms, {"e_hull": 0.1, "e_form": -0.5, "synthesizable": float("nan")})
            )
    return rows


def test_splits_are_those_of_the_one_function(tmp_path):
    rows = many_layers()
    counts = write_splits(rows, {"TiS2": {"delta_g_h": -0.25}, "VS2": {"error": "x"}}, tmp_path, "mine")
    assert sum(counts.values()) == len(rows) and min(counts.values()) > 0
    seen = []
    for name, count in counts.items():
        graphs = LayerGraphs(tmp_path, name)
        assert len(graphs) == count
        for graph in graphs:
            assert split_of(graph.uid) == name
            assert split_of(graph_atoms(graph).get_chemical_formula()) == name
            seen.append(graph.uid)
            assert graph.delta_g_h.isnan() == (graph.uid != "TiS2") and graph.source == "mine"
    assert sorted(seen) == sorted(uid for uid, _, _ in rows)


@pytest.fixture(scope="module")
def written(database, tmp_path_factory):
    """material_dataset.py on the toy database with a DimeNet++ of random weights."""
    out = tmp_path_factory.mktemp("out")
    torch.manual_seed(1)
    model = PeriodicDimeNetPlusPlus(hidden_channels=8, out_emb_channels=8, int_emb_size=4, target_mean=-0.4)
    for block in model.output_blocks:
        torch.nn.init.normal_(block.lin.weight, std=0.5)
    save_dimenet(out / "dimenet.pt", model)
    files = f"--db {database[0]} --dimenet {out}/dimenet.pt --out {out} --device cpu"
    material_dataset.main([*files.split(), *"--max-atoms 12 --max-e-hull 0.25".split()])
    return out


def all_graphs(root: Path) -> dict:
    splits = [
        path.stem for path in (root / "processed").glob("*.pt") if path.stem in ("train", "val", "test")
    ]
    return {graph.uid: graph for name in splits for graph in LayerGraphs(root, name)}


def test_written_graphs_have_the_documented_fields(written):
    graphs = all_graphs(written)
    assert set(graphs) == {"MoS2", "1T", "mxene", "graphene", "phosphorene"}
    for uid, graph in graphs.items():
        n = graph.num_nodes
        assert graph.atomic_numbers.shape == (n,) and graph.atomic_numbers.dtype == torch.int64
        assert graph.pos.shape == (n, 3) and graph.cell.shape == (1, 3, 3)
        for name in ("delta_g_h", "delta_g_h_std", "e_hull", "e_form", "synthesizable"):
            assert graph[name].shape == (1,), name
        assert graph.delta_g_h.isfinite() and isinstance(graph.uid, str)
        assert Fingerprint(graph_atoms(graph)).formula == Fingerprint(known_of(uid)).formula
    values = {uid: graph.synthesizable.item() for uid, graph in graphs.items()}
    assert values == pytest.approx(
        {"MoS2": 1, "1T": 0, "mxene": np.nan, "graphene": 1, "phosphorene": 0}, nan_ok=True
    )
    layers, labels = collate(list(graphs.values()))
    assert labels.stacked().shape == (5, 4) and layers.mask.sum(1).tolist() == [
        graph.num_nodes for graph in graphs.values()
    ]


def known_of(uid: str) -> Atoms:
    return known({"MoS2": "1H-MoS2", "1T": "1T-MoS2", "mxene": "Ti2CO2"}.get(uid, uid))


def test_delta_g_is_the_least_prediction_over_sites_plus_the_correction(written):
    """Every site of a layer predicted on its own, the minimum taken, 0.27 eV added."""
    from models.crystals.sites import adsorption_sites, roomy, with_hydrogen
    from models.datasets.adsorption import adsorption_graph

    model = load_dimenet(written / "dimenet.pt")
    graphs = all_graphs(written)
    rows, _ = read_layers(written_db(written), 12, 0.25)
    for uid, atoms, _ in rows:
        slabs = [roomy(with_hydrogen(atoms, site)) for site in adsorption_sites(atoms)]
        energies = [predict(model, [adsorption_graph(slab, slab.get_tags(), 5.0)])[0] for slab in slabs]
        assert np.ptp(energies) > 1e-4  # the sites are told apart
        assert graphs[uid].delta_g_h.item() == pytest.approx(min(energies) + 0.27, abs=1e-4), uid


def written_db(written: Path) -> Path:
    return Path(json.loads((written / "config.json").read_text())["db"])


def test_report_counts(written, database):
    report = json.loads((written / "report.json").read_text())
    assert report["kept"] == report["labelled"] == sum(report["splits"].values()) == 5
    assert report["kept"] + sum(report["dropped"].values()) == len(database[1])


def test_json_keeps_sodium_nitride(tmp_path):
    """NaN the number becomes null; NaN the formula stays."""
    write_json(
        tmp_path / "x.json", {"formula": "NaN", "Na3N": float("nan"), "list": [1.0, float("nan"), "NaNbO3"]}
    )
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "formula": "NaN",
        "Na3N": None,
        "list": [1.0, None, "NaNbO3"],
    }


# ---------------------------------------------------------------- bad rows, broken models, checks at the end


def mx2_rows(path: Path, rows: list[dict]) -> None:
    """A database of one MX2 layer a row."""
    with ase.db.connect(path) as connection:
        for keys in rows:
            atoms = known("1H-MoS2")
            metal = keys.pop("metal")
            atoms.symbols = [metal if symbol == "Mo" else symbol for symbol in atoms.symbols]
            connection.write(atoms, **keys)


def test_bad_rows_cost_themselves_alone(tmp_path):
    """Text, NaN and infinity where an energy belongs, a blob of the wrong length, broken key-value pairs."""
    path = tmp_path / "bad.db"
    metals = ("Mo", "W", "Nb", "Ta", "Ti", "Zr", "Hf")
    mx2_rows(path, [{"metal": m, "ehull": 0.1 + 0.01 * k, "hform": -0.5} for k, m in enumerate(metals)])
    with sqlite3.connect(path) as tables:
        values = {2: '"low"', 3: "NaN", 4: "Infinity"}
        for row, value in values.items():
            text = f'{{"ehull": {value}, "hform": -0.5}}'
            tables.execute("UPDATE systems SET key_value_pairs = ? WHERE id = ?", (text, row))
        tables.execute("UPDATE systems SET positions = ? WHERE id = 5", (b"short",))
        tables.execute("UPDATE systems SET key_value_pairs = ? WHERE id = 6", ("{not json",))
    rows, dropped = read_layers(path, 12, 0.3)
    assert {atoms.get_chemical_formula() for _, atoms, _ in rows} == {"MoS2", "HfS2"}
    assert dropped["no energy"] == 3 and sum(dropped.values()) == 5
    assert sum(count for reason, count in dropped.items() if "unreadable" in reason) == 2


def test_layers_that_share_a_uid_keep_their_own_labels(tmp_path, capsys):
    mx2_rows(
        tmp_path / "x.db", [{"metal": m, "uid": "same", "ehull": 0.1, "hform": -0.5} for m in ("Mo", "W")]
    )
    rows, _ = read_layers(tmp_path / "x.db", 12, 0.3)
    assert len({uid for uid, _, _ in rows}) == len(rows) == 2
    assert "1 rows share their uid" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_what_is_no_database_is_one_line(tmp_path, content):
    (tmp_path / "x.db").write_bytes(content)
    with pytest.raises(ValueError, match="x.db is no ASE database"):
        read_layers(tmp_path / "x.db", 12, 0.3)


def run_stage(*flags: object) -> None:
    material_dataset.main([str(flag) for flag in (*flags, "--device", "cpu")])


def test_a_broken_dimenet_is_said_before_any_work(tmp_path, database, monkeypatch):
    monkeypatch.setattr(labelling, "read_layers", lambda *args: pytest.fail("the work began"))
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04")
    for name, said in (("broken.pt", "broken.pt is cut short"), ("absent.pt", "absent.pt is missing")):
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            run_stage("--db", database[0], "--dimenet", tmp_path / name, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags",
    ["--max-atoms 0", "--max-e-hull nan", "--limit -1", "--correction inf", "--check -1", "--batch-size 0"]
    + ["--jobs 0"],
)
def test_bad_flags_are_refused_by_name(flags, capsys):
    with pytest.raises(SystemExit):
        run_stage(*flags.split())
    assert f"argument {flags.split()[0]}" in capsys.readouterr().err


@pytest.fixture
def checked(monkeypatch, tmp_path):
    """check_labels on 50 layers whose DimeNet++ label is 0.1 eV below what the potential is told to say."""

    def check(potential: dict | None, rows=None, count=100) -> dict:
        rows = many_layers() if rows is None else rows
        delta_g = {uid: {"delta_g_h": 0.01 * k} for k, (uid, _, _) in enumerate(rows)}
        said = potential if potential is not None else {}
        monkeypatch.setattr(
            labelling,
            "labels",
            lambda chosen, args, labeller: {
                uid: said.get(uid, {"delta_g_h": delta_g[uid]["delta_g_h"] + 0.1}) for uid, _, _ in chosen
            },
        )
        args = argparse.Namespace(seed=0, check=count, potential="sevennet", out=tmp_path)
        return labelling.check_labels(rows, delta_g, args)

    return check


def test_check_measures_the_labels_on_the_test_split(checked, tmp_path):
    test = [uid for uid, _, _ in many_layers() if split_of(uid) == "test"]
    found = checked(None)
    assert found["layers"] == found["H adsorbs"] == len(test) > 2
    assert found["mae_eV"] == pytest.approx(0.1) and found["bias_eV"] == pytest.approx(-0.1)
    assert (tmp_path / "label_check.png").exists()
    one_lost = checked({test[0]: {"delta_g_h": None, "flags": {}}, test[1]: {"error": "boom"}})
    assert one_lost["layers"] == len(test) and one_lost["H adsorbs"] == len(test) - 2
    assert checked(None, count=2)["layers"] == 2


def test_check_of_nothing_says_so(checked, capsys):
    """No layer adsorbs, or the test split is empty: hours of labelling end in a report all the same."""
    test = [uid for uid, _, _ in many_layers() if split_of(uid) == "test"]
    assert checked({uid: {"delta_g_h": None} for uid in test}) == {"layers": len(test), "H adsorbs": 0}
    rows = [row for row in many_layers() if split_of(row[0]) != "test"]
    assert checked(None, rows) == {"layers": 0, "H adsorbs": 0}
    assert capsys.readouterr().out.count("nothing to compare") == 2


def test_a_split_of_one_layer_is_read(tmp_path):
    """torch_geometric keeps no slices of a single graph."""
    (row,) = [row for row in many_layers() if row[0] == "MoS2"]
    counts = write_splits([row], {}, tmp_path, "one")
    (split,) = (name for name, count in counts.items() if count)
    (graph,) = labelled_layers([tmp_path], split)
    assert graph.uid == "MoS2" and graph_atoms(graph).get_chemical_formula() == "MoS2"


def test_graphs_that_cannot_be_trained_on_are_left_out_and_named(tmp_path, capsys):
    """NaN in a position, an infinite label, a cell without volume; of two folders, one without this split."""
    rows = [row for row in many_layers() if split_of(row[0]) == "train"][:5]
    rows[0][1].positions[1, 0] = np.nan
    rows[1][2]["e_hull"] = np.inf
    rows[2][1].cell[1] = rows[2][1].cell[0]
    write_splits(rows, {}, tmp_path / "a", "a")
    (tmp_path / "b" / "processed").mkdir(parents=True)
    graphs = labelled_layers([tmp_path / "a", tmp_path / "b"], "train")
    assert [graph.uid for graph in graphs] == [rows[3][0], rows[4][0]]
    said = capsys.readouterr().out
    for (uid, _, _), why in zip(rows, ("not finite", "infinite label", "without volume")):
        assert any(uid in line and why in line for line in said.splitlines())
    assert f"{tmp_path / 'b'} has no train split" in said
    write_splits(rows[:3], {}, tmp_path / "c", "c")
    with pytest.raises(ValueError, match="none of the 3 graphs of the train split"):
        labelled_layers([tmp_path / "c"], "train")
    with pytest.raises(FileNotFoundError, match="train.pt is missing"):
        labelled_layers([tmp_path / "b"], "train")
