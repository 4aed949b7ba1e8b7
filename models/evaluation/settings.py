"""What an evaluation depends on, and the flags that set it."""

import argparse
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from models.crystals.thresholds import CORRECTION
from models.infra.cli import real, whole
from models.infra.files import read_json, shipped


@dataclass(frozen=True)
class Settings:
    """What an evaluation depends on; plain values, so that they cross process borders. Flags explain each."""

    potential: str = "auto"
    potential_checkpoint: Path | None = None
    second_potential: str = "diep"
    dimenet: Path = shipped("models/weights/dimenet.pt")
    synthesis: Path = shipped("models/weights/synthesis.pt")
    csllm: str | None = None
    csllm_base: str | None = None
    csllm_dtype: str = "auto"
    references: Path = shipped("data/reference_phases.db")
    novelty_db: Path = shipped("data/her2d.db")
    template_db: Path = shipped("data/her2d.db")
    learned: Path = shipped("models/weights/best_diffusion_model.known.json.gz")
    validation: Path = shipped("data/validation.json")
    gap: Path = shipped("models/weights/gap.pt")
    dft_correction: Path | None = shipped("models/weights/dft_correction.json")
    hull_phases: int = (
        3  # relaxations in a chemical system of which no compound is known; 15 to 20 s of a core
    )
    max_pourbaix: float = 0.5  # eV/atom; metastable up to here (Singh et al., Chem. Mater. 29, 10159 (2017))
    correction: float = CORRECTION
    oracle: str = "relaxed"
    oracle_for: str = "all"
    oracle_sites: int = 3  # the scan's best two hold the best relaxed site (to 0.02 eV) in 90 % of layers
    shortlist: int = 5
    phonons: int = 3  # about a minute each
    dft: int = 0  # minutes to hours each
    dft_relax: str = "h"
    dft_calculator: str = "gpaw"
    fmax: float = 0.05  # eV/Å, as for the phases of the hull and every label
    relax_steps: int = 200  # bounds what a layer that runs away may cost
    jobs: int = 2
    device: str = "cpu"
    seed: int = 0


def needed_files(settings: Settings) -> list[Path]:
    """Files that an evaluation reads."""
    classifier = [] if settings.csllm else [settings.synthesis]
    known = [settings.novelty_db, settings.template_db, settings.learned]
    to_dft = [settings.dft_correction] if settings.dft_correction else []
    needed = [
        settings.dimenet,
        settings.gap,
        *classifier,
        settings.references,
        *known,
        settings.validation,
        *to_dft,
    ]
    return list(dict.fromkeys(needed))


def check_files(settings: Settings) -> None:
    """Says that a file is missing, or that a database is none, before hours of work.

    Raises:
        FileNotFoundError: names the first file that does not exist.
        ValueError: names the file that is damaged or holds something else.
    """
    from models.crystals.ase_database import row_ids  # late, for --help: ASE's database takes half a second

    for path in needed_files(settings):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file: see --help for the flag that names it")
    row_ids(settings.novelty_db, "--novelty-db")
    row_ids(settings.template_db, "--template-db")
    row_ids(settings.references, "--references")
    read_json(settings.validation)
    _check_models(settings)


def _check_models(settings: Settings) -> None:
    """Loads the models once, so that a broken checkpoint is said before the work that needs it last.

    Raises:
        ValueError: names the file.
    """
    from models.networks.dimenet import load_dimenet  # late: the pool's processes need no networks
    from models.networks.gap import load_gap
    from models.networks.synthesis import load_synthesis

    loads = {settings.dimenet: load_dimenet, settings.gap: load_gap}
    if not settings.csllm:
        loads[settings.synthesis] = load_synthesis
    for path, load in loads.items():
        try:
            load(path)
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{path} holds another kind of model ({reason}): see --help for its flag"
            ) from None


def settings_from(args: argparse.Namespace) -> Settings:
    """Settings of parsed flags; without DFT, and saying so, where there is none to be had."""
    from models.physics.dft import Settings as DftSettings  # late: flags are parsed in a tenth of a second
    from models.physics.dft import missing

    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    reason = settings.dft and missing(DftSettings(code=settings.dft_calculator))
    if reason:
        print(f"no DFT of the {settings.dft} best: {reason}")
        return replace(settings, dft=0)
    return settings


def add_evaluation_flags(parser: argparse.ArgumentParser, cifs: Path, compare: list[Path]) -> None:
    """Flags that test.py and evaluate_external.py share; their defaults are those of Settings."""
    parser.set_defaults(**asdict(Settings()))
    _add_data_flags(parser.add_argument_group("data"), cifs, compare)
    _add_model_flags(parser.add_argument_group("model"))
    _add_effort_flags(parser.add_argument_group("effort"))


def _add_data_flags(group, cifs: Path, compare: list[Path]) -> None:
    add = group.add_argument
    add("--cifs", type=Path, default=cifs, help="folder of CIFs to score")
    add("--compare", type=Path, nargs="*", default=compare, help="metrics.csv of other sets to put beside it")
    add("--references", type=Path, help="competing phases of the hull")
    add("--novelty-db", type=Path, help="database of known layers; what matches one is not novel")
    add("--template-db", type=Path, help="database that the generator took its templates from, known too")
    add(
        "--learned", type=Path, help="fingerprints of the generator's training set (CHECKPOINT.known.json.gz)"
    )
    add("--validation", type=Path, help="the oracle's error against DFT (python -m data.build.validate)")


def _path_or_none(text: str) -> Path | None:
    return None if text == "none" else Path(text)


def _add_model_flags(group) -> None:
    add = group.add_argument
    potentials = (
        "auto (MatterSim, else SevenNet), mattersim[-1m], sevennet[-0], diep, chgnet or module:factory"
    )
    add("--potential", help=potentials)
    add("--potential-checkpoint", type=Path, help="MatterSim checkpoint file")
    add("--second-potential", help="repeats ΔG_H on the shortlist, or none")
    add("--dimenet", type=Path, help="checkpoint of stage 1")
    add("--synthesis", type=Path, help="positive-unlabelled classifier")
    add("--gap", type=Path, help="trees that expect the band gap (python -m data.build.gap)")
    add("--csllm", help="CSLLM: folder or hub name; takes the classifier's place")
    add("--csllm-base", help="base model of the CSLLM adapters, if it is not where their config says")
    add("--csllm-dtype", help="torch dtype of CSLLM, e.g. bfloat16; auto is the checkpoint's")
    aqueous = "eV/atom above the Pourbaix hull up to which a layer counts as stable in water"
    add("--max-pourbaix", type=real(0), help=aqueous)
    to_dft = "brings the potential's ΔG_H to DFT (python -m data.build.dft_correction), or none"
    add("--dft-correction", type=_path_or_none, help=to_dft)
    add("--correction", type=real(), help="ΔE_ZPE − TΔS in ΔG_H, eV")


def _add_effort_flags(group) -> None:
    add = group.add_argument
    competitors = (
        "competing phases relaxed in each chemical system that decides and holds none yet, 0 for none"
    )
    add("--hull-phases", type=whole(0), help=competitors)
    relaxed = "whether the layer relaxes with its H; none: no hydrogen but DimeNet++'s"
    add("--oracle", choices=("relaxed", "rigid", "none"), help=relaxed)
    stable = "stable: the oracle only for layers below 0.1 eV/atom, half the time; hits are the same"
    add("--oracle-for", choices=("all", "stable"), help=stable)
    add("--oracle-sites", type=whole(0), help="sites where H alone is relaxed, 0 for all")
    add("--shortlist", type=whole(0), help="candidates for the second potential and for DFT")
    add("--phonons", type=whole(0), help="phonons and elastic constants of so many of the best")
    add("--dft", type=whole(0), metavar="K", help="ΔG_H of the K best by DFT (make dft), resumable")
    add("--dft-relax", choices=("none", "h", "all"), help="what DFT relaxes: nothing, H alone, or all atoms")
    add("--dft-calculator", help="gpaw, or module:factory of another (models/physics/dft.py)")
    add("--fmax", type=real(1e-4), help="force at which a relaxation has converged, eV/Å")
    add("--relax-steps", type=whole(1), help="most steps of a relaxation")
    add("--jobs", type=whole(1), help="processes, one thread each")
