"""What the trainings of stages 1 and 3 share: files, learning rate, averaged weights, checkpoints.

A training writes beside OUT = m.pth, each file by rename:

    m.pth             averaged weights of the epoch with the least validation loss
    m.last.pth        weights, optimiser and history after the last epoch, for --resume
    m.log.csv         a row an epoch
    m.metrics.json    errors on the test split
    m.config.json     the arguments
"""

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from models.infra.files import UnreadableFile, load_checkpoint, plain, save_checkpoint, write_rows

LAST_RATE = 0.01  # of the highest learning rate, at the end of the cosine: small enough to settle, never zero
# Steps in a row without a finite gradient that end a training: one bad batch costs one step, weights that
# have run away never come back
PATIENCE = 10
# Arguments that change nothing of the result, and may differ between a run and its continuation
RUN_ONLY = {"resume", "device", "threads", "out", "figure", "plot"}


class Diverged(RuntimeError):
    """The weights have run away; the message says what was kept and what to change."""


def beside(out: Path, ending: str) -> Path:
    """The file of a training that stands beside OUT: m.pth and ".log.csv" give m.log.csv."""
    return out.with_suffix(ending)


def last_checkpoint(out: Path) -> Path:
    """m.last.pth of m.pth."""
    return beside(out, f".last{out.suffix}")


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Share of the highest learning rate at a step: a linear rise, then half a cosine down to LAST_RATE."""
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(1, total - warmup), 1.0)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a model's weights, which begins with the model as it is.

    The decay of the n-th update is min(decay, n / (n + 9)), or a short run
    would never leave its random start.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], parameters: list[Tensor], count: Tensor) -> None:
        share = 1 - min(decay, int(count) / (int(count) + 9))
        for average, parameter in zip(averages, parameters):
            average.lerp_(parameter, share)

    average = AveragedModel(model, multi_avg_fn=update).requires_grad_(False)
    average.n_averaged.fill_(1)  # the initial weights count; torch would overwrite them by the first step's
    return average


def run_arguments(args: argparse.Namespace) -> dict:
    """The arguments that must not change between a run and its continuation."""
    return {name: value for name, value in plain(vars(args)).items() if name not in RUN_ONLY}


def check_same_run(before: dict, now: dict) -> None:
    """The one check of --resume.

    Raises:
        ValueError: An argument differs; the line names it and both values.
    """
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        what = ", ".join(f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in changed)
        raise ValueError(
            f"--resume continues a run with the same arguments, but {what}; give the same, or another --out"
        )


def read_last(out: Path, device: str = "cpu") -> dict | None:
    """The state that an interrupted training left beside OUT; None where there is none.

    Raises:
        UnreadableFile: The file is no such state.
    """
    path = last_checkpoint(out)
    if not path.is_file():
        return None
    try:
        saved = load_checkpoint(path, device)
    except UnreadableFile as error:
        raise UnreadableFile(f"{error}; remove it to start anew") from None
    needed = {"run", "raw_model", "average", "optimizer", "scheduler", "history"}
    if not isinstance(saved, dict) or not needed <= saved.keys():
        raise UnreadableFile(f"{path} is no state of a training of this version: remove it to start anew")
    return saved


def refuse_other_arguments(args: argparse.Namespace) -> None:
    """Checks the arguments of a run with --resume before anything else is read or written.

    Raises:
        ValueError: as check_same_run and read_last.
    """
    saved = read_last(args.out) if args.resume else None
    if saved:
        check_same_run(saved["run"], run_arguments(args))


class Trainer:
    """Optimiser, learning rate, averaged weights, checkpoints and log of one training.

    Attributes:
        average: AveragedModel; `average.module` is what is validated and kept.
        history: a row an epoch, as in the log.
        device: of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        args: argparse.Namespace,
        steps_per_epoch: int,
        content: Callable[[nn.Module], dict],
        data: str,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        """Start a training, or continue one with args.resume.

        Args:
            model: On its device; its parameters that require a gradient are trained.
            args: The flags of `models.infra.cli.add_optimisation`, and out, resume, device.
            steps_per_epoch: About how many steps an epoch has: the cosine ends with the last.
            content: From the averaged model to what its checkpoint holds.
            data: Digest of what is trained on.
            betas: Of AdamW.

        Raises:
            ValueError: args.resume, and the earlier run had other arguments or other data.
        """
        self.model, self.args, self.content = model, args, content
        self.run = run_arguments(args) | {"content of the data": data}
        self.average = averaged(model, args.ema)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=args.lr, betas=betas, weight_decay=args.weight_decay
        )
        total = args.epochs * steps_per_epoch
        warmup = round(args.warmup * total)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step, warmup, total)
        )
        self.history: list[dict] = []
        self.steps = self.capped = self.skipped = self.in_a_row = 0
        saved = read_last(args.out, args.device) if args.resume else None
        if saved:
            self._continue(saved)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _continue(self, saved: dict) -> None:
        check_same_run(saved["run"], self.run)
        self.model.load_state_dict(saved["raw_model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        self.history = saved["history"]
        self.write_log()  # a run killed between its checkpoint and its log lacks the last row
        print(f"continuing after epoch {len(self.history)}")

    def epochs(self) -> Iterator[int]:
        """Numbers of the epochs to do, from 0; the counts of `step` begin anew with each."""
        for epoch in range(len(self.history), self.args.epochs):
            self.steps = self.capped = self.skipped = 0
            yield epoch

    def step(self, loss: Tensor, batch: str) -> bool:
        """One step of the optimiser, unless the loss or its gradient is not finite.

        Args:
            loss: Scalar.
            batch: Names of the structures in it, for the message.

        Returns:
            Whether the step was taken.

        Raises:
            Diverged: PATIENCE steps in a row had no finite gradient.
        """
        self.optimizer.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip))
        self.steps += 1
        taken = math.isfinite(norm) and bool(torch.isfinite(loss))
        if taken:
            self.optimizer.step()
            self.capped += norm > self.args.clip
            self.in_a_row = 0
        else:
            self.skipped += 1
            self.in_a_row += 1
            tqdm.write(
                f"step skipped: loss {loss.item():g}, norm of its gradient {norm:g}, in the batch of {batch}"
            )
            if self.in_a_row == PATIENCE:
                self._diverged(f"{PATIENCE} steps in a row have no finite gradient")
        self.scheduler.step()
        self.average.update_parameters(self.model)
        return taken

    def end_epoch(self, row: dict[str, float], judged_by: str) -> bool:
        """Writes the checkpoints and the log.

        Args:
            row: Figures of the epoch.
            judged_by: Name of the figure that the best epoch has the least of.

        Returns:
            Whether this epoch is the best so far.

        Raises:
            Diverged: No step was taken, or the validation loss is not finite; what was written before stays.
        """
        if self.steps and self.skipped == self.steps:
            self._diverged(f"no step of epoch {len(self.history) + 1} has a finite gradient")
        if not math.isfinite(row[judged_by]):
            self._diverged(f"{judged_by} is {row[judged_by]:g} after epoch {len(self.history) + 1}")
        best = all(row[judged_by] < earlier[judged_by] for earlier in self.history)
        counts = {
            "lr": self.optimizer.param_groups[0]["lr"],
            "capped_steps": self.capped,
            "skipped_steps": self.skipped,
        }
        self.history.append({"epoch": len(self.history) + 1, **row, **counts})
        progress = {"epoch": len(self.history), "args": plain(vars(self.args)), "history": self.history}
        content = self.content(self.average.module) | progress
        if best:
            save_checkpoint(self.args.out, content)
        training = {
            "raw_model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "run": self.run,
        }
        save_checkpoint(last_checkpoint(self.args.out), content | training)
        self.write_log()
        return best

    def counts(self) -> str:
        """How many steps of the epoch had their gradient capped or were left out, for the line an epoch."""
        return f"{self.capped} of {self.steps} gradients capped, {self.skipped} steps skipped (not finite)"

    def write_log(self) -> None:
        """OUT.log.csv, whole."""
        write_rows(beside(self.args.out, ".log.csv"), self.history, list(self.history[-1]))

    def _diverged(self, what: str) -> None:
        kept = f"the best of {len(self.history)} epochs is in {self.args.out}"
        if not self.history:
            kept = "no epoch was finished, so no checkpoint was written"
        raise Diverged(
            f"the training diverged: {what}; {kept}. Use a lower --lr (now {self.args.lr:g}) or "
            f"--clip (now {self.args.clip:g}), or look at the structures of the batches named above"
        )
