"""Periodic DimeNet++: edges and triplets against oracles, symmetries, smoothness, and training end to end."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111, make_supercell, mx2
from ase.data import atomic_numbers
from ase.neighborlist import neighbor_list
from layers import h_on_metal
from torch_geometric.data import Data
from torch_geometric.nn.models.dimenet import SphericalBasisLayer

import models.networks.dimenet
import pretrain_dimenet
from models.datasets.adsorption import (
    adsorption_graph,
    edge_vectors,
    is_rigid,
    read_graphs,
    shortest_distance,
    split_graphs,
)
from models.datasets.lmdb_data import write_lmdb
from models.infra.files import ROOT
from models.networks.baselines import site_features, surrogate_report
from models.networks.dimenet import (
    ElementEmbedding,
    Ensemble,
    PeriodicDimeNetPlusPlus,
    SphericalBasis,
    load_dimenet,
    predict,
    predict_spread,
    readout_level,
    save_dimenet,
    save_ensemble,
    triplets,
)
from models.networks.training import Diverged
from models.stages import pretraining

SAMPLE = Path(os.environ.get("HER2D_REFERENCE_DATA", ROOT / "../shared/data")) / "is2re_lmdb" / "sample.lmdb"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_model(seed=0, **changes):
    """Small model whose output layers are not zero, as they are before training."""
    torch.manual_seed(seed)
    model = PeriodicDimeNetPlusPlus(
        **{"hidden_channels": 16, "out_emb_channels": 16, "int_emb_size": 8, **changes}
    )
    for block in model.output_blocks:
        torch.nn.init.normal_(block.lin.weight, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make_model(target_mean=-0.3, target_std=0.7)


def slab(seed=0):
    """Rattled, sheared 2x2 MoS2 with one H; atoms partly outside the cell."""
    atoms = mx2("MoS2", size=(2, 2, 1), vacuum=7.5)
    atoms.append("H")
    atoms.positions[-1] = atoms.positions[1] + [0.3, 0.2, 1.4]
    atoms.positions += np.random.default_rng(seed).normal(0, 0.05, (len(atoms), 3))
    atoms.positions[0] -= 2 * atoms.cell[0]
    return atoms, np.array([1] * 12 + [2])


def energy(model, atoms, tags):
    return predict(model, [adsorption_graph(atoms, tags)])[0]


# ---------------------------------------------------------------- graph


def edge_rows(source, target, shift, vector):
    return np.array(sorted(np.round(np.column_stack([source, target, shift, vector]), 3).tolist())) + 0.0


@pytest.mark.parametrize("case", ["slab", "one atom", "skewed", "left-handed"])
def test_edges_equal_ase(case):
    atoms = {
        "slab": slab()[0],
        "one atom": Atoms("C", cell=np.diag([1.9, 2.1, 12]), pbc=True),
        "skewed": Atoms(
            "HeNe", [[0, 0, 0], [9, -4, 3]], cell=[[3, 0, 0], [5.5, 3, 0], [-8, 7, 11]], pbc=True
        ),
        "left-handed": Atoms(
            "HeNe", [[0, 0, 0], [1, 2, 3]], cell=[[3, 0, 0], [0, 4, 0], [0, 1, -9]], pbc=True
        ),
    }[case]
    graph = adsorption_graph(atoms, np.zeros(len(atoms)), cutoff=5.0)
    atoms.pbc = True
    i, j, shift, vector = neighbor_list("ijSD", atoms, 5.0)
    ours = edge_vectors(graph, torch.zeros(len(atoms), dtype=torch.int64))
    ours = edge_rows(*graph.edge_index, graph.edge_shift, ours)
    np.testing.assert_allclose(ours, edge_rows(j, i, shift, vector), atol=2e-3)
    assert shortest_distance(graph) == pytest.approx(np.linalg.norm(vector, axis=1).min(), abs=1e-5)


def test_collapsed_cell_is_refused():
    with pytest.raises(ValueError, match="spans no volume"):
        adsorption_graph(Atoms("H", cell=[3, 3, 0]), [0])


@pytest.mark.parametrize("symbols, cell", [("C", [2.4, 2.6, 12]), ("HC", [2.5, 4, 9])])
def test_triplets_equal_brute_force(symbols, cell):
    atoms = Atoms(symbols, [[0, 0, height] for height in range(len(symbols))], cell=cell)
    graph = adsorption_graph(atoms, np.zeros(len(atoms)), cutoff=4.0)
    edges = [(j, i, tuple(s)) for (j, i), s in zip(graph.edge_index.T.tolist(), graph.edge_shift.tolist())]
    expected = {
        (kj, ji)
        for ji, (j, i, s) in enumerate(edges)
        for kj, (k, j2, s2) in enumerate(edges)
        if j2 == j and not (k == i and all(a == -b for a, b in zip(s, s2)))
    }
    idx_kj, idx_ji = triplets(graph.edge_index, graph.edge_shift, len(atoms), len(edges))
    found = list(zip(idx_kj.tolist(), idx_ji.tolist()))
    assert set(found) == expected and len(found) == len(expected)
    assert (idx_ji.diff() >= 0).all()
    self_image = {(kj, ji) for kj, ji in expected if edges[kj][0] == edges[ji][1]}
    assert self_image, "the case must hold other images of i as k"


def test_readout_level_is_the_hop_count():
    chain = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4], [1, 0, 2, 1, 3, 2, 4, 3]])
    readout = torch.tensor([True, False, False, False, False])
    assert readout_level(readout, chain, 2).tolist() == [0, 1, 2, 3, 3]


def test_spherical_basis_equals_pyg():
    reference = SphericalBasisLayer(4, 3, cutoff=5.0, envelope_exponent=5)
    ours = SphericalBasis(4, 3, cutoff=5.0, envelope_exponent=5)
    distance = torch.linspace(0.7, 5.2, 40, dtype=torch.float64)
    angle = torch.linspace(0.0, np.pi, 60, dtype=torch.float64)
    idx_kj = torch.arange(60) % 40
    torch.testing.assert_close(
        ours(distance, angle.cos(), idx_kj), reference(distance, angle, idx_kj), atol=2e-5, rtol=1e-5
    )


# ---------------------------------------------------------------- symmetries


def rotation(seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.linalg.det(q)


def rotated(atoms, tags):
    turn = rotation(1)
    return Atoms(atoms.numbers, atoms.positions @ turn.T, cell=atoms.cell.array @ turn.T), tags


def translated(atoms, tags):
    atoms = atoms.copy()
    atoms.positions += [1.3, -7.1, 0.4]
    return atoms, tags


def wrapped(atoms, tags):
    atoms = atoms.copy()
    atoms.wrap(pbc=True)
    return atoms, tags


def permuted(atoms, tags):
    order = np.random.default_rng(2).permutation(len(atoms))
    return atoms[order], tags[order]


def mirrored(atoms, tags):
    flip = np.diag([1, 1, -1])
    return Atoms(atoms.numbers, atoms.positions @ flip, cell=atoms.cell.array @ flip), tags


def repeated(atoms, tags):
    return atoms.repeat((2, 1, 1)), np.tile(tags, 2)


def skew_repeated(atoms, tags):
    return make_supercell(atoms, [[1, 1, 0], [-1, 1, 0], [0, 0, 1]], order="atom-major"), np.repeat(tags, 2)


@pytest.mark.parametrize(
    "change", [rotated, translated, wrapped, permuted, mirrored, repeated, skew_repeated]
)
@pytest.mark.parametrize("tagged", [True, False])
def test_invariance(model, change, tagged):
    atoms, tags = slab()
    tags = tags * tagged
    moved = change(atoms, tags)
    assert energy(model, *moved) == pytest.approx(energy(model, atoms, tags), abs=1e-5)
    assert abs(energy(model, *slab(seed=3)) - energy(model, *slab())) > 1e-4, (
        "the model must feel the geometry"
    )


def test_mirror_image_of_both_faces_and_equal_shells_agree(model):
    """Sites equal by symmetry have equal energies: whole shells are kept, no neighbour is cut off."""
    atoms = fcc111("Pt", (2, 2, 3), vacuum=8)
    energies = []
    for site in np.flatnonzero(atoms.positions[:, 2] > atoms.positions[:, 2].max() - 0.1):
        with_h = atoms + Atoms("H", [atoms.positions[site] + [0, 0, 1.6]])
        energies.append(energy(model, with_h, [0] * 12 + [2]))
    np.testing.assert_allclose(energies, energies[0], atol=1e-5)


def test_batch_equals_loop(model):
    lone = Atoms("H", [[1, 1, 1]], cell=[20, 20, 20])
    cases = [slab(0), (slab(1)[0], np.zeros(13)), (fcc111("Pt", (1, 1, 3), vacuum=6), [0, 0, 0]), (lone, [2])]
    graphs = [adsorption_graph(atoms, tags) for atoms, tags in cases]
    graphs[0].note, graphs[1].y = "fields that only some have", 1.0
    single = [predict(model, [graph])[0] for graph in graphs]
    np.testing.assert_allclose(predict(model, graphs, batch_size=3), single, atol=1e-5)
    np.testing.assert_allclose(model(graphs[0]).detach(), single[:1], atol=1e-6)
    assert predict(model, []).shape == (0,)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_leaving_out_what_cannot_reach_the_readout_changes_nothing(monkeypatch, blocks):
    model = make_model(num_blocks=blocks, cutoff=3.0)
    atoms, tags = slab()
    graph = adsorption_graph(atoms.repeat((2, 2, 1)), [1] * 51 + [2], cutoff=3.0)
    pruned = predict(model, [graph])
    monkeypatch.setattr(
        models.networks.dimenet,
        "readout_level",
        lambda readout, edges, depth: torch.zeros_like(readout.long()),
    )
    np.testing.assert_allclose(predict(model, [graph]), pruned, atol=1e-5)


# ---------------------------------------------------------------- smoothness and gradients


def test_smooth_at_the_cutoff(model):
    """Energy and slope are continuous where a neighbour comes into reach."""
    model = make_model().double()

    def pull(distance):
        atoms = Atoms("PtPtH", [[0, 0, 0], [2.7, 0, 0], [0, 0, 1.6]], cell=[30, 30, 30])
        graph = adsorption_graph(atoms, [0, 0, 2], cutoff=8.0)
        graph.pos, graph.cell = graph.pos.double(), graph.cell.double()
        graph.pos[1, 0] = np.sqrt(distance**2 - 1.6**2)  # the second Pt at this distance from H
        pos = graph.pos.requires_grad_()
        out = model(graph)
        return out.item(), torch.autograd.grad(out.sum(), pos)[0][1, 0].item()

    for below, above in [(5 - 1e-4, 5 + 1e-4), (5 - 1e-6, 5 + 1e-6)]:
        (e1, f1), (e2, f2) = pull(below), pull(above)
        assert abs(e1 - e2) < 1e-7 and abs(f1 - f2) < 1e-5
    assert abs(pull(3.0)[0] - pull(4.0)[0]) > 1e-4


def test_gradient_equals_finite_differences():
    model = make_model().double()
    atoms, tags = slab()
    graph = adsorption_graph(atoms, tags)
    graph.cell, graph.pos = graph.cell.double(), graph.pos.double().requires_grad_()
    gradient = torch.autograd.grad(model(graph).sum(), graph.pos)[0]
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient.sum(0), torch.zeros(3).double(), atol=1e-9, rtol=0)
    for atom, axis in [(12, 2), (1, 0)]:
        step = torch.zeros_like(graph.pos)
        step[atom, axis] = 1e-5
        plus, minus = (model(graph.clone().update({"pos": (graph.pos + s).detach()})) for s in (step, -step))
        assert ((plus - minus) / 2e-5).item() == pytest.approx(gradient[atom, axis].item(), abs=1e-6)


def test_straight_angles_have_finite_gradients(model):
    graph = adsorption_graph(
        Atoms("HCH", [[0, 0, 0], [1.1, 0, 0], [2.2, 0, 0]], cell=[15, 15, 15]), [2, 0, 0]
    )
    graph.pos.requires_grad_()
    assert torch.isfinite(torch.autograd.grad(model(graph).sum(), graph.pos)[0]).all()


def test_wrong_graphs_are_refused(model):
    atoms, tags = slab()
    with pytest.raises(ValueError, match="edges end at 4.0"):
        model(adsorption_graph(atoms, tags, cutoff=4.0))
    atoms.numbers[0] = 101
    with pytest.raises(ValueError, match="atomic numbers"):
        model(adsorption_graph(atoms, tags))


def test_checkpoint_round_trip(tmp_path, model):
    save_dimenet(tmp_path / "a.pt", model, epoch=3, note="x")
    graphs = [adsorption_graph(*slab())]
    np.testing.assert_array_equal(predict(load_dimenet(tmp_path / "a.pt"), graphs), predict(model, graphs))
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
    torch.save({"weights": 1}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="no checkpoint"):
        load_dimenet(tmp_path / "b.pt")


def test_ensemble_is_the_mean_and_the_scaled_spread_of_its_members(tmp_path):
    members = [make_model(seed, target_mean=-0.3, target_std=0.7) for seed in range(3)]
    graphs = [adsorption_graph(*slab(seed)) for seed in range(4)]
    save_ensemble(tmp_path / "e.pt", Ensemble(members, spread_scale=1.7))
    loaded = load_dimenet(tmp_path / "e.pt")
    each = np.array([predict(member, graphs) for member in members])
    energies, spreads = predict_spread(loaded, graphs, batch_size=3)
    np.testing.assert_allclose(energies, each.mean(0), atol=1e-6)
    np.testing.assert_allclose(spreads, 1.7 * each.std(0, ddof=1), atol=1e-6)
    np.testing.assert_allclose(predict(loaded, graphs), energies, atol=1e-6)
    assert np.isnan(predict_spread(Ensemble(members[:1]), graphs)[1]).all()


def test_elements_of_one_group_look_alike_before_training():
    torch.manual_seed(0)
    table = ElementEmbedding(8).table
    distance = lambda a, b: float((table[atomic_numbers[a]] - table[atomic_numbers[b]]).norm())
    for a, b, other in [("S", "Se", "Mo"), ("Mo", "W", "O"), ("Ti", "Zr", "F"), ("Na", "K", "Pt")]:
        assert distance(a, b) < 0.5 * distance(a, other)
    assert torch.isfinite(table).all()


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("lmdb") / "h.lmdb"
    metals = ["Pt", "Cu", "Ag", "Au", "Ni", "Pd", "Rh", "Ir", "Al", "Pb"]
    write_lmdb(path, [h_on_metal(m, h, f"{m}{h}") for m in metals for h in (1.2, 1.5, 1.8)])
    return path


TINY = (
    "--hidden-channels 8 --int-emb-size 8 --out-emb-channels 8 --cutoff 3.5 --epochs 3 --batch-size 8".split()
)


def test_resumed_run_equals_uninterrupted_one(tmp_path, records, monkeypatch, capsys):
    def arguments(name):
        return ["--lmdb", str(records), "--out", str(tmp_path / name / "m.pt"), *TINY]

    pretrain_dimenet.main(arguments("whole"))
    real = pretraining.train_epoch

    def interrupted(*args):
        if args[2] == 1:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretraining, "train_epoch", interrupted)
        pretrain_dimenet.main(arguments("parts"))
    pretrain_dimenet.main([*arguments("parts"), "--resume"])
    assert "continuing after epoch 1" in capsys.readouterr().out

    for file in ("m.pt", "m.last.pt"):
        whole, parts = (torch.load(tmp_path / run / file, weights_only=True) for run in ("whole", "parts"))
        assert whole["epoch"] == parts["epoch"]
        for weights in {"state_dict", "raw_model", "average"} & whole.keys():
            for name, value in whole[weights].items():
                torch.testing.assert_close(parts[weights][name], value, rtol=0, atol=0)
    with pytest.raises(ValueError, match="lr was 0.001, is 0.5"):
        pretrain_dimenet.main([*arguments("parts"), "--resume", "--lr", "0.5"])


def test_training_skips_and_counts_what_it_cannot_use(tmp_path, capsys):
    good = [h_on_metal(metal, 1.5, sid) for sid, metal in enumerate(["Pt", "Cu", "Ag", "Au", "Ni", "Pd"])]
    other, overlap, test_split = (h_on_metal("Pt", 1.5, 90 + n) for n in range(3))
    other.atomic_numbers[2] = 8
    overlap.pos[2] = overlap.pos[1] + 0.1
    del test_split.y_relaxed
    write_lmdb(tmp_path / "a.lmdb", [*good, other, overlap, test_split])
    arguments = ["--lmdb", str(tmp_path / "a.lmdb"), "--out", str(tmp_path / "m.pt"), *TINY, "--epochs", "1"]
    pretrain_dimenet.main(arguments)
    out = capsys.readouterr().out
    for said in ("9 records; 6 used", "adsorbate is not hydrogen", "no y_relaxed", "atoms closer than 0.5"):
        assert said in out
    pretrain_dimenet.main([*arguments, "--init", str(tmp_path / "m.pt"), "--adsorbate", "all"])
    assert "9 records; 7 used" in capsys.readouterr().out
    with pytest.raises(ValueError, match="usable records"):
        pretrain_dimenet.main([*arguments, "--start", "relaxed"])


def test_preset_is_overruled_by_flags():
    args = pretrain_dimenet.parse_args(["--lmdb", "x", "--preset", "oc20", "--epochs", "2"])
    assert (args.cutoff, args.blocks, args.epochs, args.target_mean) == (
        6.0,
        3,
        2,
        pytest.approx(-1.526, abs=1e-3),
    )


def run_script(*arguments):
    command = [sys.executable, "pretrain_dimenet.py", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_script_runs_and_resumes(tmp_path, records, capsys):
    arguments = ["--lmdb", records, "--out", tmp_path / "m.pt", *TINY, "--epochs", "1"]
    result = run_script(*arguments)
    assert result.returncode == 0, result.stderr
    pretrain_dimenet.main([*(str(argument) for argument in arguments), "--resume"])
    assert "continuing after epoch 1" in capsys.readouterr().out
    names = {file.name for file in tmp_path.iterdir() if not file.name.startswith(".")}
    assert names == {
        "m.pt",
        "m.last.pt",
        "m.log.csv",
        "m.loss.png",
        "m.metrics.json",
        "m.parity.png",
        "m.config.json",
    }
    assert json.loads((tmp_path / "m.config.json").read_text())["hidden_channels"] == 8
    assert len((tmp_path / "m.log.csv").read_text().splitlines()) == 2


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"no reference data at {SAMPLE} (set HER2D_REFERENCE_DATA)")
def test_one_epoch_on_the_real_sample(tmp_path, capsys):
    flags = "--epochs 1 --hidden-channels 8".split()
    pretrain_dimenet.main(["--lmdb", str(SAMPLE), "--out", str(tmp_path / "m.pt"), *flags])
    said = capsys.readouterr().out
    assert "32 records; 31 used; 1 skipped: atoms closer than 0.5" in said
    assert "31 records have no atom tagged 2" in said and "MAE of the best epoch" in said
    assert load_dimenet(tmp_path / "m.pt").cutoff == 5.0


def labelled(host: str, y: float, rigid: bool = True, seed: int = 0) -> Data:
    graph = adsorption_graph(*slab(seed))
    graph.host, graph.y, graph.rigid = host, y, rigid
    return graph


def test_an_epoch_draws_each_host_alike():
    graphs = [Data(host=host) for host, count in (("a", 1), ("b", 3), ("c", 9)) for _ in range(count)]
    args = pretrain_dimenet.parse_args(["--lmdb", "x", "--per-host", "2"])
    orders = [pretraining.epoch_order(graphs, epoch, args) for epoch in range(20)]
    for order in orders:
        assert len(set(order)) == len(order)
        assert Counter(graphs[index].host for index in order) == {"a": 1, "b": 2, "c": 2}
    assert orders[3] == pretraining.epoch_order(graphs, 3, args)
    assert set().union(*orders) == set(range(13))
    everything = pretraining.epoch_order(
        graphs, 0, pretrain_dimenet.parse_args(["--lmdb", "x", "--per-host", "0"])
    )
    assert sorted(everything) == list(range(13))


def test_report_of_a_surrogate_by_hand():
    """Two hosts; the best site of a is missed by 0.1 eV, that of b by 0.3 eV."""
    train = [labelled("t", y, seed=k) for k, y in enumerate((0.0, 1.0, 2.0, 0.0))]
    test = [labelled("a", 1.0), labelled("a", 0.5), labelled("b", 2.0), labelled("b", -1.0, rigid=False)]
    report = surrogate_report(np.array([1.2, 0.6, 2.3, -1.0]), np.full(4, 0.15), train, test)
    rigid, relaxed = report["rigid"], report["relaxed"]
    assert (rigid["n"], rigid["hosts"], rigid["train_hosts"], relaxed["n"]) == (3, 2, 1, 1)
    assert (
        rigid["mae"] == pytest.approx(0.2)
        and rigid["mae_best_site"] == pytest.approx(0.2)
        and relaxed["mae"] == pytest.approx(0)
    )
    assert rigid["mae_mean"] == pytest.approx((0.25 + 0.25 + 1.25) / 3)
    assert rigid["within_1_spread"] == pytest.approx(1 / 3) and rigid["within_2_spreads"] == 1
    assert surrogate_report(np.zeros(0), np.zeros(0), train, []) == {}


def test_site_features_are_invariant_and_see_the_site():
    atoms, tags = slab()
    reference = site_features(adsorption_graph(atoms, tags))
    turned = atoms.copy()
    turned.rotate(37, "z", rotate_cell=True)
    turned.translate([1.3, -0.4, 0.7])
    order = np.random.default_rng(0).permutation(len(atoms))
    for changed, its_tags in [
        (turned, tags),
        (atoms[order], tags[order]),
        (atoms.repeat((2, 1, 1)), np.tile(tags, 2)),
    ]:
        np.testing.assert_allclose(
            site_features(adsorption_graph(changed, its_tags)), reference, rtol=1e-4, atol=1e-4
        )
    moved = atoms.copy()
    moved.positions[-1] += [0.0, 0.0, 0.5]
    assert not np.allclose(site_features(adsorption_graph(moved, tags)), reference, atol=1e-2)


def test_rigid_records_are_told_from_relaxed_ones():
    tags = torch.tensor([1, 1, 2])
    for fixed, rigid in (([1, 1, 0], True), ([1, 0, 0], False), ([0, 0, 0], False)):
        assert is_rigid(Data(tags=tags, fixed=torch.tensor(fixed))) == rigid
    assert not is_rigid(Data(tags=torch.zeros(3), fixed=torch.zeros(3)))


def test_combined_models_cover_their_validation_error(tmp_path, records, capsys):
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.pt")
        pretrain_dimenet.main(["--lmdb", str(records), "--out", str(paths[-1]), "--seed", str(seed), *TINY])
    pretrain_dimenet.main(
        ["--lmdb", str(records), "--out", str(tmp_path / "e.pt"), "--combine", *map(str, paths)]
    )
    assert "3 members" in capsys.readouterr().out
    ensemble = load_dimenet(tmp_path / "e.pt")
    _, val, _ = split_graphs(read_graphs([records], 3.5))
    energies, spreads = predict_spread(ensemble, val)
    covered = np.mean(np.abs(energies - [graph.y for graph in val]) <= spreads + 1e-6)
    assert abs(covered - 0.683) <= 1 / len(val)


def test_a_loss_that_is_not_finite_is_named_and_the_last_good_weights_stay(
    tmp_path, records, monkeypatch, capsys
):
    """From the second epoch on every prediction is NaN."""
    real, epochs = pretraining.train_epoch, []

    def broken(trainer, *args):
        epochs.append(1)
        if len(epochs) == 2:
            trainer.model.target_mean.fill_(np.nan)
        return real(trainer, *args)

    monkeypatch.setattr(pretraining, "train_epoch", broken)
    with pytest.raises(Diverged, match=r"no step of epoch 2 .*best of 1 epochs is in .*m.pt"):
        pretrain_dimenet.main(["--lmdb", str(records), "--out", str(tmp_path / "m.pt"), *TINY])
    assert "step skipped: loss nan" in capsys.readouterr().out
    assert np.isfinite(predict(load_dimenet(tmp_path / "m.pt"), [adsorption_graph(*slab())])).all()


@pytest.mark.parametrize(
    "wrong",
    ["--epochs 0", "--batch-size -1", "--lr 1e6", "--cutoff nan", "--blocks 0", "--share 0", "--share 2"]
    + ["--per-host -1", "--jitter -1", "--target-std 0", "--hidden-channels 1.5", "--ema 1"],
)
def test_bad_flags_are_refused_by_name(wrong, capsys):
    with pytest.raises(SystemExit):
        pretrain_dimenet.main(["--lmdb", "x", *wrong.split()])
    flag, value = wrong.split()
    assert f"argument {flag}: '{value}' is not" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04K\x01."])
def test_a_broken_checkpoint_is_said_before_any_record_is_read(tmp_path, monkeypatch, content):
    monkeypatch.setattr(pretraining, "read_graphs", lambda *args: pytest.fail("the work began"))
    (tmp_path / "broken.pt").write_bytes(content)
    for flag in ("--init", "--combine"):
        with pytest.raises(ValueError, match="broken.pt"):
            pretrain_dimenet.main(["--lmdb", "x", flag, str(tmp_path / "broken.pt")])
