"""Flags that every script has, and what their values may be."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path


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
