"""Stage 4: real 2D templates + Gaussian noise -> gradient-guided Langevin sampling -> CIFs.

python structure_generator.py --checkpoint models/weights/best_diffusion_model.pth --num 32 --seed 0 --out
results/generated_cifs
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from ase.io import write
from ase.spacegroup.symmetrize import refine_symmetry
from tqdm import tqdm

from models.crystals.layer import extract_layer, pack_atoms, reduced_formula, unpack_atoms
from models.crystals.matching import layer_group
from models.crystals.templates import Templates, by_substitution, spread, substitute
from models.evaluation.metrics import pareto_front
from models.evaluation.settings import Settings
from models.evaluation.tasks import RELAXATION, computed, relax_one
from models.infra.cli import add_system
from models.infra.files import digest, file_hash, plain, write_rows
from models.infra.runs import resolve, run_script
from models.infra.shards import Shard
from models.networks.egnn import Heads
from models.networks.layers import MASK, layers_of, to_atoms
from models.networks.sampler import Guide, Sampler, load_generator
from models.physics.potentials import load_potential

HEADS = ["head_delta_g_h_eV", "head_e_hull_eV_per_atom", "head_p_synth", "head_delta_g_h_std_eV"]
COLUMNS = ["material_id", "formula", "template", "layer_group", *HEADS, "pareto", "kept", "nfe", "seconds"]
AFTER = {
    "out",
    "resume",
    "threads",
    "device",
    "refine",
    "potential",
    "potential_checkpoint",
    "jobs",
}  # change no structure
UNSURE = 0.5  # eV of the members' spread beyond which ΔG_H is said to be a guess


def start_structures(templates: Templates, count: int, args, rng):
    """What each of `count` structures may start from: a list of (name, layer) for each, `--templates` long
    where the model chooses.
    """
    if args.method == "substitution":
        found = by_substitution(templates, count, rng, args.formula)
    elif args.method == "held-out":
        found = templates.held_out(count, rng)
    elif args.formula:
        found = spread(templates, args.formula, count)
    else:
        choices = min(args.templates, args.proposals) if args.method == "diffusion" else 1
        return [[templates.draw(rng) for _ in range(choices)] for _ in range(count)]
    return [[start] for start in found]


def substituted(template, numbers):
    """Template atoms with the elements of `numbers` [N], scaled to the new bond lengths."""
    elements = {old: new for old, new in zip(template.symbols, numbers)}
    return substitute(template, elements)


def hide(layers):
    """Layers without their elements."""
    return layers.replace(atomic_numbers=torch.where(layers.mask, MASK, 0))


def diffuse(batch, sampler: Sampler, args, taken=()):
    """From templates to denoised layers: propose elements, substitute, noise to the level, denoise.

    Args:
        batch: for each structure the (name, layer) that it may start from.
        taken: (name of the template, formula) that are not to be chosen again.

    Returns:
        names of the templates that were taken, and the layers.
    """
    start = round(args.noise_level * sampler.diffusion.steps)
    if start == sampler.diffusion.steps or args.formula:
        chosen = [starts[0] for starts in batch]
    else:
        chosen = propose(batch, sampler, start, args, taken)
    layers = layers_of([atoms for _, atoms in chosen]).to(args.device)
    if start == sampler.diffusion.steps:
        noised, lattice = sampler.prior(layers if args.formula else hide(layers))
    else:
        noised, lattice = sampler.noised(layers, start)
    return [name for name, _ in chosen], sampler.denoise(noised, lattice, start, args.steps)


def propose(batch, sampler: Sampler, start: int, args, taken=()):
    """Templates with elements proposed by the model; of `--proposals` for each, one is drawn with weights
    exp(−L_target / τ).

    The k-th proposal starts from the k-th template of a structure, from the first again when they run out.
    What was taken before, the same elements in the same template, is passed over while another is left.
    """
    candidates = []
    for k in range(args.proposals):
        templates = [starts[k % len(starts)] for starts in batch]
        hidden = hide(layers_of([atoms for _, atoms in templates]).to(args.device))
        noised, lattice = sampler.noised(hidden, start)
        proposed = to_atoms(sampler.propose_elements(noised, lattice, start, args.temperature).to("cpu"))
        candidates.append(
            [
                (name, substituted(template, atoms.symbols))
                for (name, template), atoms in zip(templates, proposed)
            ]
        )
    if args.proposals == 1:
        return candidates[0]
    losses = torch.stack(
        [sampler.target_loss(layers_of([a for _, a in found]).to(args.device)) for found in candidates], 1
    ).cpu()
    gumbel = -torch.log(-torch.log(torch.rand(losses.shape, generator=sampler.generator)))
    chosen, taken = [], set(taken)
    for row, order in enumerate(
        (gumbel - losses / args.tau).argsort(1, descending=True).tolist()
    ):  # drawn without replacement
        ranked = [candidates[k][row] for k in order]
        pick = next((start for start in ranked if recipe(start) not in taken), ranked[0])
        taken.add(recipe(pick))
        chosen.append(pick)
    return chosen


def recipe(start) -> tuple[str, str]:
    """What makes two starts the same: name of the template and reduced formula of the (name, layer)."""
    name, atoms = start
    return name, reduced_formula(atoms)


def random_null(batch, templates: Templates, rng):
    """The null without a model: every slot of a random template gets a random element of the database."""
    elements = templates.elements()
    for ((_, atoms),) in batch:
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
    """The guide's own opinion [n, 4] of finished structures, in the order of HEADS."""
    layers = layers_of(structures).to(device)
    heads = model.properties(layers, torch.zeros(len(layers), device=device)).to("cpu")
    return torch.stack([heads.delta_g_h, heads.e_hull, heads.synth_logit.sigmoid(), heads.delta_g_h_std], -1)


def guide_of(args, elements: list[str] | None = None) -> Guide:
    """What the flags ask to steer towards; `elements` are those of the database."""
    return Guide(
        cfg_scale=args.cfg_scale,
        gradient_scale=args.gradient_scale,
        delta_g_h=args.target_delta_g,
        e_hull=args.max_e_hull,
        synthesizable=args.synthesizable,
        weight_e_hull=args.weight_e_hull,
        uncertainty_weight=args.uncertainty_weight,
        cap=args.gradient_cap,
        elements=frozenset(elements) if elements and args.elements == "database" else None,
    )


def generate(batch, first: int, model, diffusion, templates, guide: Guide, args, taken=()) -> list[dict]:
    """{"atoms", "template", "heads", "nfe", "seconds"} of a batch; seeded by the batch, so that an
    interruption changes nothing.

    nfe and seconds (of one core) are a structure's share of the batch's.
    """
    begin = time.process_time()
    if model is None:
        random = args.method == "random"
        rng = np.random.default_rng([args.seed, first])
        structures = list(
            random_null(batch, templates, rng) if random else (atoms for ((_, atoms),) in batch)
        )
        names, heads, nfe = [name for ((name, _),) in batch], [[""] * len(HEADS)] * len(batch), 0
    else:
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + first)
        sampler = Sampler(model, diffusion, guide, generator, args.noise_scale, args.corrector)
        names, layers = diffuse(batch, sampler, args, taken)
        structures = [presentable(atoms, args.symprec) for atoms in to_atoms(layers.to("cpu"))]
        heads = [
            [f"{x:.4f}" for x in row] for row in head_properties(model, structures, args.device).tolist()
        ]
        nfe = round(sampler.nfe / len(batch))
    cost = {"nfe": nfe, "seconds": round((time.process_time() - begin) / len(batch), 3)}
    return [
        {"atoms": pack_atoms(atoms), "template": name, "heads": head} | cost
        for atoms, name, head in zip(structures, names, heads)
    ]


def opinions(found: list[dict]) -> np.ndarray:
    """The heads' opinion [n, 4] of all structures; NaN where no model made them."""
    return np.array([[float(x or "nan") for x in row["heads"]] for row in found])


def best(found: list[dict], count: int, guide: Guide) -> set[int]:
    """Which structures have the lowest L_target by the heads on the finished structure; a recipe's second one
    after all first ones.
    """
    losses = guide.loss(Heads(*torch.tensor(opinions(found)).T))
    losses[[not guide.allows(torch.tensor([row["atoms"]["numbers"]])).item() for row in found]] = torch.inf
    first, again, taken = [], [], set()
    for k in losses.argsort().tolist():
        (again if recipe_of(found[k]) in taken else first).append(k)
        taken.add(recipe_of(found[k]))
    return set([*first, *again][:count])


def recipe_of(row: dict) -> tuple[str, str]:
    """The recipe of a row of generated.jsonl."""
    return recipe((row["template"], unpack_atoms(row["atoms"])))


def write_cifs(found: list[dict], kept: set[int], guide: Guide, out: Path) -> dict:
    """One CIF for each structure that is kept, and generated.csv with all of them; CIFs of an earlier run are
    removed.

    Returns:
        material_id -> layer of those kept.
    """
    for stale in out.glob("gen_*.cif"):
        stale.unlink()
    rows, heads, structures = [], opinions(found), {}
    front = pareto_front(
        np.column_stack([abs(heads[:, 0] - guide.delta_g_h), np.maximum(heads[:, 1], 0), -heads[:, 2]])
    )
    for k, row in enumerate(found):
        atoms = unpack_atoms(row["atoms"])
        formula = reduced_formula(atoms)
        identity = f"gen_{k:04d}_{atoms.get_chemical_formula(empirical=True)}"  # no brackets in a file's name
        values = [
            identity,
            formula,
            row["template"],
            layer_group(atoms),
            *row["heads"],
            front[k],
            k in kept,
            row["nfe"],
            row["seconds"],
        ]
        rows.append(dict(zip(COLUMNS, values)))
        if k in kept:
            structures[identity] = atoms
            write(out / f"{identity}.cif", atoms)
    write_rows(out / "generated.csv", rows, COLUMNS)
    print(
        f"{len(kept)} of {len(rows)} structures as CIFs in {out}, {len({row['formula'] for row in rows if row['kept']})} formulas"
    )
    if not np.isnan(heads).all():
        unsure = sum(heads[k, 3] > UNSURE for k in kept)
        print(
            f"ΔG_H by the heads is uncertain by more than {UNSURE} eV on {unsure} of them; {front.sum()} of all are on the Pareto front"
        )
    return structures


def refine(structures: dict, model, args):
    """Relaxes the structures with the potential: OUT/refined/*.cif, and refined.csv with the heads' opinion
    before and after.

    A structure that fails, or leaves two dimensions, is left out and named.
    """
    folder, potential = (
        args.out / "refined",
        load_potential(args.potential, args.potential_checkpoint, args.device),
    )
    settings = Settings(
        potential=args.potential,
        potential_checkpoint=args.potential_checkpoint,
        jobs=args.jobs,
        device=args.device,
    )
    shard = Shard(folder / "relaxed.jsonl", args.resume)
    found = computed(
        relax_one,
        list(structures.items()),
        settings,
        potential,
        args.potential_checkpoint,
        shard,
        "refining",
        RELAXATION,
    )
    for stale in folder.glob("gen_*.cif"):
        stale.unlink()
    rows = []
    for (name, atoms), result in zip(structures.items(), found):
        if not result.get("relaxed"):
            print(f"not refined: {name}: {result.get('lost') or result['row'].get('error')}")
            continue
        relaxed = unpack_atoms(result["relaxed"])
        write(folder / f"{name}.cif", relaxed)
        before, after = head_properties(model, [atoms, relaxed], args.device).tolist()
        named = {
            f"{head}{suffix}": f"{x:.4f}"
            for suffix, heads in (("", before), ("_refined", after))
            for head, x in zip(HEADS, heads)
        }
        rows.append(
            {
                column: result["row"].get(column, name)
                for column in ("material_id", "rmsd_relaxed_A", "converged")
            }
            | named
        )
    if rows:
        write_rows(folder / "refined.csv", rows, list(rows[0]))
    print(
        f"{len(rows)} of {len(structures)} structures refined with {potential.name} in {folder}: report them apart from the others"
    )


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--db", type=Path, default=Path("data/her2d.db"), help="ASE database that the templates come from"
    )
    data.add_argument("--formula", help="fix the composition, e.g. MoS2")
    data.add_argument("--template", help="only templates of this prototype")
    data.add_argument("--num-atoms", type=int, help="only templates with so many atoms")
    data.add_argument("--num", type=int, default=32, help="structures to write")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--method",
        choices=("diffusion", "random", "substitution", "held-out"),
        default="diffusion",
        help="without a model: random elements in a random template, or related ones in the nearest (two nulls); or "
        "real layers of the test split (the ceiling)",
    )
    model.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("models/weights/best_diffusion_model.pth"),
        help="from stage 3",
    )
    model.add_argument(
        "--noise-level",
        type=float,
        default=0.5,
        help="t0 in (0, 1] that templates are noised to; 1 is pure noise",
    )
    model.add_argument("--steps", type=int, default=50, help="denoising updates")
    model.add_argument(
        "--noise-scale",
        type=float,
        default=0.0,
        help="factor on the noise ζ of each update; 1 is the exact sampler",
    )
    model.add_argument(
        "--corrector", type=int, default=0, help="Langevin steps after each update, each as dear as an update"
    )
    model.add_argument("--temperature", type=float, default=1.0, help="of the element proposals")
    guide = parser.add_argument_group("guidance")
    guide.add_argument(
        "--gradient-scale", type=float, default=0.0, help="η of the gradient of L_target, 0 for none"
    )
    guide.add_argument(
        "--proposals",
        type=int,
        default=32,
        help="proposals a structure, one taken by exp(−L_target/τ); 1: unguided",
    )
    guide.add_argument("--templates", type=int, default=32, help="different templates that these start from")
    guide.add_argument("--tau", type=float, default=0.05, help="τ of that choice, eV")
    guide.add_argument(
        "--best-of",
        type=int,
        default=3,
        help="structures drawn for each that is written: lowest L_target, no recipe twice",
    )
    guide.add_argument(
        "--cfg-scale", type=float, default=2.0, help="s of classifier-free guidance, 0 for unconditional"
    )
    guide.add_argument("--target-delta-g", type=float, default=0.0, help="ΔG_H to aim at, eV")
    guide.add_argument("--max-e-hull", type=float, default=0.05, help="E_hull to stay below, eV/atom")
    guide.add_argument(
        "--weight-e-hull", type=float, default=4.0, help="weight of E_hull above that beside |ΔG_H − target|"
    )
    guide.add_argument(
        "--uncertainty-weight",
        type=float,
        default=0.5,
        help="L_target averages |ΔG_H − target| over so many spreads of DimeNet++'s members; 0: none",
    )
    guide.add_argument(
        "--elements",
        choices=("database", "any"),
        default="database",
        help="elements of the proposals to choose from: those of --db, for which there is a hull, or any",
    )
    guide.add_argument("--gradient-cap", type=float, default=1.0, help="largest norm of ∇L_target, eV/Å")
    guide.add_argument(
        "--synthesizable",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for layers that can be made",
    )
    after = parser.add_argument_group("afterwards")
    after.add_argument(
        "--refine",
        action="store_true",
        help="relax what was generated with a potential as well, into OUT/refined",
    )
    after.add_argument(
        "--potential",
        default="auto",
        help="of --refine: auto, mattersim[-1m], sevennet[-0], chgnet or module:factory",
    )
    after.add_argument("--potential-checkpoint", type=Path, help="MatterSim checkpoint file")
    after.add_argument("--jobs", type=int, default=2, help="processes of --refine, one thread each")
    parser.add_argument("--batch-size", type=int, default=64, help="structures at a time")
    parser.add_argument(
        "--symprec", type=float, default=0.1, help="tolerance in Å for writing a structure symmetrised"
    )
    add_system(
        parser, out=Path("results/generated_cifs"), resume="keep the CIFs of batches that are already in OUT"
    )
    return parser


def main():
    args = resolve(build_parser().parse_args())
    if not 0 < args.noise_level <= 1:
        raise SystemExit(f"--noise-level {args.noise_level} is outside (0, 1]")
    database = Templates.read(args.db)
    templates, guide = (
        database.select(args.formula, args.template, args.num_atoms),
        guide_of(args, database.elements()),
    )
    rng = np.random.default_rng(args.seed)
    if args.refine and args.method != "diffusion":
        raise SystemExit(
            f"--refine is for the model's structures, not for --method {args.method}: the evaluator relaxes those"
        )
    total = args.num * (args.best_of if args.method == "diffusion" else 1)
    starts = start_structures(templates, total, args, rng)
    model, diffusion = (
        load_generator(args.checkpoint, args.device) if args.method == "diffusion" else (None, None)
    )

    relevant = {name: value for name, value in plain(vars(args)).items() if name not in AFTER}
    identity = digest(json.dumps(relevant) + (file_hash(args.checkpoint) if model else ""))
    shard = Shard(args.out / "generated.jsonl", args.resume)
    taken = set()
    for first in tqdm(range(0, total, args.batch_size), desc="batches"):
        batch = starts[first : first + args.batch_size]
        if f"{identity}:{first + len(batch) - 1}" not in shard.rows:
            for k, row in enumerate(
                generate(batch, first, model, diffusion, templates, guide, args, taken), first
            ):
                shard.append(f"{identity}:{k}", row)
        taken |= {recipe_of(shard.rows[f"{identity}:{k}"]) for k in range(first, first + len(batch))}
    found = [shard.rows[f"{identity}:{k}"] for k in range(total)]
    kept = best(found, args.num, guide) if total > args.num else set(range(total))
    structures = write_cifs(found, kept, guide, args.out)
    if args.refine:
        refine(structures, model, args)


if __name__ == "__main__":
    run_script(main)
