"""Stage 4: real 2D templates + Gaussian noise -> gradient-guided Langevin sampling -> CIFs.

python structure_generator.py --checkpoint models/weights/best_diffusion_model.pth --num 32 --seed 0
    --out results/generated_cifs
"""

import argparse
import json
from dataclasses import asdict, fields
from pathlib import Path

from models.crystals.templates import Templates
from models.evaluation.generated import refine, summary, write_structures
from models.evaluation.settings import Settings
from models.infra.cli import add_system
from models.infra.files import digest, file_hash, shipped
from models.infra.runs import resolve, run_script
from models.infra.shards import Shard
from models.networks.proposals import Generator, best
from models.networks.sampler import load_generator
from models.networks.settings import METHODS, SYMMETRIES, GeneratorSettings, Guide

DEFAULT, AIM = GeneratorSettings(), Guide()


def settings_of(args: argparse.Namespace, elements: list[str] = ()) -> GeneratorSettings:
    """The settings that the flags ask for; `elements` are those of the database."""
    guide = Guide(
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
    names = {field.name for field in fields(GeneratorSettings)} - {"guide"}
    return GeneratorSettings(guide=guide, **{name: getattr(args, name) for name in names})


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--db", type=Path, default=shipped("data/her2d.db"), help="ASE database that the templates come from"
    )
    data.add_argument("--formula", help="fix the composition, e.g. MoS2")
    data.add_argument("--template", help="only templates of this prototype")
    data.add_argument("--num-atoms", type=int, help="only templates with so many atoms")
    data.add_argument("--num", type=int, default=32, help="structures to write")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--method",
        choices=METHODS,
        default=DEFAULT.method,
        help="without a model: random elements in a random template, or related ones in the nearest "
        "(two baselines); or real layers of the test split (the ceiling)",
    )
    model.add_argument(
        "--checkpoint",
        type=Path,
        default=shipped("models/weights/best_diffusion_model.pth"),
        help="from stage 3",
    )
    model.add_argument(
        "--noise-level",
        type=float,
        default=DEFAULT.noise_level,
        help="t0 in (0, 1] that templates are noised to; 1 is pure noise",
    )
    model.add_argument(
        "--symmetry",
        choices=SYMMETRIES,
        default=DEFAULT.symmetry,
        help="layer group inside which a structure is diffused: its template's; a maximal subgroup of it "
        "for half of the structures; none",
    )
    model.add_argument("--steps", type=int, default=DEFAULT.steps, help="denoising updates")
    model.add_argument(
        "--noise-scale",
        type=float,
        default=DEFAULT.noise_scale,
        help="factor on the noise ζ of each update; 1 is the exact sampler",
    )
    model.add_argument(
        "--corrector",
        type=int,
        default=DEFAULT.corrector,
        help="Langevin steps after each update, each as dear as an update",
    )
    model.add_argument(
        "--temperature", type=float, default=DEFAULT.temperature, help="of the element proposals"
    )
    guide = parser.add_argument_group("guidance")
    guide.add_argument(
        "--gradient-scale",
        type=float,
        default=AIM.gradient_scale,
        help="η of the gradient of L_target, 0 for none",
    )
    guide.add_argument(
        "--proposals",
        type=int,
        default=DEFAULT.proposals,
        help="proposals a structure, one taken by exp(−L_target/τ); 1: unguided",
    )
    guide.add_argument(
        "--templates", type=int, default=DEFAULT.templates, help="different templates that these start from"
    )
    guide.add_argument("--tau", type=float, default=DEFAULT.tau, help="τ of that choice, eV")
    guide.add_argument(
        "--best-of",
        type=int,
        default=DEFAULT.best_of,
        help="structures drawn for each that is written: lowest L_target, no recipe twice",
    )
    guide.add_argument(
        "--cfg-scale",
        type=float,
        default=AIM.cfg_scale,
        help="s of classifier-free guidance, 0 for unconditional",
    )
    guide.add_argument("--target-delta-g", type=float, default=AIM.delta_g_h, help="ΔG_H to aim at, eV")
    guide.add_argument("--max-e-hull", type=float, default=AIM.e_hull, help="E_hull to stay below, eV/atom")
    guide.add_argument(
        "--weight-e-hull",
        type=float,
        default=AIM.weight_e_hull,
        help="weight of E_hull above that beside |ΔG_H − target|",
    )
    guide.add_argument(
        "--uncertainty-weight",
        type=float,
        default=AIM.uncertainty_weight,
        help="L_target averages |ΔG_H − target| over so many spreads of DimeNet++'s members; 0: none",
    )
    guide.add_argument(
        "--elements",
        choices=("database", "any"),
        default="database",
        help="elements of the proposals to choose from: those of --db, for which there is a hull, or any",
    )
    guide.add_argument("--gradient-cap", type=float, default=AIM.cap, help="largest norm of ∇L_target, eV/Å")
    guide.add_argument(
        "--synthesizable",
        action=argparse.BooleanOptionalAction,
        default=AIM.synthesizable,
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
    parser.add_argument("--batch-size", type=int, default=DEFAULT.batch_size, help="structures at a time")
    parser.add_argument(
        "--symprec",
        type=float,
        default=DEFAULT.symprec,
        help="tolerance in Å for writing a structure symmetrised",
    )
    add_system(
        parser, out=Path("results/generated_cifs"), resume="keep the CIFs of batches that are already in OUT"
    )
    return parser


def main():
    args = resolve(build_parser().parse_args())
    if not 0 < args.noise_level <= 1:
        raise SystemExit(f"--noise-level {args.noise_level} is outside (0, 1]")
    learned = args.method == "diffusion"
    if args.refine and not learned:
        raise SystemExit(
            f"--refine is for the model's structures, not for --method {args.method}: "
            "the evaluator relaxes those"
        )
    database = Templates.read(args.db)
    templates = database.select(args.formula, args.template, args.num_atoms)
    settings = settings_of(args, database.elements())
    model, diffusion = load_generator(args.checkpoint, args.device) if learned else (None, None)

    total = args.num * (args.best_of if learned else 1)
    generator = Generator(settings, templates, model, diffusion)
    identity = run_identity(settings, args)
    found = generator.run(total, Shard(args.out / "generated.jsonl", args.resume), identity)
    kept = best(found, args.num, settings.guide) if total > args.num else set(range(total))

    structures = write_structures(found, kept, settings.guide, args.out)
    print(*summary(found, kept, settings.guide), f"written to {args.out}", sep="\n")
    if args.refine:
        evaluator = Settings(
            potential=args.potential,
            potential_checkpoint=args.potential_checkpoint,
            jobs=args.jobs,
            device=args.device,
        )
        print(*refine(structures, model, evaluator, args.out / "refined", args.resume), sep="\n")


def run_identity(settings: GeneratorSettings, args: argparse.Namespace) -> str:
    """What --resume must agree on: settings, selection of templates, database, checkpoint."""
    content = asdict(settings)
    content.pop("device")
    elements = content["guide"]["elements"]
    content["guide"]["elements"] = None if elements is None else sorted(elements)
    content |= {"template": args.template, "num_atoms": args.num_atoms, "num": args.num}
    hashes = [file_hash(args.db), file_hash(args.checkpoint) if settings.method == "diffusion" else ""]
    return digest(json.dumps([content, hashes], sort_keys=True))


if __name__ == "__main__":
    run_script(main)
