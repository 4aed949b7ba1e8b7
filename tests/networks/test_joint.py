"""What stage 3 trains on: energies of several sources, heads that nothing teaches, dropped conditions."""

import argparse
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.data import InMemoryDataset

import optimization
from data.build.prototypes import PROTOTYPES
from models.datasets.graphs import layer_graph
from models.infra.files import read_json, read_rows
from models.networks.diffusion import Diffusion, joint_loss
from models.networks.egnn import DenoisingEGNN
from models.networks.joint import (
    CHANNELS,
    Joint,
    TrainingData,
    sample_metrics,
    silence_untaught_heads,
    validate,
)
from models.networks.layers import collate
from models.networks.settings import LOSS_WEIGHTS
from models.networks.training import Diverged
from models.stages import joint_training

ATOMS = {p.name: p.atoms() for p in PROTOTYPES}
NAMES = ("graphene", "MoS2-2H", "CdI2-1T", "GaSe", "SnS", "FeOCl", "MXene-M2X", "silicene")
SMALL = dict(channels=16, vectors=4, trunk=1, conditional=1, neighbours=8)


def graphs_of(source: str, shift: float = 0.0, **labels) -> list:
    """A graph of each prototype; E_hull is 0.02 eV/atom times its number, plus a shift."""
    made = []
    for k, name in enumerate(NAMES):
        made.append(layer_graph(ATOMS[name], f"{source}-{k}", source, e_hull=0.02 * k + shift, **labels))
    return made


def network() -> DenoisingEGNN:
    torch.manual_seed(0)
    return DenoisingEGNN(**SMALL)


def test_the_offset_of_a_source_is_learned_from_its_layers():
    """A head that knows the truth of the first source: the second one's shift is what is left."""
    joint = Joint(nn.Linear(1, 1), ["dft", "potential"])
    truth = torch.tensor([0.02 * k for k in range(len(NAMES))])
    optimizer = torch.optim.Adam([joint.further], lr=0.01)
    second = graphs_of("potential", shift=-0.07)
    for _ in range(300):
        label = torch.cat([graph.e_hull for graph in second]) - joint.offsets(second)
        optimizer.zero_grad()
        ((truth - label) ** 2).mean().backward()
        optimizer.step()
    assert joint.by_source() == {"dft": 0.0, "potential": pytest.approx(-0.07, abs=1e-4)}
    moved = joint.on_reference(second + graphs_of("dft"))
    expected = torch.cat([truth, truth])
    torch.testing.assert_close(torch.cat([graph.e_hull for graph in moved]), expected, atol=1e-4, rtol=0)
    assert second[0].e_hull.item() == pytest.approx(-0.07)  # the graphs themselves stay


def test_the_offset_is_moved_by_the_loss_of_e_hull_alone():
    """Not by the condition, through which the label enters the network as well."""
    joint, diffusion = Joint(network(), ["dft", "potential"]), Diffusion()
    second = graphs_of("potential", delta_g_h=0.1, synthesizable=1.0)
    for weight, moves in ((0.0, False), (1.0, True)):
        layers, labels = collate(second)
        labels = labels.replace(e_hull=labels.e_hull - joint.offsets(second))
        weights = LOSS_WEIGHTS | {"e_hull": weight}
        loss, _ = joint_loss(
            joint.network, diffusion, layers, labels, weights, 0.0, torch.Generator().manual_seed(0)
        )
        (gradient,) = torch.autograd.grad(loss, joint.further)
        assert (gradient != 0) == moves


def test_conditions_are_dropped_together():
    layers, labels = collate(graphs_of("dft", delta_g_h=0.1, synthesizable=1.0) * 80)
    seen = []

    class Spy(DenoisingEGNN):
        def forward(self, layers, t, lattice, conditions=None, properties=True):
            seen.append(conditions)
            return super().forward(layers, t, lattice, conditions, properties)

    torch.manual_seed(0)
    spy = Spy(**SMALL)
    with torch.no_grad():
        for drop, drop_all in ((0.0, 0.1), (0.2, 0.1)):
            joint_loss(
                spy,
                Diffusion(),
                layers,
                labels,
                LOSS_WEIGHTS,
                drop,
                torch.Generator().manual_seed(1),
                drop_all,
            )
    gone = [torch.isnan(conditions) for conditions in seen]
    assert torch.equal(gone[0].any(1), gone[0].all(1))
    assert gone[0].all(1).float().mean().item() == pytest.approx(0.1, abs=0.04)
    assert gone[1].all(1).float().mean().item() == pytest.approx(0.1 + 0.9 * 0.2**3, abs=0.04)
    np.testing.assert_allclose(gone[1].float().mean(0), 0.1 + 0.9 * 0.2, atol=0.05)


def test_validation_logs_the_model_without_conditions_apart():
    graphs = graphs_of("dft", delta_g_h=0.1, synthesizable=1.0)
    args = argparse.Namespace(batch_atoms=64, device="cpu")
    model = network()
    found = validate(model, Diffusion(), graphs, args, LOSS_WEIGHTS)
    assert validate(model, Diffusion(), graphs, args, LOSS_WEIGHTS) == found  # the same noise every time
    assert {f"unconditional_{name}" for name in CHANNELS} <= found.keys()
    assert found["unconditional_coordinates"] != found["coordinates"]
    with torch.no_grad():  # a network that is told nothing by its conditions
        for condition in model.conditions:
            condition.null.zero_()
            condition.value[-1].weight.zero_()
            condition.value[-1].bias.zero_()
    found = validate(model, Diffusion(), graphs, args, LOSS_WEIGHTS)
    for name in CHANNELS:
        assert found[f"unconditional_{name}"] == pytest.approx(found[name], rel=1e-6)


def test_heads_that_nothing_teaches_say_the_same_of_every_layer(capsys):
    """By hand: labels of a potential have no spread, and then no guide may follow its head."""
    graphs = graphs_of("dft", delta_g_h=0.1)
    data = TrainingData(graphs, graphs, [])
    model = network()
    silence_untaught_heads(model, data, LOSS_WEIGHTS)
    said = capsys.readouterr().out
    assert "head of delta_g_h_std" in said and "head of synthesizable" in said
    assert "head of delta_g_h:" not in said and "head of e_hull" not in said
    layers, labels = collate(graphs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        loss, _ = joint_loss(
            model, Diffusion(), layers, labels, generator=torch.Generator().manual_seed(step)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layers.frac_coords.requires_grad_()
    heads = model.properties(layers, torch.zeros(len(layers)))
    assert heads.delta_g_h_std.detach().std() == 0 and heads.synth_logit.detach().std() == 0
    assert heads.delta_g_h.detach().std() > 0
    (gradient,) = torch.autograd.grad(heads.delta_g_h_std.sum(), layers.frac_coords)
    assert not gradient.any()


def test_a_head_without_weight_is_untaught_unless_bent_layers_teach_it():
    graphs = graphs_of("dft", delta_g_h=0.1, delta_g_h_std=0.1, synthesizable=1.0)
    spread = {}
    for bent in (False, True):
        model = network()
        data = TrainingData(graphs, graphs, graphs if bent else [])
        silence_untaught_heads(model, data, LOSS_WEIGHTS | {"e_hull": 0.0})
        heads = model.properties(collate(graphs)[0], torch.zeros(len(graphs)))
        spread[bent] = heads.e_hull.detach().std().item()
    assert spread[False] == 0 < spread[True]


class Perfect(DenoisingEGNN):
    """Knows the layers it is shown: predicts the noise that leads back to them exactly."""

    def __init__(self, diffusion: Diffusion, graphs):
        super().__init__(**SMALL)
        self.diffusion, self.real = diffusion, collate(graphs)[0]

    def forward(self, layers, t, lattice, conditions=None, properties=True):
        d, real = self.diffusion, self.real
        out = super().forward(layers, t, lattice, conditions, False)
        keep = layers.mask.float()
        index = (t * d.steps).round().long()
        sigma, abar = d.sigmas[index], d.alphas_cumprod[index]
        a, b = abar.sqrt(), (1 - abar).sqrt()
        delta = real.frac_coords - layers.frac_coords
        delta = (delta - delta.round()) @ layers.cell  # the way back, Å
        score = delta / sigma[:, None, None] * keep[..., None]
        score = score - score.sum(1, keepdim=True) / keep.sum(1)[:, None, None]
        z0 = real.z
        eps_z = (layers.z - a[:, None] * z0) / b[:, None]
        l0 = d.encode_lattice(real.cell, keep.sum(1))
        eps_l = (lattice - a[:, None] * l0) / b[:, None]
        v = lambda eps, x0: a[:, None] * eps - b[:, None] * x0
        return type(out)(score * keep[..., None], v(eps_z, z0), v(eps_l, l0), out.slot_logits, None)


def test_samples_of_a_perfect_network_are_the_real_layers(monkeypatch):
    monkeypatch.setattr("models.networks.joint.SAMPLING_STEPS", 20)
    graphs = graphs_of("dft")
    diffusion = Diffusion(lattice_mean=(0.5, 0.5, 0.0), lattice_std=(0.3, 0.3, 0.2))
    found = sample_metrics(Perfect(diffusion, graphs), diffusion, graphs, "cpu")
    assert found["template_match"] == found["template_symmetric"] == 1.0
    assert found["template_rmsd_A"] < 0.02 and math.isnan(found["noise_rmsd_A"])
    untrained = sample_metrics(network(), diffusion, graphs, "cpu")
    assert untrained["template_match"] < 0.5 and untrained["template_rmsd_A"] > 0.1
    assert untrained["noise_match"] < 0.5


@pytest.fixture
def folders(tmp_path):
    """Stage 2's folders of two databases, the second 0.2 eV/atom higher."""
    for source, shift in (("dft", 0.0), ("potential", 0.2)):
        (tmp_path / source / "processed").mkdir(parents=True)
        graphs = graphs_of(source, shift, delta_g_h=0.1, delta_g_h_std=0.1, synthesizable=1.0)
        for split, part in (("train", graphs[:6]), ("val", graphs[6:])):
            InMemoryDataset.save(part, tmp_path / source / "processed" / f"{split}.pt")
    return tmp_path


def test_a_folder_with_nothing_but_a_test_split_is_left_out_of_the_report(tmp_path, capsys):
    """Its energies may lie on another scale, which nothing was trained on."""
    for name, source in (("a", "dft"), ("b", "elsewhere")):
        (tmp_path / name / "processed").mkdir(parents=True)
        InMemoryDataset.save(graphs_of(source), tmp_path / name / "processed" / "test.pt")
    found = joint_training.held_out(["dft"], [tmp_path / "a", tmp_path / "b"])
    assert {graph.source for graph in found} == {"dft"} and len(found) == len(NAMES)
    assert f"{len(NAMES)} layers of elsewhere" in capsys.readouterr().out
    assert joint_training.held_out(["dft"], [tmp_path / "b"]) == []
    (tmp_path / "a" / "processed" / "test.pt").write_bytes(b"no graphs")
    assert joint_training.held_out(["dft"], [tmp_path / "a"]) == []
    assert "test.pt is no zip" in capsys.readouterr().out


def flags(folders, *more) -> list[str]:
    small = "--channels 16 --vectors 4 --trunk 1 --conditional 1 --neighbours 8 --device cpu --batch-atoms 32"
    given = ["--data", folders / "dft", folders / "potential", "--off-equilibrium", ""]
    files = ["--out", folders / "m.pth", "--figure", folders / "loss.png"]
    return [*small.split(), *map(str, [*given, *files, *more])]


def test_two_databases_are_trained_on_together_and_their_energies_kept_apart(folders, monkeypatch):
    monkeypatch.setattr(joint_training, "plot_loss_curve", lambda *args: None)
    optimization.main(flags(folders, "--epochs", 12, "--lr", 0.02, "--drop-all", 0.5, "--ema", 0.5))
    offsets = read_json(folders / "m.metrics.json")["e_hull_offsets_eV_per_atom"]
    assert offsets["dft"] == 0 and 0.05 < offsets["potential"] < 0.35
    saved = torch.load(folders / "m.pth", weights_only=True)
    assert saved["e_hull_offsets_eV_per_atom"].keys() == {"dft", "potential"}
    rows = read_rows(folders / "m.log.csv")
    assert all(math.isfinite(float(row["val_unconditional_coordinates"])) for row in rows)
    drawn = [math.isfinite(float(row["sample_template_match"])) for row in rows]
    assert drawn == [epoch in (10, 12) for epoch in range(1, 13)]  # every tenth, and the last
    with pytest.raises(ValueError, match="data was .* is "):
        optimization.main(flags(folders, "--epochs", 12, "--resume", "--data", folders / "dft"))


def test_a_batch_without_a_finite_loss_is_named_and_the_training_goes_on(folders, monkeypatch, capsys):
    real, calls = joint_training.joint_loss, []

    def sometimes_nan(*args, **kwargs):
        loss, terms = real(*args, **kwargs)
        calls.append(loss)
        return (loss * math.nan, terms) if len(calls) == 2 else (loss, terms)

    monkeypatch.setattr(joint_training, "joint_loss", sometimes_nan)
    monkeypatch.setattr(joint_training, "plot_loss_curve", lambda *args: None)
    optimization.main(flags(folders, "--epochs", 1))
    assert "step skipped: loss nan" in capsys.readouterr().out
    (row,) = read_rows(folders / "m.log.csv")
    assert row["skipped_steps"] == "1" and math.isfinite(float(row["train_total"]))
    weights = torch.load(folders / "m.pth", weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize(
    "wrong",
    ["--lr 1e6", "--lr nan", "--epochs 0", "--batch-atoms -1", "--drop 1.5", "--drop-all -1", "--limit -1"]
    + ["--weight-e-hull -1", "--channels 0", "--off-equilibrium-atoms 0", "--seed -1", "--threads 0"],
)
def test_bad_flags_are_refused_by_name(wrong, capsys):
    with pytest.raises(SystemExit):
        optimization.main(wrong.split())
    flag, value = wrong.split()
    assert f"argument {flag}: '{value}' is not" in capsys.readouterr().err


def test_a_checkpoint_to_start_from_is_read_before_any_training(folders, monkeypatch):
    monkeypatch.setattr(joint_training, "train_model", lambda *args: pytest.fail("the work began"))
    (folders / "broken.pth").write_bytes(b"PK\x03\x04")
    torch.save({"weights": 1}, folders / "other.pth")
    for name, said in (("broken.pth", "cut short"), ("other.pth", "holds no weights of this model")):
        with pytest.raises(ValueError, match=said):
            optimization.main(flags(folders, "--init", folders / name))
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        optimization.main(flags(folders, "--init", folders / "absent.pth"))
    with pytest.raises(ValueError, match="--device cuda:99 is not to be had"):
        optimization.main(flags(folders, "--device", "cuda:99"))


def test_weights_that_run_away_end_in_one_line_and_the_best_stay_finite(folders, monkeypatch):
    """The highest learning rate that is accepted, nothing capped."""
    monkeypatch.setattr(joint_training, "plot_loss_curve", lambda *args: None)
    wild = ("--lr", 1, "--clip", 1e12, "--warmup", 0, "--sample-every", 0, "--epochs", 20)
    with pytest.raises(Diverged, match="the training diverged: .* Use a lower --lr"):
        optimization.main(flags(folders, *wild))
    weights = torch.load(folders / "m.pth", weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in weights.values())
