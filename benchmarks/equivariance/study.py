"""The two denoisers of the study of equivariance, their training, and the figure."""

import argparse
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from models.datasets.graphs import LayerGraphs
from models.evaluation.figures import plt, save
from models.infra.files import write_rows
from models.infra.shards import Shard
from models.networks.diffusion import Diffusion, joint_loss
from models.networks.egnn import Denoised, DenoisingEGNN
from models.networks.joint import batches, lattice_statistics, validate
from models.networks.layers import collate
from models.networks.settings import LOSS_WEIGHTS

CHANNELS = ("coordinates", "z", "lattice")  # of the diffusion term


class FreeHeads(DenoisingEGNN):
    """Score, z and lattice by a perceptron on the scalars and the components x, y, z of all vectors: not
    equivariant.
    """

    def __init__(self, channels, vectors, **rest):
        super().__init__(channels, vectors, **rest)
        make = lambda inputs: nn.Sequential(nn.Linear(inputs, channels), nn.SiLU(), nn.Linear(channels, 3))
        self.free, self.free_lattice = make(channels + 3 * vectors), make(channels + 3 * vectors + 4)
        del self.vector_gates, self.lattice

    def _channels(self, h, v, layers, lattice, predicted):
        keep = layers.mask[..., None].to(h.dtype)
        count = keep.sum(1)
        features = torch.cat([h, v.flatten(2)], -1)
        moved = self.free(features) * keep
        moved = (moved - moved.sum(1, keepdim=True) / count[:, None]) * keep
        mean = (features * keep).sum(1) / count
        change = self.free_lattice(torch.cat([mean, lattice, count.log()], -1))
        return Denoised(moved[..., :2], moved[..., 2], change, self._slot_logits(h, layers), predicted)


MODELS = {"equivariant": DenoisingEGNN, "not equivariant": FreeHeads}


def trained(name: str, graphs: list, diffusion: Diffusion, args):
    """The averaged weights after args.steps steps."""
    torch.manual_seed(args.seed)
    model = MODELS[name](args.channels, args.vectors, trunk=2, conditional=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=args.steps, pct_start=0.1)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    generator, queue = torch.Generator().manual_seed(args.seed), []
    for _ in tqdm(range(args.steps), desc=f"{name}, {len(graphs)} layers", mininterval=5):
        queue = queue or batches(graphs, args.batch_atoms, generator)
        layers, labels = collate([graphs[k] for k in queue.pop()])
        loss, _ = joint_loss(model, diffusion, layers, labels, LOSS_WEIGHTS, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        average.update_parameters(model)
    return average.module, sum(p.numel() for p in model.parameters())


def draw(rows: list[dict], path: Path):
    """Held-out denoising error against the number of training layers, a panel a channel."""
    figure, axes = plt.subplots(1, len(CHANNELS), figsize=(10, 3.4), layout="constrained")
    for axis, channel in zip(axes, CHANNELS):
        for name in MODELS:
            mine = [row for row in rows if row["model"] == name]
            axis.plot([row["layers"] for row in mine], [row[channel] for row in mine], "o-", label=name)
        axis.set(xscale="log", xlabel="training layers", title=channel)
        axis.minorticks_off()
        axis.set_xticks(sorted({row["layers"] for row in rows}), sorted({row["layers"] for row in rows}))
    axes[0].set_ylabel("held-out denoising error")
    axes[0].legend(frameon=False)
    save(figure, path)


def run(args: argparse.Namespace) -> None:
    """The study; args are the parsed flags."""
    args.device = "cpu"
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    train, val = (list(LayerGraphs(args.data, split)) for split in ("train", "val"))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(args.seed)).tolist()
    mean, std = lattice_statistics(train)
    diffusion, shard = Diffusion(lattice_mean=mean, lattice_std=std), Shard(args.out / "trained.jsonl", True)
    keys = [(share, name) for share in args.shares for name in MODELS]
    for share, name in keys:
        graphs = [train[k] for k in order[: round(share * len(train))]]
        if f"{name} {share}" not in shard.rows:
            model, parameters = trained(name, graphs, diffusion, args)
            terms = validate(model, diffusion, val, args, LOSS_WEIGHTS)
            row = {"model": name, "layers": len(graphs), "parameters": parameters, "steps": args.steps}
            shard.append(f"{name} {share}", row | {channel: round(terms[channel], 4) for channel in CHANNELS})
    columns = ["model", "layers", "parameters", "steps", *CHANNELS]
    rows = [{column: shard.rows[f"{name} {share}"][column] for column in columns} for share, name in keys]
    write_rows(args.out / "equivariance.csv", rows, columns)
    draw(rows, args.out / "equivariance.png")
