"""The training toolkit: averaged weights, learning rate, the check of --resume, and what ends a training."""

import argparse
import copy
import math

import pytest
import torch
from torch import nn

from models.infra.cli import add_optimisation
from models.infra.files import load_checkpoint, read_rows
from models.networks.training import (
    LAST_RATE,
    PATIENCE,
    Diverged,
    Trainer,
    averaged,
    last_checkpoint,
    refuse_other_arguments,
    warmup_cosine,
)

DEFAULTS = dict(epochs=3, lr=0.1, warmup=0.0, weight_decay=0.0, clip=1.0, ema=0.9)


def test_average_is_the_hand_written_recursion():
    """e <- e + (1 - min(decay, (1 + k) / (10 + k))) (w - e), from the initial weights on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    expected = copy.deepcopy(model)
    average = averaged(model, 0.6)
    for step in range(20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
            model[1].running_mean += 1.0
            for kept, parameter in zip(expected.parameters(), model.parameters()):
                kept.lerp_(parameter, 1 - min(0.6, (1 + step) / (10 + step)))
        average.update_parameters(model)
    for kept, parameter in zip(expected.parameters(), average.module.parameters()):
        torch.testing.assert_close(parameter, kept, rtol=0, atol=0)
        assert not parameter.requires_grad
    assert torch.equal(average.module[1].running_mean, model[1].running_mean)


@pytest.mark.parametrize("warmup, total", [(1, 10), (5, 40), (0, 8)])
def test_learning_rate_is_torchs_cosine_after_a_linear_rise(warmup, total):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min=0.3 * LAST_RATE)
    rates = [0.3 * warmup_cosine(step, warmup, total) for step in range(total + 5)]
    assert rates[:warmup] == pytest.approx([0.3 * (k + 1) / warmup for k in range(warmup)])
    for rate in rates[warmup:total]:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        cosine.step()
    assert rates[total:] == pytest.approx([0.3 * LAST_RATE] * 5)  # batches beyond the estimate


def arguments(out, **changes) -> argparse.Namespace:
    given = {**DEFAULTS, "out": out, "resume": False, "device": "cpu", "threads": 1, "data": "a", **changes}
    return argparse.Namespace(**given)


def make(args, data="content", model=None) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(3, 1) if model is None else model
    return Trainer(model, args, 4, lambda average: {"model": average.state_dict()}, data)


def train(trainer: Trainer, until: int = 99) -> None:
    for epoch in trainer.epochs():
        if epoch == until:
            return
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(4):
            x = torch.randn(5, 3, generator=generator)
            trainer.step(((trainer.model(x) - x.sum(1, keepdim=True)) ** 2).mean(), "five")
        with torch.no_grad():
            loss = float((trainer.average.module.weight - 1).square().sum())
        trainer.end_epoch({"val": loss}, judged_by="val")


def test_a_continued_training_is_the_whole_one_to_the_bit(tmp_path):
    train(make(arguments(tmp_path / "whole.pt")))
    train(make(arguments(tmp_path / "parts.pt")), until=1)
    (tmp_path / "parts.log.csv").unlink()  # killed between the checkpoint and the log
    train(make(arguments(tmp_path / "parts.pt", resume=True)))
    whole, parts = (load_checkpoint(last_checkpoint(tmp_path / f"{n}.pt")) for n in ("whole", "parts"))
    assert whole["history"] == parts["history"]
    for key in ("raw_model", "average", "model"):
        for name, value in whole[key].items():
            assert torch.equal(parts[key][name], value)
    assert (tmp_path / "whole.log.csv").read_text() == (tmp_path / "parts.log.csv").read_text()
    assert [row["epoch"] for row in read_rows(tmp_path / "parts.log.csv")] == ["1", "2", "3"]
    assert not list(tmp_path.glob("*tmp*"))


def test_a_whole_training_resumed_only_mends_its_log(tmp_path):
    train(make(arguments(tmp_path / "m.pt")))
    log = (tmp_path / "m.log.csv").read_text()
    (tmp_path / "m.log.csv").write_text("\n".join(log.splitlines()[:3]) + "\n")
    train(make(arguments(tmp_path / "m.pt", resume=True)))
    assert (tmp_path / "m.log.csv").read_text() == log


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"lr": 0.2}, "lr was 0.1, is 0.2"),
        ({"data": "b"}, "data was 'a', is 'b'"),
        ({"seed": 1}, "seed was None, is 1"),
        ({"epochs": 5, "clip": 2.0}, "epochs was 3, is 5, clip was 1.0, is 2.0"),
    ],
)
def test_resume_refuses_other_arguments_and_names_them(tmp_path, changes, said):
    train(make(arguments(tmp_path / "m.pt")), until=1)
    args = arguments(tmp_path / "m.pt", resume=True, **changes)
    with pytest.raises(ValueError, match=said):
        refuse_other_arguments(args)
    with pytest.raises(ValueError, match=said):
        make(args)
    refuse_other_arguments(arguments(tmp_path / "m.pt", **changes))  # without --resume it starts anew
    refuse_other_arguments(arguments(tmp_path / "m.pt", resume=True, device="cuda", threads=7))


def test_resume_refuses_other_data_under_the_same_name(tmp_path):
    train(make(arguments(tmp_path / "m.pt")), until=1)
    with pytest.raises(ValueError, match="content of the data was 'content', is 'other'"):
        make(arguments(tmp_path / "m.pt", resume=True), data="other")


def test_a_broken_state_is_said(tmp_path):
    args = arguments(tmp_path / "m.pt", resume=True)
    refuse_other_arguments(args)  # there is none: the training starts
    for content in (b"", b"PK\x03\x04 no zip", b"\x80\x04K\x01."):
        last_checkpoint(args.out).write_bytes(content)
        with pytest.raises(ValueError, match="m.last.pt is .* remove it"):
            refuse_other_arguments(args)
    torch.save({"epoch": 3}, last_checkpoint(args.out))
    with pytest.raises(ValueError, match="m.last.pt is no state"):
        refuse_other_arguments(args)


def test_a_bad_batch_costs_a_step_and_is_named(tmp_path, capsys):
    trainer = make(arguments(tmp_path / "m.pt", clip=0.5))
    for epoch in trainer.epochs():
        before = trainer.model.weight.clone()
        assert not trainer.step(trainer.model.weight.sum() * math.nan, "MoS2, WSe2")
        assert torch.equal(trainer.model.weight, before)
        assert trainer.step((10 * trainer.model.weight.sum()) ** 2 + 1, "big")
        assert not torch.equal(trainer.model.weight, before)
        trainer.end_epoch({"val": 1.0 / (1 + epoch)}, judged_by="val")
    assert "batch of MoS2, WSe2" in capsys.readouterr().out
    rows = read_rows(tmp_path / "m.log.csv")
    assert [(row["capped_steps"], row["skipped_steps"]) for row in rows] == [("1", "1")] * 3


def test_weights_that_run_away_end_the_training_and_the_last_good_ones_stay(tmp_path):
    args = arguments(tmp_path / "m.pt")
    trainer = make(args)
    train(trainer, until=1)
    kept = args.out.read_bytes()
    with pytest.raises(Diverged, match=r"diverged: 10 steps in a row .*best of 1 epochs is in .*--lr"):
        for _ in range(PATIENCE):
            trainer.step(trainer.model.weight.sum() * math.inf, "x")
    with pytest.raises(Diverged, match="no step of epoch 2"):
        trainer.end_epoch({"val": 0.1}, judged_by="val")
    trainer.steps += 1  # one step of the epoch was good, yet the averaged weights are not
    with pytest.raises(Diverged, match="val is nan after epoch 2"):
        trainer.end_epoch({"val": math.nan}, judged_by="val")
    assert args.out.read_bytes() == kept and len(read_rows(tmp_path / "m.log.csv")) == 1


def test_nothing_is_called_best_that_was_never_finite(tmp_path):
    trainer = make(arguments(tmp_path / "m.pt"))
    with pytest.raises(Diverged, match="no epoch was finished, so no checkpoint was written"):
        trainer.end_epoch({"val": math.nan}, judged_by="val")
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize(
    "flags",
    ["--epochs 0", "--epochs 1.5", "--lr 0", "--lr nan", "--lr 1e6", "--lr -1", "--warmup 2", "--clip 0"]
    + ["--clip inf", "--ema 1", "--ema -0.1", "--weight-decay nan", "--epochs 1e400"],
)
def test_bad_flags_are_refused_by_name(flags, capsys):
    parser = argparse.ArgumentParser()
    add_optimisation(parser, **DEFAULTS)
    assert parser.parse_args([]).lr == 0.1
    with pytest.raises(SystemExit):
        parser.parse_args(flags.split())
    flag, value = flags.split()
    assert f"argument {flag}: '{value}' is not" in capsys.readouterr().err
