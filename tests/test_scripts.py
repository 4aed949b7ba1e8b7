"""The scripts as a user runs them, in subprocesses with tiny settings: --help, training with an interruption,
generation.
"""

import csv
import math
import os
import subprocess
import sys
from dataclasses import fields, replace

import ase.db
import ase.io
import pytest
import torch
from pymatgen.core import Structure
from torch_geometric.data import InMemoryDataset

import optimization
import structure_generator
from data.build.prototypes import PROTOTYPES
from models.crystals.templates import substitute
from models.crystals.thresholds import LAYER_VACUUM
from models.datasets.graphs import layer_graph
from models.infra.files import ROOT
from models.networks.settings import GeneratorSettings, Guide

SCRIPTS = (
    "pretrain_dimenet.py material_dataset.py optimization.py structure_generator.py test.py "
    "evaluate_external.py"
).split()
ATOMS = {p.name: p.atoms() for p in PROTOTYPES}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SMALL = "--channels 16 --vectors 4 --trunk 1 --conditional 1 --neighbours 8".split()
TRAINING = [*SMALL, *"--epochs 3 --batch-atoms 24 --warmup 0.2 --device cpu --seed 3".split()]
# Dies as a killed process does, in the middle of the second epoch: no clean-up, one step after the first was
# saved.
KILLED = """
import os, optimization
from models.stages import joint_training
saved, step, plot = [], joint_training.joint_loss, joint_training.plot_loss_curve
def joint_loss(*args, **kwargs):
    if len(saved) == 2:
        os._exit(9)
    saved.extend([True] if saved else [])
    return step(*args, **kwargs)
joint_training.plot_loss_curve = lambda *args: (plot(*args), saved.append(True))
joint_training.joint_loss = joint_loss
optimization.main()
"""


def start(*arguments):
    """A Python subprocess in the repository's environment."""
    command = [sys.executable, *(str(a) for a in arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process, code=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, f"{process.args}\n{out}\n{err}"
    return out


@pytest.mark.parametrize("pair", [SCRIPTS[:2], SCRIPTS[2:4], SCRIPTS[4:]], ids=" ".join)
def test_help_explains_every_flag_and_shows_defaults(pair):
    for script, process in [(script, start(script, "--help")) for script in pair]:
        text = finish(process)
        assert "usage:" in text and "(default: " in text, script
        for flag in ("--seed", "--device", "--out", "--resume"):
            assert flag in text, f"{script} lacks {flag}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Graphs of stage 2 of a few layers, and the same layers as an ASE database of templates."""
    root = tmp_path_factory.mktemp("data")
    (root / "processed").mkdir()
    layers = [
        ATOMS[name]
        for name in ("graphene", "MoS2-2H", "CdI2-1T", "GaSe", "SnS", "FeOCl", "MXene-M2X", "silicene")
    ]
    layers += [
        substitute(ATOMS["MoS2-2H"], {"Mo": metal, "S": other})
        for metal, other in (("W", "Se"), ("Nb", "Te"))
    ]
    graphs = [
        layer_graph(
            atoms,
            f"layer-{k}",
            e_hull=0.02 * k,
            delta_g_h=0.3 - 0.1 * k if k % 2 else math.nan,
            synthesizable=k % 3 == 0,
        )
        for k, atoms in enumerate(layers)
    ]
    InMemoryDataset.save(graphs[:8], root / "processed" / "train.pt")
    InMemoryDataset.save(graphs[8:], root / "processed" / "val.pt")
    bent = torch.load(ROOT / "data" / "perturbed.pt", weights_only=True)
    few = {name: values[:60] for name, values in bent.items() if name not in ("atomic_numbers", "pos")}
    atoms = int(few["natoms"].sum())
    torch.save(few | {name: bent[name][:atoms] for name in ("atomic_numbers", "pos")}, root / "bent.pt")
    with ase.db.connect(root / "templates.db") as db:
        for k, atoms in enumerate(layers):
            db.write(atoms, uid=f"layer-{k}", prototype=f"prototype-{k}", ehull=0.02 * k, hform=-0.5)
        db.write(layers[1], uid="too-high", ehull=9.0, hform=1.0)
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Folders of one training of three epochs without, and of one with an interruption."""
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    arguments = lambda folder: [
        "--data",
        data,
        "--off-equilibrium",
        data / "bent.pt",
        "--out",
        folder / "m.pth",
        "--figure",
        folder / "loss.png",
        *TRAINING,
    ]
    killed = start("-c", KILLED, *arguments(broken))
    optimization.main([str(a) for a in arguments(whole)])
    finish(killed, code=9)
    assert torch.load(broken / "m.last.pth", weights_only=True)["epoch"] == 1, (
        "it was to die in the second epoch"
    )
    (broken / "m.log.csv").unlink()  # killed between the checkpoint and the log
    optimization.main([*(str(a) for a in arguments(broken)), "--resume"])
    return whole, broken


def assert_identical(a, b, path=""):
    """Equal to the bit, whatever is nested in what."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_identical(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for k, (x, y) in enumerate(zip(a, b)):
            assert_identical(x, y, f"{path}/{k}")
    else:
        assert a == b or (a != a and b != b), f"{path}: {a} {b}"


def test_resumed_training_is_the_uninterrupted_one_to_the_bit(trained):
    for name in ("m.pth", "m.last.pth"):
        whole, broken = (torch.load(folder / name, weights_only=True) for folder in trained)
        for content in (whole, broken):
            content.pop("run", None)
            arguments = content.pop("args")
            assert arguments["epochs"] == 3 and arguments["seed"] == 3
        assert_identical(whole, broken, name)
    whole, broken = ((folder / "m.log.csv").read_text() for folder in trained)
    assert whole == broken
    rows = list(csv.DictReader(whole.splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    terms = ("total", "coordinates", "z", "lattice", "elements", "delta_g_h", "e_hull", "synthesizable")
    assert all(
        math.isfinite(float(row[f"{split}_{term}"]))
        for row in rows
        for split in ("train", "val")
        for term in terms
    )
    assert len({row["train_total"] for row in rows}) == 3  # it learns something
    for folder in trained:
        assert (folder / "loss.png").stat().st_size > 1000 and (folder / "m.config.json").exists()
        assert not list(folder.glob("*.tmp"))


def generation(data, out, *arguments):
    command = "--num 4 --best-of 1 --steps 12 --batch-size 3 --seed 1 --device cpu".split()
    return [
        str(a)
        for a in ("structure_generator.py", "--db", data / "templates.db", "--out", out, *command, *arguments)
    ]


@pytest.fixture
def generate_here(monkeypatch):
    """The script's main in this process: a second or two where a subprocess takes ten."""

    def generate(*arguments):
        monkeypatch.setattr(sys, "argv", generation(*arguments))
        structure_generator.main()

    return generate


def assert_readable(folder, formula=None, num=4, may_fail=False):
    """Rows of generated.csv with a CIF each, which ASE and pymatgen read."""
    every = list(csv.DictReader((folder / "generated.csv").open()))
    rows = [row for row in every if not row["failure"]]
    files = sorted(folder.glob("*.cif"))
    assert len(every) == num and rows and (may_fail or len(rows) == num)
    assert {f.stem for f in files} == {row["material_id"] for row in rows}
    for file in files:
        atoms, crystal = ase.io.read(file), Structure.from_file(file)
        assert len(atoms) == len(crystal) and 1 <= len(atoms) <= 20
        assert (
            atoms.cell.volume > 1
            and abs(
                atoms.cell[2, 2] - (atoms.positions[:, 2].max() - atoms.positions[:, 2].min()) - LAYER_VACUUM
            )
            < 0.1
        )
        assert abs(atoms.cell.angles()[:2] - 90).max() < 1e-3
        if formula:
            assert crystal.composition.reduced_formula == formula
    return rows


def test_structure_generator_from_templates_and_from_pure_noise(data, trained, tmp_path, generate_here):
    """--noise-level 0.5 and 1.0, with and without --formula, and in a layer group that is drawn."""
    model = ("--checkpoint", trained[0] / "m.pth")
    runs = {
        "template-formula": (
            "--noise-level",
            0.5,
            "--formula",
            "MoS2",
            "--gradient-scale",
            1,
            "--cfg-scale",
            1.5,
        ),
        "de-novo": ("--noise-level", 1.0),
        "template": ("--noise-level", 0.5, "--gradient-scale", 0, "--cfg-scale", 0),
        "de-novo-formula": ("--noise-level", 1.0, "--formula", "MoS2"),
        "drawn-orbits": ("--noise-level", 1.0, "--orbits", "drawn"),
    }
    names = list(runs)
    for process in [start(*generation(data, tmp_path / name, *model, *runs[name])) for name in names[:2]]:
        finish(process)
    for name in names[2:]:
        generate_here(data, tmp_path / name, *model, *runs[name])
    for name in names:
        formula, pure = "MoS2" if "--formula" in runs[name] else None, 1.0 in runs[name]
        rows = assert_readable(tmp_path / name, formula, may_fail=pure)  # this network has learned little
        assert all(
            math.isfinite(float(row["head_e_hull_eV_per_atom"])) and 0 <= float(row["head_p_synth"]) <= 1
            for row in rows
        )
    generate_here(
        data, tmp_path / "again", *model, *runs["template-formula"]
    )  # the same seed, another process
    assert_same_files(tmp_path / "again", tmp_path / "template-formula")


def test_every_flag_of_the_guide_reaches_it():
    flags = (
        "--cfg-scale 1 --gradient-scale 2 --target-delta-g 3 --max-e-hull 4 --no-synthesizable "
        "--weight-e-hull 5 --uncertainty-weight 6 --gradient-cap 7 --wanted-e-hull 8 --element-gradient 9"
    )
    args = structure_generator.build_parser().parse_args([*flags.split(), "--device", "cpu"])
    expected = Guide(
        cfg_scale=1,
        gradient_scale=2,
        delta_g_h=3,
        e_hull=4,
        synthesizable=False,
        weight_e_hull=5,
        uncertainty_weight=6,
        cap=7,
        wanted_e_hull=8,
        element_gradient=9,
    )
    assert structure_generator.settings_of(args).guide == expected
    assert structure_generator.settings_of(args, ["Mo", "S"]).guide.elements == {"Mo", "S"}


BAD_FLAGS = """--num 0|--num-atoms 0|--noise-level 0|--noise-level 1.5|--noise-level nan|--steps 0
--temperature 0|--temperature -1|--tau 0|--tau nan|--tau -1|--proposals 0|--best-of 0|--templates 0
--batch-size -1|--gradient-scale 1e6|--cfg-scale 1e6|--max-e-hull inf|--symprec 0|--elements Xx|--exclude 12
--formula hMoS2|--elements Mo --exclude Mo|--formula OgS2|--symmetry all|--jobs 0|--corrector -1|--gibbs -1
--orbits drawn|--rank potential|--orbits drawn --symmetry none --noise-level 1"""


@pytest.mark.parametrize("flags", BAD_FLAGS.replace("\n", "|").split("|"))
def test_bad_values_are_refused_before_work_starts(data, tmp_path, flags, capsys):
    """No model is read (the checkpoint is missing); the line names the value."""
    command = [
        "--db",
        str(data / "templates.db"),
        "--checkpoint",
        "absent.pth",
        "--out",
        str(tmp_path / "out"),
    ]
    with pytest.raises((SystemExit, ValueError)) as caught:
        structure_generator.main([*command, *flags.split()])
    text = f"{caught.value} {capsys.readouterr().err}"
    assert "absent.pth" not in text and flags.split()[1] in text
    assert not list(tmp_path.glob("out/*.cif"))


def test_the_flags_default_to_the_settings_of_the_generator():
    """And each of them reaches the settings."""
    parse = lambda *flags: structure_generator.settings_of(
        structure_generator.build_parser().parse_args(["--device", "cpu", *map(str, flags)])
    )
    default = GeneratorSettings()
    assert parse() == default
    for field in fields(GeneratorSettings):
        value = getattr(default, field.name)
        if isinstance(value, (int, float)):
            other = value / 2 if isinstance(value, float) and value else value + 1
            changed = parse(f"--{field.name.replace('_', '-')}", other)
            assert changed == replace(default, **{field.name: other})


def test_train_only_names_what_it_does_not_find(data, tmp_path, monkeypatch):
    flags = (
        "optimization.py",
        "--data",
        data,
        "--off-equilibrium",
        "",
        "--train-only",
        "head",
        "--out",
        tmp_path / "m.pth",
        *TRAINING,
    )
    monkeypatch.setattr(sys, "argv", [*map(str, flags)])
    with pytest.raises(ValueError, match="head: the model has .*heads, uncertainty"):
        optimization.main()


def test_an_interrupted_guided_run_continues_to_the_same_structures(data, trained, tmp_path, generate_here):
    """The second batch passes over what the first one took, also where that comes from the file."""
    flags = ("--checkpoint", trained[0] / "m.pth", "--proposals", 3, "--templates", 3, "--batch-size", 2)
    generate_here(data, tmp_path / "whole", *flags)
    generate_here(data, tmp_path / "cut", *flags)
    path = tmp_path / "cut/generated.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]) + '{"key": "half a li')
    generate_here(data, tmp_path / "cut", *flags, "--resume")
    assert_same_files(tmp_path / "whole", tmp_path / "cut")


def assert_same_files(a, b):
    names = [sorted(f.name for f in folder.glob("*.cif")) for folder in (a, b)]
    assert names[0] == names[1] and all((a / n).read_text() == (b / n).read_text() for n in names[0])


@pytest.mark.parametrize("method", ["random", "substitution"])
def test_the_nulls_make_layers_without_a_model_and_repeat_by_seed(data, tmp_path, generate_here, method):
    for out in ("a", "b"):
        generate_here(data, tmp_path / out, "--method", method)
    rows = assert_readable(tmp_path / "a")
    assert all(row["head_delta_g_h_eV"] == "" for row in rows)
    assert_same_files(tmp_path / "a", tmp_path / "b")
    generate_here(data, tmp_path / "c", "--method", method, "--seed", 2)
    assert {f.name for f in (tmp_path / "a").glob("*.cif")} != {
        f.name for f in (tmp_path / "c").glob("*.cif")
    }


def test_the_best_by_the_heads_is_written_and_all_are_listed(data, trained, tmp_path, generate_here):
    """With the mission's own L_target."""
    guide = (
        "--gradient-scale 0 --cfg-scale 0 --proposals 1 --target-delta-g 0.3 --uncertainty-weight 0 "
        "--weight-e-hull 1 --max-e-hull 0"
    )
    generate_here(
        data,
        tmp_path,
        "--checkpoint",
        trained[0] / "m.pth",
        *guide.split(),
        *"--elements any --num 1 --best-of 4".split(),
    )
    rows = list(csv.DictReader((tmp_path / "generated.csv").open()))
    loss = lambda row: (
        abs(float(row["head_delta_g_h_eV"]) - 0.3) + max(0, float(row["head_e_hull_eV_per_atom"]))
    )
    assert len(rows) == 4 and [row["kept"] for row in rows].count("True") == 1
    (written,) = tmp_path.glob("*.cif")
    assert (
        written.stem
        == min(rows, key=loss)["material_id"]
        == next(row["material_id"] for row in rows if row["kept"] == "True")
    )


def test_refine_relaxes_into_a_folder_of_its_own(data, trained, tmp_path, generate_here, capsys):
    """What fails is named, the heads judge before and after, and the unrefined CIFs stay as they were."""
    flags = ("--checkpoint", trained[0] / "m.pth", "--gradient-scale", 0, "--cfg-scale", 0, "--proposals", 1)
    generate_here(data, tmp_path / "plain", *flags)
    generate_here(
        data, tmp_path / "refined", *flags, "--refine", "--potential", "layers:anything", "--jobs", 1
    )
    assert_same_files(tmp_path / "plain", tmp_path / "refined")
    refined = sorted(path.stem for path in (tmp_path / "refined/refined").glob("*.cif"))
    text = capsys.readouterr().out
    assert (
        refined
        and f"{len(refined)} of 4 structures refined" in text
        and text.count("not refined: gen_") == 4 - len(refined)
    )
    rows = {
        row["material_id"]: row for row in csv.DictReader((tmp_path / "refined/refined/refined.csv").open())
    }
    drawn = {row["material_id"]: row for row in csv.DictReader((tmp_path / "refined/generated.csv").open())}
    assert sorted(rows) == refined
    for name, row in rows.items():
        assert float(row["head_e_hull_eV_per_atom"]) == pytest.approx(
            float(drawn[name]["head_e_hull_eV_per_atom"]), abs=2e-3
        )
        assert float(row["rmsd_relaxed_A"]) >= 0 and math.isfinite(float(row["head_delta_g_h_eV_refined"]))


def test_rank_by_the_potential_keeps_the_lowest_energies(data, trained, tmp_path, generate_here, capsys):
    """Of six guesses at WSe2 the two lowest; energies stand in the table, what they cost in the summary."""
    flags = "--formula WSe2 --num 2 --best-of 3 --rank potential --potential layers:anything --jobs 1"
    generate_here(data, tmp_path, "--checkpoint", trained[0] / "m.pth", *flags.split())
    rows = list(csv.DictReader((tmp_path / "generated.csv").open()))
    kept = [row for row in rows if row["kept"] == "True"]
    assert len(rows) == 6 and 1 <= len(kept) <= 2
    energies = [float(row["relaxed_energy_eV_per_atom"] or "inf") for row in rows]
    assert min(energies) == min(float(row["relaxed_energy_eV_per_atom"]) for row in kept)
    assert sorted(f.stem for f in tmp_path.glob("*.cif")) == sorted(row["material_id"] for row in kept)
    assert "ranked by" in capsys.readouterr().out


def test_errors_name_what_is_wrong(data, tmp_path, generate_here):
    with pytest.raises(FileNotFoundError, match="absent.db"):
        generate_here(data, tmp_path, "--db", tmp_path / "absent.db", "--method", "random")
    with pytest.raises(ValueError, match="Mo7S5"):
        generate_here(data, tmp_path, "--formula", "Mo7S5", "--method", "random")
    torch.save({"something": 1}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth is no checkpoint"):
        generate_here(data, tmp_path, "--checkpoint", tmp_path / "other.pth")
