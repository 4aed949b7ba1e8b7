"""What stage 3 trains on and trains: layers of several sources, their batches, the network with its energy
scales, and how it is validated.
"""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn
from torch_geometric.data import Data

from models.crystals.matching import Fingerprint, layer_group, rmsd
from models.crystals.symmetry import layer_operations
from models.crystals.thresholds import SAME_SYMPREC
from models.datasets.graphs import LABELS, graph_atoms
from models.infra.files import digest
from models.networks.diffusion import MAX_E_HULL, Diffusion, joint_loss, raw_lattice
from models.networks.egnn import DenoisingEGNN
from models.networks.layers import collate, layers_of, to_atoms
from models.networks.sampler import Sampler
from models.networks.settings import LOSS_WEIGHTS, MISSION, GeneratorSettings
from models.networks.symmetry import Symmetry

VALIDATION_SEED = 1234  # the same noise at every validation, so that epochs can be compared
CHANNELS = ("coordinates", "z", "lattice", "elements")  # the diffusion term of the loss
# What is drawn during training: so many real validation layers, noised and denoised again in so many updates;
# from t = 0.5, where the generator starts, and from pure noise
SAMPLES, SAMPLING_STEPS = 16, 50
STARTS = {"template": 0.5, "noise": 1.0}


@dataclass
class TrainingData:
    """What is trained on.

    Attributes:
        train, val: graphs of stage 2.
        bent: off-equilibrium graphs, for the E_hull head alone.
    """

    train: list[Data]
    val: list[Data]
    bent: list[Data]

    @property
    def sources(self) -> list[str]:
        """Whose energies the labels of E_hull are; the first is the head's own."""
        return list(dict.fromkeys(graph.source for graph in self.train + self.val + self.bent))

    def fingerprint(self) -> str:
        """Digest of the names and labels, for --resume."""
        rows = []
        for graph in self.train + self.val + self.bent:
            rows.append([graph.uid, graph.source, *(graph[name].item() for name in LABELS)])
        return digest(str(rows))


def batches(
    graphs: list[Data], atoms_per_batch: int, generator: torch.Generator | None = None
) -> list[list[int]]:
    """Index lists of about `atoms_per_batch` atoms, of like size so that little is padded; shuffled if
    seeded.
    """
    sizes = torch.tensor([graph.num_nodes for graph in graphs], dtype=torch.float32)
    jitter = torch.rand(len(sizes), generator=generator) * 0.9 if generator else torch.zeros(len(sizes))
    out, current = [], []
    for k in torch.argsort(sizes + jitter).tolist():
        if current and (len(current) + 1) * sizes[k] > atoms_per_batch:
            out.append(current)
            current = []
        current.append(k)
    out.append(current)
    order = torch.randperm(len(out), generator=generator).tolist() if generator else range(len(out))
    return [out[k] for k in order]


def random_batch(graphs: list[Data], count: int, generator: torch.Generator) -> list[Data]:
    """`count` randomly chosen graphs."""
    return [graphs[k] for k in torch.randint(len(graphs), (count,), generator=generator).tolist()]


def symmetry_of(graphs: list[Data]) -> Symmetry:
    """The layer groups of a batch, for noise that keeps them."""
    operations = [layer_operations(graph_atoms(graph)) for graph in graphs]
    return Symmetry.of(operations, max(graph.num_nodes for graph in graphs))


def lattice_statistics(graphs: list[Data]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [3] of the unscaled lattice over the training set."""
    cells = torch.cat([graph.cell for graph in graphs])[:, :2, :2]
    raw = raw_lattice(cells, torch.tensor([graph.num_nodes for graph in graphs]))
    return raw.mean(0), raw.std(0, correction=0).clamp(min=0.05)  # no axis is scaled up beyond reason


class Joint(nn.Module):
    """What is trained: the network, and how far the energies of each source lie above those of the first.

    C2DB's E_hull is DFT's against DFT's hull, that of the embedded layers the potential's against the
    potential's hull. One head cannot mean both: it predicts the first source's, and label = head + offset for
    the others. The offset is learned from layers at rest; of bent ones it would learn how bent they are.

    Args:
        network: DenoisingEGNN.
        sources: names, the reference first.
    """

    def __init__(self, network: nn.Module, sources: list[str]):
        super().__init__()
        self.network = network
        self.sources = sources
        self.further = nn.Parameter(torch.zeros(len(sources) - 1))  # eV/atom, of all but the first

    def offsets(self, graphs: list[Data]) -> Tensor:
        """[B] eV/atom of the graphs' sources."""
        every = torch.cat([self.further.new_zeros(1), self.further])
        return every[[self.sources.index(graph.source) for graph in graphs]]

    def by_source(self) -> dict[str, float]:
        """Offset of each source, eV/atom."""
        return dict(zip(self.sources, [0.0, *self.further.tolist()]))

    @torch.no_grad()
    def on_reference(self, graphs: list[Data]) -> list[Data]:
        """The graphs with E_hull on the scale of the first source."""
        moved = []
        for graph, offset in zip(graphs, self.offsets(graphs).cpu()):
            graph = graph.clone()
            graph.e_hull = graph.e_hull - offset
            moved.append(graph)
        return moved


def silence_untaught_heads(network: DenoisingEGNN, data: TrainingData, weights: dict[str, float]) -> None:
    """Makes heads that no label teaches constant, so that no guide follows what they were born with."""
    known = Counter()
    for graph in data.train + data.bent:
        known.update(name for name in LABELS if not graph[name].isnan())
    rows = {
        "delta_g_h": (network.heads[-1], 0),
        "e_hull": (network.heads[-1], 1),
        "synthesizable": (network.heads[-1], 2),
        "delta_g_h_std": (network.uncertainty[-1], 0),
    }
    by_bent = len(data.bent) * weights["off_equilibrium"]  # these teach the head of E_hull, too
    with torch.no_grad():
        for name, (last, row) in rows.items():
            weight = weights[name] + (by_bent if name == "e_hull" else 0)
            if not known[name] or weight == 0:
                last.weight[row] = last.bias[row] = 0.0
                print(f"no label teaches the head of {name}: it says the same of every layer")


class Means:
    """Running means of named figures, by number of graphs."""

    def __init__(self):
        self.sums, self.count = {}, 0

    def add(self, values: dict[str, Tensor], count: int) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item() * count
        self.count += count

    def named(self, prefix: str = "") -> dict[str, float]:
        return {prefix + name: value / max(1, self.count) for name, value in self.sums.items()}


@torch.no_grad()
def validate(
    network: nn.Module,
    diffusion: Diffusion,
    graphs: list[Data],
    args,
    weights: dict[str, float] = LOSS_WEIGHTS,
) -> dict[str, float]:
    """Mean loss and terms over a split, with the same noise every time; those of the diffusion term also
    without any condition (`unconditional_*`), which is the model that guidance starts from.
    """
    means, unconditional = Means(), Means()
    for drop_all, found in ((0.0, means), (1.0, unconditional)):
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        for index in batches(graphs, args.batch_atoms):
            layers, labels = (part.to(args.device) for part in collate([graphs[k] for k in index]))
            total, terms = joint_loss(network, diffusion, layers, labels, weights, 0.0, generator, drop_all)
            found.add({"total": total, **terms}, len(index))
    without = unconditional.named()
    return means.named() | {f"unconditional_{name}": without[name] for name in CHANNELS}


@torch.no_grad()
def sample_metrics(network: nn.Module, diffusion: Diffusion, graphs: list[Data], device: str) -> dict:
    """What the generator's own update makes of a few validation layers with their elements given.

    Returns:
        For each of STARTS `{start}_match` (share that is the real layer again), `{start}_symmetric` (share
        with a layer group beyond p1), and `{start}_rmsd_A` (median distance to the real layer, relaxed by the
        method of its database; NaN from pure noise, where no atom is where it was).
    """
    chosen = np.linspace(0, len(graphs) - 1, min(SAMPLES, len(graphs))).round().astype(int)
    real = [graph_atoms(graphs[k]) for k in chosen]
    found = {}
    for name, level in STARTS.items():
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        sampler = Sampler(network, diffusion, GeneratorSettings(guide=MISSION), generator)  # unguided
        layers, start = layers_of(real).to(device), round(level * diffusion.steps)
        noised, lattice = sampler.noised(layers, start) if level < 1 else sampler.prior(layers)
        drawn = to_atoms(sampler.denoise(noised, lattice, start, SAMPLING_STEPS).to("cpu"))
        rows = np.array([_compared(*pair) for pair in zip(real, drawn)])  # [n, 3]
        found[f"{name}_match"], found[f"{name}_symmetric"] = rows[:, :2].mean(0).tolist()
        found[f"{name}_rmsd_A"] = float(np.median(rows[:, 2])) if level < 1 else math.nan
    return found


def _compared(real: Atoms, drawn: Atoms) -> tuple[float, float, float]:
    """Whether a drawn layer is the real one, whether it has symmetry, and how far its atoms are (Å)."""
    try:
        same = Fingerprint(real).same(Fingerprint(drawn))
        symmetric = layer_group(drawn, SAME_SYMPREC) not in ("p1", "?")
        return float(same), float(symmetric), rmsd(drawn, real)
    except Exception:  # an untrained network draws what no symmetry finder takes: no match
        return 0.0, 0.0, math.inf


@torch.no_grad()
def head_errors(model, train, test, args) -> dict:
    """MAE of the property heads on clean held-out structures (t = 0), beside the median of the training
    labels.
    """
    model.eval()
    known = collate(train)[1]
    predicted, labels = [], []
    for index in batches(test, args.batch_atoms):
        layers, label = collate([test[k] for k in index])
        predicted.append(
            model.properties(layers.to(args.device), torch.zeros(len(index), device=args.device)).to("cpu")
        )
        labels.append(label.replace(e_hull=label.e_hull.clamp(max=MAX_E_HULL)))
    mean = lambda values: float(values.abs().nanmean())
    errors = {}
    for field, unit in {"delta_g_h": "eV", "e_hull": "eV_per_atom", "delta_g_h_std": "eV"}.items():
        guess, label = (torch.cat([getattr(rows, field) for rows in found]) for found in (predicted, labels))
        count = int((~label.isnan()).sum())
        if count:
            median = getattr(known, field).nanmedian()
            if field == "e_hull":  # as its labels
                median = median.clamp(max=MAX_E_HULL)
            errors[f"{field}_{unit}"] = {
                "mae": mean(guess - label),
                "mae_of_median": mean(median - label),
                "n": count,
            }
    return errors
