"""Stage 4: real 2D templates + Gaussian noise -> gradient-guided Langevin sampling -> CIFs.

    python structure_generator.py --checkpoint models/weights/best_diffusion_model.pth --num 32 --seed 0 --out results/generated_cifs
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from ase.io import write
from ase.spacegroup.symmetrize import refine_symmetry
from tqdm import tqdm

from models.cli import add_system, plain, resolve
from models.egnn import MASK
from models.graphs import layers_of, to_atoms
from models.layer import extract_layer, reduced_formula
from models.matching import layer_group
from models.sampler import Guide, Sampler, load_generator
from models.shards import Shard, digest, file_hash, pack_atoms, unpack_atoms
from models.templates import Templates, by_substitution, spread, substitute

COLUMNS = ["material_id", "formula", "template", "layer_group", "head_delta_g_h_eV", "head_e_hull_eV_per_atom", "head_p_synth", "kept"]


def start_structures(templates: Templates, args, rng):
    """`--num` templates, those nearest to `--formula` if given, or finished substitutes: list of (name, layer)."""
    if args.method == "substitution":
        return by_substitution(templates, args.num, rng, args.formula)
    if args.method == "held-out":
        return templates.held_out(args.num, rng)
    if args.formula:
        return spread(templates, args.formula, args.num)
    return [templates.draw(rng) for _ in range(args.num)]


def substituted(template, numbers):
    """Template atoms with the elements of `numbers` [N], scaled to the new bond lengths."""
    elements = {old: new for old, new in zip(template.symbols, numbers)}
    return substitute(template, elements)


def diffuse(batch, sampler: Sampler, args):
    """From templates to denoised layers: propose elements, substitute, noise to the level, denoise."""
    start = round(args.noise_level * sampler.diffusion.steps)
    layers = layers_of([atoms for _, atoms in batch]).to(args.device)
    hidden = layers if args.formula else layers.replace(atomic_numbers=torch.where(layers.mask, MASK, 0))
    if start == sampler.diffusion.steps:
        noised, lattice = sampler.prior(hidden)
    else:
        if not args.formula:
            layers = layers_of(propose(batch, hidden, sampler, start, args)).to(args.device)
        noised, lattice = sampler.noised(layers, start)
    return sampler.denoise(noised, lattice, start, args.steps)


def propose(batch, hidden, sampler: Sampler, start: int, args):
    """Templates with elements proposed by the model; of `--proposals` for each, one is drawn with weights exp(−L_target / τ)."""
    candidates = []
    for _ in range(args.proposals):
        noised, lattice = sampler.noised(hidden, start)
        proposed = to_atoms(sampler.propose_elements(noised, lattice, start, args.temperature).to("cpu"))
        candidates.append([substituted(template, atoms.symbols) for (_, template), atoms in zip(batch, proposed)])
    if args.proposals == 1:
        return candidates[0]
    losses = torch.stack([sampler.target_loss(layers_of(found).to(args.device)) for found in candidates], 1).cpu()
    chosen = torch.multinomial((-losses / args.tau).softmax(1), 1, generator=sampler.generator)[:, 0].tolist()
    return [candidates[k][row] for row, k in enumerate(chosen)]


def random_null(batch, templates: Templates, rng):
    """The null without a model: every slot of a random template gets a random element of the database."""
    elements = templates.elements()
    for _, atoms in batch:
        old = sorted(set(atoms.symbols))
        yield substitute(atoms, dict(zip(old, rng.choice(elements, len(old), replace=False))))


def presentable(atoms, symprec: float):
    """The layer in the convention, symmetrised within `symprec` Å where that leaves it intact."""
    try:
        atoms = extract_layer(atoms).atoms
        symmetric = atoms.copy()
        refine_symmetry(symmetric, symprec=symprec)
        return extract_layer(symmetric).atoms
    except Exception:  # no layer, or no symmetry found: written as it came
        return atoms


@torch.no_grad()
def head_properties(model, structures, device):
    """The guide's own opinion [n, 3] of finished structures: ΔG_H eV, E_hull eV/atom, P_synth."""
    layers = layers_of(structures).to(device)
    out = model.properties(layers, torch.zeros(len(layers), device=device)).cpu()
    return torch.cat([out[:, :2], out[:, 2:].sigmoid()], -1)


def guide_of(args) -> Guide:
    """What the flags ask to steer towards."""
    return Guide(args.cfg_scale, args.gradient_scale, args.target_delta_g, args.max_e_hull, args.synthesizable)


def generate(batch, first: int, model, diffusion, templates, args):
    """Structures of a batch and the heads' opinion of each; seeded by the batch, so that an interruption changes nothing."""
    if model is None:
        random = args.method == "random"
        structures = random_null(batch, templates, np.random.default_rng([args.seed, first])) if random else (atoms for _, atoms in batch)
        return list(structures), [["", "", ""]] * len(batch)
    generator = torch.Generator().manual_seed(args.seed * 1_000_003 + first)
    layers = diffuse(batch, Sampler(model, diffusion, guide_of(args), generator, args.noise_scale, args.corrector), args)
    structures = [presentable(atoms, args.symprec) for atoms in to_atoms(layers.to("cpu"))]
    return structures, [[f"{x:.4f}" for x in row] for row in head_properties(model, structures, args.device).tolist()]


def best(found: list[dict], count: int, guide: Guide) -> set[int]:
    """Which of the structures have the lowest L_target by the heads on the finished structure."""
    losses = guide.loss(torch.tensor([[float(x) for x in row["heads"]] for row in found]))
    return set(losses.argsort()[:count].tolist())


def write_cifs(found: list[dict], kept: set[int], out: Path):
    """One CIF for each structure that is kept, and generated.csv with all of them; CIFs of an earlier run are removed."""
    for stale in out.glob("gen_*.cif"):
        stale.unlink()
    rows = []
    for k, row in enumerate(found):
        atoms = unpack_atoms(row["atoms"])
        formula = reduced_formula(atoms)
        identity = f"gen_{k:04d}_{atoms.get_chemical_formula(empirical=True)}"  # no brackets in a file's name
        rows.append(dict(zip(COLUMNS, [identity, formula, row["template"], layer_group(atoms), *row["heads"], k in kept])))
        if k in kept:
            write(out / f"{identity}.cif", atoms)
    temporary = out / "generated.csv.tmp"
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(out / "generated.csv")
    print(f"{len(kept)} of {len(rows)} structures as CIFs in {out}, {len({row['formula'] for row in rows if row['kept']})} formulas")


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--db", type=Path, default=Path("data/her2d.db"), help="ASE database that the templates come from")
    data.add_argument("--formula", help="fix the composition, e.g. MoS2")
    data.add_argument("--template", help="only templates of this prototype")
    data.add_argument("--num-atoms", type=int, help="only templates with so many atoms")
    data.add_argument("--num", type=int, default=32, help="structures to make")
    data.add_argument("--keep", type=int, default=0, help="write the CIFs of so many only, lowest L_target by the heads; 0 for all")
    model = parser.add_argument_group("model")
    model.add_argument("--method", choices=("diffusion", "random", "substitution", "held-out"), default="diffusion",
                       help="without a model: random elements in a random template, or related ones in the nearest (two nulls); or "
                            "real layers of the test split (the ceiling)")  # fmt: skip
    model.add_argument("--checkpoint", type=Path, default=Path("models/weights/best_diffusion_model.pth"), help="from stage 3")
    model.add_argument("--noise-level", type=float, default=0.5, help="t0 in (0, 1] that templates are noised to; 1 is pure noise")
    model.add_argument("--steps", type=int, default=50, help="denoising updates")
    model.add_argument("--noise-scale", type=float, default=0.0, help="factor on the noise ζ of each update; 1 is the exact sampler")
    model.add_argument("--corrector", type=int, default=0, help="Langevin steps after each update, each as dear as an update")
    model.add_argument("--temperature", type=float, default=1.0, help="of the element proposals")
    guide = parser.add_argument_group("guidance")
    guide.add_argument("--gradient-scale", type=float, default=1.0, help="η of the gradient of L_target, 0 for none")
    guide.add_argument("--proposals", type=int, default=8, help="element proposals a structure, one taken by exp(−L_target/τ); 1: unguided")
    guide.add_argument("--tau", type=float, default=0.1, help="τ of that choice, eV")
    guide.add_argument("--cfg-scale", type=float, default=1.0, help="s of classifier-free guidance, 0 for unconditional")
    guide.add_argument("--target-delta-g", type=float, default=0.0, help="ΔG_H to aim at, eV")
    guide.add_argument("--max-e-hull", type=float, default=0.0, help="E_hull to stay below, eV/atom")
    guide.add_argument("--synthesizable", action=argparse.BooleanOptionalAction, default=True, help="ask for layers that can be made")
    parser.add_argument("--batch-size", type=int, default=64, help="structures at a time")
    parser.add_argument("--symprec", type=float, default=0.1, help="tolerance in Å for writing a structure symmetrised")
    add_system(parser, out=Path("results/generated_cifs"), resume="keep the CIFs of batches that are already in OUT")
    return parser


def main():
    args = resolve(build_parser().parse_args())
    if not 0 < args.noise_level <= 1:
        raise SystemExit(f"--noise-level {args.noise_level} is outside (0, 1]")
    templates = Templates.read(args.db).select(args.formula, args.template, args.num_atoms)
    rng = np.random.default_rng(args.seed)
    if args.keep and args.method != "diffusion":
        raise SystemExit(f"--keep {args.keep} ranks by the model's heads, which --method {args.method} has none of")
    starts = start_structures(templates, args, rng)
    model, diffusion = load_generator(args.checkpoint, args.device) if args.method == "diffusion" else (None, None)

    relevant = {name: value for name, value in plain(vars(args)).items() if name not in ("out", "resume", "threads", "device", "keep")}
    identity = digest(json.dumps(relevant) + (file_hash(args.checkpoint) if model else ""))
    shard = Shard(args.out / "generated.jsonl", args.resume)
    for first in tqdm(range(0, args.num, args.batch_size), desc="batches"):
        batch = starts[first : first + args.batch_size]
        if f"{identity}:{first + len(batch) - 1}" in shard.rows:
            continue
        structures, heads = generate(batch, first, model, diffusion, templates, args)
        for k, (atoms, (name, _), head) in enumerate(zip(structures, batch, heads), first):
            shard.append(f"{identity}:{k}", {"atoms": pack_atoms(atoms), "template": name, "heads": head})
    found = [shard.rows[f"{identity}:{k}"] for k in range(args.num)]
    write_cifs(found, best(found, args.keep, guide_of(args)) if args.keep else set(range(args.num)), args.out)


if __name__ == "__main__":
    main()
