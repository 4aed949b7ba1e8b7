"""The arms of the study of the gradient on the elements, drawn and judged."""

import argparse
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

from models.crystals.elements import choose_elements
from models.crystals.templates import Templates
from models.evaluation.metrics import flat, interval, markdown
from models.evaluation.rows import write_table
from models.infra.files import write_text
from models.networks.delta_g import predict_delta_g
from models.networks.dimenet import load_dimenet
from models.networks.egnn import Heads
from models.networks.proposals import fitting, head_properties, propose, recipe, start_structures
from models.networks.sampler import Sampler, load_generator
from models.networks.settings import GeneratorSettings, Guide

UNGUIDED = dict(cfg_scale=0.0)
ARMS = {  # settings, guide
    "unguided": (dict(proposals=1), UNGUIDED),
    "CFG": (dict(proposals=1), {}),
    "best of 32": (dict(proposals=32), UNGUIDED),
    "best of 32, CFG (default)": (dict(proposals=32), {}),
    "gradient, η = 3": (dict(proposals=1), UNGUIDED | dict(element_gradient=3.0)),
    "gradient, η = 10": (dict(proposals=1), UNGUIDED | dict(element_gradient=10.0)),
    "gradient, η = 30": (dict(proposals=1), UNGUIDED | dict(element_gradient=30.0)),
    "gradient, η = 10, CFG": (dict(proposals=1), dict(element_gradient=10.0)),
    "gradient, η = 10, 4 Gibbs steps": (dict(proposals=1, gibbs=4), UNGUIDED | dict(element_gradient=10.0)),
    # about the cost of the default
    "gradient, η = 10, CFG, best of 16": (dict(proposals=16), dict(element_gradient=10.0)),
}


def drawn(
    settings: GeneratorSettings, templates: Templates, trained: tuple, count: int
) -> tuple[list, float]:
    """`count` starts with the elements that an arm proposes, and its function evaluations a structure."""
    starts = start_structures(templates, count, settings, np.random.default_rng(settings.seed))
    found, evaluations, taken = [], 0, set()
    for first in range(0, count, settings.batch_size):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + first)
        sampler = Sampler(*trained, settings, generator)
        start = round(settings.noise_level * trained[1].steps)
        chosen = propose(starts[first : first + settings.batch_size], sampler, start, taken)
        found, evaluations = found + chosen, evaluations + sampler.nfe
        taken |= {recipe(start) for start in chosen}
    return found, evaluations / count


def judged(found: list, evaluations: float, model, dimenet, seed: int) -> dict:
    """Figures of one arm."""
    structures = [atoms for _, atoms in found]
    heads = Heads(*head_properties(model, structures).T)
    guide = Guide()
    entries = {
        "function evaluations": {"value": evaluations, "ci95": [None, None], "n": len(found)},
        "L_target by the heads (eV)": interval(guide.loss(heads).numpy(), seed),
        "|ΔG_H| by the heads (eV)": interval(heads.delta_g_h.abs().numpy(), seed),
        "E_hull by the head (eV/atom)": interval(heads.e_hull.numpy(), seed),
        "different recipes": interval(_first_of_its_kind(found), seed, rate=True),
    }
    if dimenet is not None:
        named = [(str(k), atoms) for k, atoms in enumerate(structures)]
        said = [answer for _, answer in predict_delta_g(dimenet, named)]
        values = np.array([abs(answer["delta_g_h"]) for answer in said if "delta_g_h" in answer])
        entries["|ΔG_H| by DimeNet++ (eV)"] = interval(values, seed)
        entries["|ΔG_H| ≤ 0.2 eV by DimeNet++"] = interval((values <= 0.2).astype(float), seed, rate=True)
    return entries


def _first_of_its_kind(found: list) -> np.ndarray:
    seen, first = set(), []
    for start in found:
        first.append(float(recipe(start) not in seen))
        seen.add(recipe(start))
    return np.array(first)


def run(args: argparse.Namespace) -> None:
    """The study; args are the parsed flags."""
    torch.set_num_threads(1)
    trained = load_generator(args.checkpoint)
    dimenet = None if args.only_heads else load_dimenet(args.dimenet)
    database = Templates.read(args.db)
    elements = frozenset(choose_elements("benign", "", database.elements()))
    templates, tables = fitting(database, elements), {}
    for name, (changes, guide) in tqdm(ARMS.items(), desc="arms"):
        settings = GeneratorSettings(
            seed=args.seed, guide=replace(Guide(elements=elements), **guide), **changes
        )
        found, evaluations = drawn(settings, templates, trained, args.num)
        tables[name] = judged(found, evaluations, trained[0], dimenet, args.seed)
        write_text(args.out / "table.md", markdown(tables) + "\n")
    write_table(args.out / "table.csv", flat(tables), ["set", "metric", "value", "low95", "high95", "n"])
    print(markdown(tables))
