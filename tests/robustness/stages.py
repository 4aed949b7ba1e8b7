"""The five stages and the builder at their smallest, run in forked children that may be killed at any
moment.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ase.db
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.io import write
from layers import known
from torch_geometric.data import Data, InMemoryDataset

import data.build.__main__ as builder
import evaluate_external
import geo_utils
import material_dataset
import optimization
import pretrain_dimenet
import structure_generator
from data.build import pack
from models.crystals.templates import substitute
from models.datasets.graphs import layer_graph
from models.datasets.lmdb_data import write_lmdb
from models.evaluation import generated
from models.infra.files import save_checkpoint
from models.infra.runs import run_script
from models.networks import proposals
from models.networks.diffusion import Diffusion
from models.networks.dimenet import PeriodicDimeNetPlusPlus, save_dimenet
from models.networks.egnn import DenoisingEGNN
from models.networks.synthesis import Forest, SynthesisModel, save_synthesis
from models.stages import joint_training, labelling, pretraining

# What the stages import after their flags, here already: a forked child begins with its work
IMPORTED = (geo_utils, generated, joint_training, labelling, pack, pretraining, proposals)
NETWORK = "--channels 16 --vectors 4 --trunk 1 --conditional 1 --neighbours 8 --device cpu".split()
SURROGATE = "--hidden-channels 8 --int-emb-size 8 --out-emb-channels 8 --cutoff 3.5 --device cpu".split()
EMT_NAME = "ase.calculators.emt:EMT"
METALS = "Cu Ag Au Ni Pd Pt Al".split()  # that EMT knows


@dataclass(frozen=True)
class Stage:
    """A script's main, its flags but --out, the output as a file or a folder below the run's folder, and the
    flags of a second start.
    """

    main: Callable
    flags: list
    out: str
    again: tuple[str, ...] = ("--resume",)


STOPPING = {signal.SIGINT, signal.SIGTERM}


def child(stage: Stage, folder: Path, *more: str) -> int:
    """Starts a stage in a forked process, a group of its own, and returns its id.

    Whatever happens in the child ends it here: an error or a signal before the stage begins would let it go
    on as a second pytest, for whose end the first one waits.
    """
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # they wait until the stage handles them
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        return process
    status = 1
    try:
        os.setpgid(0, 0)
        log = os.open(folder.with_name("log.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        sys.argv = ["stage", *map(str, stage.flags), "--out", str(folder / stage.out), *more]
        run_script(lambda: (signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING), stage.main()))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(stage: Stage, folder: Path, *more: str) -> float:
    """Runs a stage to its end; seconds that it took."""
    begin = time.monotonic()
    _, status = os.waitpid(child(stage, folder, *more), 0)
    log = folder.with_name("log.txt").read_text(errors="replace")
    assert os.waitstatus_to_exitcode(status) == 0, log[-3000:]
    return time.monotonic() - begin


def kill_after(seconds: float, stage: Stage, folder: Path, number: int, *more: str) -> int:
    """Starts a stage and sends a signal to it alone after a while; its exit status."""
    process = child(stage, folder, *more)
    time.sleep(seconds)
    try:
        os.kill(process, number)
    except ProcessLookupError:
        pass
    begin = time.monotonic()
    _, status = os.waitpid(process, 0)
    assert time.monotonic() - begin < 5 or number == signal.SIGKILL, "it took more than 5 s to stop"
    return os.waitstatus_to_exitcode(status)


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a folder by name, without what holds the flags or the moment."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("config.json", ".lock"))
    }


def layers() -> list[Atoms]:
    """MX2 of several elements, so that each split of stage 2 holds some."""
    base = known("1H-MoS2")
    made = [
        substitute(base, {"Mo": metal, "S": other})
        for metal in ("W", "Nb", "Ti", "Ta")
        for other in ("S", "Se")
    ]
    return [known("graphene"), known("h-BN"), base, *made]


def on_metal(metal: str, height: float) -> Data:
    """H above a metal layer, with an energy that depends on both."""
    slab = fcc111(metal, (2, 2, 1), vacuum=6.0)
    top = slab.positions[0] + [0, 0, height]
    slab += Atoms("H", [top])
    n = len(slab)
    return Data(
        pos=torch.tensor(slab.positions, dtype=torch.float32),
        cell=torch.tensor(slab.cell.complete().array, dtype=torch.float32)[None],
        atomic_numbers=torch.tensor(slab.numbers),
        tags=torch.tensor([1] * (n - 1) + [2]),
        fixed=torch.tensor([1] * (n - 1) + [0]),
        natoms=n,
        sid=f"{metal}{height}",
        host_uid=metal,
        y_relaxed=0.1 * height + 0.01 * float(slab.numbers[0]),
    )


def write_inputs(root: Path) -> None:
    """What the stages read: records, databases, graphs, checkpoints of no training, CIFs."""
    torch.manual_seed(1)
    metals = "Cu Ag Au Ni Pd Pt Al Rh Ir".split()
    write_lmdb(root / "h.lmdb", [on_metal(metal, height) for metal in metals for height in (1.2, 1.6)])
    with ase.db.connect(root / "layers.db") as database:
        for k, atoms in enumerate(layers()):
            database.write(atoms, uid=f"layer-{k}", prototype=f"p-{k}", ehull=0.01 * k, hform=-0.5, gap=0.0)
    graphs = [
        layer_graph(atoms, f"layer-{k}", e_hull=0.02 * k, delta_g_h=0.3 - 0.1 * k, synthesizable=k % 2)
        for k, atoms in enumerate(layers())
    ]
    (root / "graphs/processed").mkdir(parents=True)
    InMemoryDataset.save(graphs[:8], root / "graphs/processed/train.pt")
    InMemoryDataset.save(graphs[8:], root / "graphs/processed/val.pt")
    save_dimenet(
        root / "dimenet.pt", PeriodicDimeNetPlusPlus(hidden_channels=8, out_emb_channels=8, int_emb_size=4)
    )
    save_synthesis(root / "synthesis.pt", SynthesisModel(Forest(1, 1, 1), Forest(1, 1, 1)))
    model, diffusion = DenoisingEGNN(16, 4, 1, 1, 8), Diffusion()
    weights = {"model": model.state_dict(), "hparams": model.hparams}
    schedule = {"diffusion": diffusion.state_dict(), "diffusion_hparams": diffusion.hparams}
    save_checkpoint(root / "generator.pth", weights | schedule)
    write_evaluation(root)


def write_evaluation(root: Path) -> None:
    """CIFs of metal sheets and the phases that EMT measures them against."""
    (root / "cifs").mkdir()
    for metal in METALS[:3]:
        write(root / "cifs" / f"{metal}.cif", fcc111(metal, (1, 1, 1), vacuum=8.0, periodic=True))
    (root / "cifs" / "broken.cif").write_text("data_x\n_cell_length_a what\n")
    database = ase.db.connect(root / "phases.db")
    for metal in METALS:
        atoms = bulk(metal)
        atoms.calc = EMT()
        database.write(Atoms(atoms), energy_eV=atoms.get_potential_energy())
    database.metadata = {"potential": EMT_NAME}


def stages(root: Path) -> dict[str, Stage]:
    """The stages on these inputs."""
    graphs = ["--data", root / "graphs", "--off-equilibrium", ""]
    drawn = ["--db", root / "layers.db", "--checkpoint", root / "generator.pth"]
    judged = [
        "--cifs",
        root / "cifs",
        "--potential",
        EMT_NAME,
        "--references",
        root / "phases.db",
        "--compare",
    ]
    judged += ["--novelty-db", root / "layers.db", "--template-db", root / "layers.db", "--jobs", 1]
    judged += ["--dimenet", root / "dimenet.pt", "--synthesis", root / "synthesis.pt", "--oracle", "none"]
    judged += "--second-potential none --hull-phases 0 --phonons 0 --shortlist 0 --device cpu".split()
    labelled = ["--db", root / "layers.db", "--dimenet", root / "dimenet.pt", "--batch-size", 4]
    built = "references layers pack --limit 2 --jobs 1 --potential layers:lennard_jones".split()
    records = ["--lmdb", root / "h.lmdb", "--epochs", 4, "--batch-size", 4]
    return {
        "pretrain_dimenet": Stage(pretrain_dimenet.main, [*records, *SURROGATE], "m.pt"),
        "material_dataset": Stage(material_dataset.main, [*labelled, "--device", "cpu"], "layers"),
        "optimization": Stage(
            optimization.main, [*graphs, "--epochs", 3, "--batch-atoms", 16, *NETWORK], "m.pth"
        ),
        "structure_generator": Stage(
            structure_generator.main,
            [*drawn, *"--num 6 --best-of 1 --steps 12 --batch-size 2 --proposals 1 --device cpu".split()],
            "cifs",
        ),
        "evaluate_external": Stage(evaluate_external.main, judged, "scores"),
        "builder": Stage(builder.main, built, "data", again=()),
    }
