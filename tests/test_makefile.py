"""Every recipe of the Makefile, expanded without being run: the scripts it names parse the flags it gives."""

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from models.infra.files import ROOT

RECIPES = "run retrain dimenet data nulls benchmark-generator study gates".split()
COMMAND = re.compile(r"\.venv/bin/python (-m \S+|\S+\.py)([^;|&\n]*)")


def commands(target: str) -> list[tuple[str, list[str]]]:
    """(module, arguments) of every Python command that `make target` would run."""
    made = subprocess.run(
        ["make", "-n", "--assume-old=.venv/installed", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = []
    for script, flags in COMMAND.findall(made.stdout.replace("\\\n", " ")):
        module = script.removeprefix("-m ").removesuffix(".py")
        found.append((module, shlex.split(flags.replace("$seed", "0"))))
    return found


class Parsed(Exception):
    """A script got as far as its flags."""


@pytest.fixture
def parse(monkeypatch):
    """Runs a module's main up to the end of its parsing; returns its arguments."""
    real = argparse.ArgumentParser.parse_args

    def stop(parser, args=None, namespace=None):
        raise Parsed(real(parser, args, namespace))

    def run(module: str, flags: list[str]) -> argparse.Namespace:
        try:
            script = importlib.import_module(f"{module}.__main__")
        except ModuleNotFoundError:
            script = importlib.import_module(module)
        monkeypatch.setattr(sys, "argv", [module, *flags])
        with pytest.raises(Parsed) as parsed:
            script.main()
        return parsed.value.args[0]

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    return run


@pytest.mark.parametrize("target", RECIPES)
def test_scripts_parse_the_flags_of_the_recipe(target, parse):
    found = commands(target)
    assert found, f"make {target} runs no Python"
    for module, flags in found:
        if module in ("ruff", "pytest"):
            continue
        args = parse(module, flags)
        given = {flag.split("=")[0].strip("-").replace("-", "_") for flag in flags if flag.startswith("--")}
        negated = {name.removeprefix("no_") for name in given}
        assert negated <= vars(args).keys() | {"no_" + name for name in vars(args)}, module
        for value in flags:  # embedded data that a recipe names is there
            if value.startswith("data/") and Path(value).suffix in (".db", ".lmdb"):
                assert (ROOT / value).exists(), f"make {target}: {value} is missing"


def test_no_two_trainings_of_a_recipe_write_the_same_file(parse):
    """Six trainings and their ensemble: each has its own OUT, so its own log, metrics and config."""
    outs = []
    for seed in range(3):
        for module, flags in commands("dimenet"):
            flags = [flag.replace("_0.pt", f"_{seed}.pt") for flag in flags]
            outs.append(parse(module, flags).out)
    stems = {out.with_suffix("") for out in outs}
    assert len(stems) == 7


def test_every_target_is_declared_and_explained():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):(?!=)", text, re.M))
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split())
    assert targets == phony
    assert set(RECIPES) <= phony
