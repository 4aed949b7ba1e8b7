"""What every script's command line shares."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch

from models.infra.files import plain, write_json


def number(
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    kind: type = float,
) -> Callable[[str], float]:
    """An argparse type: a finite number between two limits, which belong to the range unless they are open."""

    def read(text: str) -> float:
        try:
            value = kind(text)
            finite = math.isfinite(value)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text!r} is no {read.__name__}") from None
        below = value <= low if open_low else value < low
        above = value >= high if open_high else value > high
        if below or above or not finite:
            raise argparse.ArgumentTypeError(f"{text} is outside {limits}")
        return value

    read.__name__ = "whole number" if kind is int else "number"  # argparse prints it
    limits = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    return read


def whole(low: int) -> Callable[[str], float]:
    """An argparse type: a whole number, at least `low`."""
    return number(low, kind=int)


def add_system(parser: argparse.ArgumentParser, out: Path, resume: str):
    """Adds the flags that every script has: --seed --device --threads --out --resume."""
    system = parser.add_argument_group("system")
    system.add_argument("--seed", type=int, default=0, help="seed of everything random")
    system.add_argument("--device", default="auto", help="auto, cpu or cuda")
    system.add_argument(
        "--threads", type=int, default=1, help="CPU threads of torch; one a process is fastest here"
    )
    system.add_argument("--out", type=Path, default=out, help="where the output goes")
    system.add_argument("--resume", action=argparse.BooleanOptionalAction, default=False, help=resume)
    return system


def resolve(args: argparse.Namespace, out_is_file: bool = False) -> argparse.Namespace:
    """Resolves the device, seeds torch, and writes config.json into the output folder, or beside the output
    file.
    """
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    folder = args.out.parent if out_is_file else args.out
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{args.out.stem}.config.json" if out_is_file else "config.json"
    write_json(folder / name, plain(vars(args)))
    return args
