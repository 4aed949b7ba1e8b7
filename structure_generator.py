"""Stage 4: real 2D templates + Gaussian noise -> gradient-guided Langevin sampling -> CIFs.

python structure_generator.py --checkpoint models/weights/best_diffusion_model.pth --num 32 --seed 0
    --out results/generated_cifs
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

from models.evaluation.settings import Settings
from models.infra.cli import add_system, real, whole
from models.infra.files import digest, file_hash, shipped
from models.infra.runs import resolve, run_script
from models.infra.shards import Shard
from models.networks.settings import METHODS, ORBITS, SYMMETRIES, GeneratorSettings, Guide

DEFAULT, AIM = GeneratorSettings(), Guide()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_data(parser.add_argument_group("data").add_argument)
    add_model(parser.add_argument_group("model").add_argument)
    add_guide(parser.add_argument_group("guidance").add_argument)
    add_afterwards(parser.add_argument_group("afterwards").add_argument)
    add_system(
        parser, out=Path("results/generated_cifs"), resume="keep the CIFs of batches that are already in OUT"
    )
    return parser


def add_data(flag: Callable) -> None:
    flag(
        "--db", type=Path, default=shipped("data/her2d.db"), help="ASE database that the templates come from"
    )
    flag("--formula", help="fix the composition, e.g. MoS2")
    flag("--template", help="only templates of this prototype")
    flag("--num-atoms", type=whole(1), help="only templates with so many atoms")
    flag("--num", type=whole(1), default=32, help="structures to write")
    flag(
        "--elements",
        default="benign",
        metavar="database|any|benign|LIST",
        help="elements to choose from: those of --db, for which there is a hull; any; those of --db but for "
        "toxic and radioactive ones; or a list, e.g. Mo,W,S,Se",
    )
    flag("--exclude", default="", metavar="LIST", help="elements not to choose, e.g. Au,Pt")


def add_model(flag: Callable) -> None:
    weights = shipped("models/weights/best_diffusion_model.pth")
    methods = "without the model: random elements in random templates, or related ones in the nearest (two "
    methods += "baselines); or real layers of the test split (the ceiling)"
    level = "t0 in (0, 1] that templates are noised to; 1 is pure noise"
    group = "layer group inside which a structure is diffused: its template's; for half of the structures a "
    group += "maximal subgroup of it; none"
    flag("--method", choices=METHODS, default=DEFAULT.method, help=methods)
    flag("--checkpoint", type=Path, default=weights, help="from stage 3")
    flag("--noise-level", type=real(1e-3, 1), default=DEFAULT.noise_level, help=level)
    flag("--symmetry", choices=SYMMETRIES, default=DEFAULT.symmetry, help=group)
    orbits = (
        "with --noise-level 1: occupied orbits as in a template, or layer group and occupation drawn from "
    )
    orbits += "the statistics of --db"
    flag("--orbits", choices=ORBITS, default=DEFAULT.orbits, help=orbits)
    flag("--steps", type=whole(1, 1000), default=DEFAULT.steps, help="denoising updates")
    noise = "factor on the noise ζ of each update; 1 is the exact sampler"
    flag("--noise-scale", type=real(0, 10), default=DEFAULT.noise_scale, help=noise)
    corrector = "Langevin steps after each update; each costs as much as an update"
    flag("--corrector", type=whole(0), default=DEFAULT.corrector, help=corrector)
    temperature = "of the element proposals"
    flag("--temperature", type=real(0.01, 100), default=DEFAULT.temperature, help=temperature)
    flag("--batch-size", type=whole(1), default=DEFAULT.batch_size, help="structures at a time")
    symprec = "tolerance in Å for writing a structure symmetrised"
    flag("--symprec", type=real(1e-4, 1), default=DEFAULT.symprec, help=symprec)


def add_guide(flag: Callable) -> None:
    proposals = "proposals a structure, one taken by exp(−L_target/τ); 1: unguided"
    flag("--proposals", type=whole(1), default=DEFAULT.proposals, help=proposals)
    templates = "different templates that these start from"
    flag("--templates", type=whole(1), default=DEFAULT.templates, help=templates)
    flag("--tau", type=real(1e-6), default=DEFAULT.tau, help="τ of that choice, eV")
    best_of = "structures drawn for each that is written: lowest L_target, no recipe twice"
    flag("--best-of", type=whole(1), default=DEFAULT.best_of, help=best_of)
    cfg = "s of classifier-free guidance, 0 for unconditional"
    flag("--cfg-scale", type=real(0, 20), default=AIM.cfg_scale, help=cfg)
    gradient = "η of the gradient of L_target on coordinates, z and lattice, 0 for none"
    flag("--gradient-scale", type=real(0, 1000), default=AIM.gradient_scale, help=gradient)
    elements = "η of the gradient of L_target on the elements (1/eV), 0 for none"
    flag("--element-gradient", type=real(0, 1000), default=AIM.element_gradient, help=elements)
    gibbs = "slots of each proposal that are masked and revealed again, one at a time"
    flag("--gibbs", type=whole(0), default=DEFAULT.gibbs, help=gibbs)
    flag("--target-delta-g", type=real(-10, 10), default=AIM.delta_g_h, help="ΔG_H to aim at, eV")
    bound = "bound of E_hull in L_target, eV/atom"
    flag("--max-e-hull", type=real(-10, 10), default=AIM.e_hull, help=bound)
    wish = "E_hull that the network is asked for, eV/atom"
    flag("--wanted-e-hull", type=real(-10, 10), default=AIM.wanted_e_hull, help=wish)
    weight = "weight of E_hull above its bound beside |ΔG_H − target|"
    flag("--weight-e-hull", type=real(0), default=AIM.weight_e_hull, help=weight)
    spread = "L_target averages |ΔG_H − target| over so many spreads of DimeNet++'s members; 0: none"
    flag("--uncertainty-weight", type=real(0), default=AIM.uncertainty_weight, help=spread)
    flag("--gradient-cap", type=real(0, 1000), default=AIM.cap, help="largest norm of ∇L_target, eV/Å")
    either = argparse.BooleanOptionalAction
    flag("--synthesizable", action=either, default=AIM.synthesizable, help="ask for layers that can be made")


def add_afterwards(flag: Callable) -> None:
    flag("--refine", action="store_true", help="relax what was generated as well, into OUT/refined")
    rank = "with --formula: kept is what the heads like, or what has the lowest energy when relaxed with the "
    rank += "potential (its cost is printed apart)"
    flag("--rank", choices=("heads", "potential"), default="heads", help=rank)
    potential = "of --refine and --rank: auto, mattersim[-1m], sevennet[-0], chgnet or module:factory"
    flag("--potential", default="auto", help=potential)
    flag("--potential-checkpoint", type=Path, help="MatterSim checkpoint file")
    flag("--jobs", type=whole(1), default=2, help="processes of --refine and --rank, one thread each")


def settings_of(args: argparse.Namespace, elements: list[str] | None = None) -> GeneratorSettings:
    """The settings that the flags ask for; `elements` may be chosen, any where None."""
    guide = Guide(
        cfg_scale=args.cfg_scale,
        gradient_scale=args.gradient_scale,
        delta_g_h=args.target_delta_g,
        e_hull=args.max_e_hull,
        wanted_e_hull=args.wanted_e_hull,
        synthesizable=args.synthesizable,
        weight_e_hull=args.weight_e_hull,
        uncertainty_weight=args.uncertainty_weight,
        cap=args.gradient_cap,
        elements=None if elements is None else frozenset(elements),
        element_gradient=args.element_gradient,
    )
    names = {field.name for field in fields(GeneratorSettings)} - {"guide"}
    return GeneratorSettings(guide=guide, **{name: getattr(args, name) for name in names})


def main(argv: list[str] | None = None) -> None:
    """Reads templates and model, draws, keeps the best, writes them."""
    args = build_parser().parse_args(argv)
    learned, by_energy = args.method == "diffusion", args.rank == "potential"
    refuse_contradictions(args)
    if args.formula is not None:
        from models.crystals.formula import read_formula

        args.formula, note = read_formula(args.formula)
        print(note, end="\n" if note else "")
    # late: torch takes seconds, and wrong flags none
    from models.crystals.elements import choose_elements
    from models.crystals.orbits import Orbits
    from models.crystals.templates import Templates
    from models.evaluation.generated import ranked_by_potential, refine, summary, write_structures
    from models.networks.proposals import Generator, best, fitting
    from models.networks.sampler import load_generator

    args = resolve(args)
    database = Templates.read(args.db)
    elements = choose_elements(args.elements, args.exclude, database.elements())
    templates = fitting(database.select(args.formula, args.template, args.num_atoms), elements)
    settings = settings_of(args, elements)
    model, diffusion = load_generator(args.checkpoint, args.device) if learned else (None, None)

    total = args.num * (args.best_of if learned else 1)
    orbits = Orbits(database.structures) if settings.orbits == "drawn" else None
    generator = Generator(settings, templates, model, diffusion, orbits)
    identity = run_identity(settings, args)
    found = generator.run(total, Shard(args.out / "generated.jsonl", args.resume), identity)
    relaxed = Shard(args.out / "refined" / "relaxed.jsonl", args.resume) if args.refine or by_energy else None
    kept, energies, cost = best(found, args.num, settings.guide), None, []
    if by_energy:
        kept, energies, cost = ranked_by_potential(found, args.num, evaluator_of(args), relaxed)

    structures = write_structures(found, kept, settings.guide, database, args.out, energies)
    print(*summary(found, kept, settings.guide), *cost, f"written to {args.out}", sep="\n")
    if args.refine:
        print(*refine(structures, model, evaluator_of(args), relaxed), sep="\n")


def evaluator_of(args: argparse.Namespace) -> Settings:
    """The evaluator's settings with the potential of the flags."""
    return Settings(
        potential=args.potential,
        potential_checkpoint=args.potential_checkpoint,
        jobs=args.jobs,
        device=args.device,
    )


def refuse_contradictions(args: argparse.Namespace) -> None:
    """Raises a ValueError where two flags exclude each other."""
    if args.refine and args.method != "diffusion":
        raise ValueError(
            f"--refine is for the model's structures, not for --method {args.method}: "
            "the evaluator relaxes those"
        )
    if args.rank == "potential" and not args.formula:
        raise ValueError(
            "--rank potential needs --formula: energies of different formulas cannot be compared"
        )
    if args.orbits == "drawn" and (args.method != "diffusion" or args.noise_level < 1):
        raise ValueError(
            "--orbits drawn needs --method diffusion and --noise-level 1: there is no layer to start from"
        )
    if args.orbits == "drawn" and args.symmetry == "none":
        raise ValueError(
            "--orbits drawn with --symmetry none: no orbit would be kept; use template or subgroup"
        )


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
