"""Flags that scripts share, and what their values may be."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def whole(least: int, most: float = math.inf) -> Callable[[str], int]:
    """Type of a flag: a whole number from `least` to `most`."""
    return _within(int, "a whole number", least, most)


def real(least: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    """Type of a flag: a finite number from `least` to `most`."""
    return _within(float, "a number", least, most)


def _within(kind: type, words: str, least: float, most: float) -> Callable:
    """Parser of a flag's text that refuses NaN, infinity and what lies outside [least, most]."""
    bounds = [f"from {least:g}"] if math.isfinite(least) else []
    bounds += [f"up to {most:g}"] if math.isfinite(most) else []

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is not {' '.join([words, *bounds])}")
        return value

    return parse


def add_system(parser: argparse.ArgumentParser, out: Path, resume: str) -> argparse._ArgumentGroup:
    """Adds the flags that every script has: --seed --device --threads --out --resume."""
    system = parser.add_argument_group("system")
    system.add_argument("--seed", type=whole(0), default=0, help="seed of everything random")
    system.add_argument("--device", default="auto", help="auto, cpu or cuda")
    system.add_argument(
        "--threads", type=whole(1), default=1, help="CPU threads of torch; one a process is fastest here"
    )
    system.add_argument("--out", type=Path, default=out, help="where the output goes")
    system.add_argument("--resume", action=argparse.BooleanOptionalAction, default=False, help=resume)
    return system


def add_optimisation(parser: argparse.ArgumentParser, **defaults) -> argparse._ArgumentGroup:
    """Adds the flags that every training has; the script gives the defaults and says why.

    Args:
        defaults: epochs, lr, warmup, weight_decay, clip, ema.
    """
    group = parser.add_argument_group("optimisation")
    group.add_argument("--epochs", type=whole(1), help="passes over the training set")
    group.add_argument("--lr", type=real(1e-12, 1), help="highest learning rate of AdamW")
    group.add_argument(
        "--warmup", type=real(0, 1), help="share of the steps with a rising learning rate, then a cosine"
    )
    group.add_argument("--weight-decay", type=real(0, 1), help="of AdamW")
    group.add_argument("--clip", type=real(1e-9), help="highest norm of the gradient")
    group.add_argument(
        "--ema", type=real(0, 0.999999), help="decay of the averaged weights (shorter at first)"
    )
    parser.set_defaults(**defaults)
    return group
