"""What every script's command line shares."""

import argparse
import csv
import json
import os
from pathlib import Path

import torch


def add_system(parser: argparse.ArgumentParser, out: Path, resume: str):
    """Adds the flags that every script has: --seed --device --threads --out --resume."""
    system = parser.add_argument_group("system")
    system.add_argument("--seed", type=int, default=0, help="seed of everything random")
    system.add_argument("--device", default="auto", help="auto, cpu or cuda")
    system.add_argument("--threads", type=int, default=1, help="CPU threads of torch; one a process is fastest here")
    system.add_argument("--out", type=Path, default=out, help="where the output goes")
    system.add_argument("--resume", action=argparse.BooleanOptionalAction, default=False, help=resume)
    return system


def resolve(args: argparse.Namespace, out_is_file: bool = False) -> argparse.Namespace:
    """Resolves the device, seeds torch, and writes config.json into the output folder, or beside the output file."""
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    folder = args.out.parent if out_is_file else args.out
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{args.out.stem}.config.json" if out_is_file else "config.json"
    write_json(folder / name, plain(vars(args)))
    return args


def plain(values: dict) -> dict:
    """The arguments as plain types, for checkpoints and JSON."""
    convert = lambda v: str(v) if isinstance(v, Path) else [convert(x) for x in v] if isinstance(v, (list, tuple)) else v  # noqa: E731
    return {key: convert(value) for key, value in values.items()}


def write_json(path: Path, content) -> None:
    """Writes JSON by rename; NaN becomes null."""
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(content, default=float)
    content = json.loads(text, parse_constant=lambda name: None if name == "NaN" else float(name))  # "NaN" is also sodium nitride
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def read_rows(path: Path) -> list[dict]:
    """Rows of a CSV, as text."""
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict], columns: list[str]):
    """A CSV of some columns of the rows, by rename."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def save_checkpoint(path: Path, content: dict) -> None:
    """torch.save by rename; plain types and tensors only, to be read with weights_only=True."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)
