"""What every script's command line shares."""

import argparse
from pathlib import Path

import torch

from models.infra.files import plain, write_json


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
