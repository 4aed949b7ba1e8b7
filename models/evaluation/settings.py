"""What an evaluation depends on, and the flags that set it."""

from dataclasses import dataclass
from pathlib import Path

from models.physics.hydrogen import CORRECTION


@dataclass(frozen=True)
class Settings:
    """What an evaluation depends on; plain values, so that they cross process borders."""

    potential: str = "auto"
    potential_checkpoint: Path | None = None
    second_potential: str = "chgnet"
    dimenet: Path = Path("models/weights/dimenet.pt")
    synthesis: Path = Path("models/weights/synthesis.pt")
    csllm: str | None = None
    csllm_base: str | None = None
    csllm_dtype: str = "auto"
    references: Path = Path("data/reference_phases.db")
    novelty_db: Path = Path("data/her2d.db")
    validation: Path = Path("data/validation.json")
    correction: float = CORRECTION
    oracle: str = "relaxed"
    oracle_for: str = "all"
    oracle_sites: int = 3
    shortlist: int = 5
    phonons: int = 3
    fmax: float = 0.05
    relax_steps: int = 200
    jobs: int = 2
    device: str = "cpu"
    seed: int = 0


def add_evaluation_flags(parser, cifs: Path, compare: list[Path]):
    """Flags that test.py and evaluate_external.py share."""
    default = Settings()
    data = parser.add_argument_group("data")
    data.add_argument("--cifs", type=Path, default=cifs, help="folder of CIFs to score")
    data.add_argument(
        "--compare", type=Path, nargs="*", default=compare, help="metrics.csv of other sets to put beside it"
    )
    data.add_argument(
        "--references", type=Path, default=default.references, help="competing phases of the hull"
    )
    data.add_argument(
        "--novelty-db", type=Path, default=default.novelty_db, help="database that decides what is novel"
    )
    data.add_argument(
        "--validation",
        type=Path,
        default=default.validation,
        help="the oracle's error against DFT (python -m data.build.validate)",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--potential",
        default=default.potential,
        help="auto (MatterSim, else SevenNet), mattersim[-1m], sevennet[-0], chgnet or module:factory",
    )
    model.add_argument("--potential-checkpoint", type=Path, help="MatterSim checkpoint file")
    model.add_argument(
        "--second-potential", default=default.second_potential, help="repeats ΔG_H on the shortlist, or none"
    )
    model.add_argument("--dimenet", type=Path, default=default.dimenet, help="checkpoint of stage 1")
    model.add_argument(
        "--synthesis", type=Path, default=default.synthesis, help="positive-unlabelled classifier"
    )
    model.add_argument("--csllm", help="CSLLM: folder or hub name; takes the classifier's place")
    model.add_argument(
        "--csllm-base", help="base model of the CSLLM adapters, if it is not where their config says"
    )
    model.add_argument(
        "--csllm-dtype",
        default=default.csllm_dtype,
        help="torch dtype of CSLLM, e.g. bfloat16; auto is the checkpoint's",
    )
    model.add_argument(
        "--correction", type=float, default=default.correction, help="ΔE_ZPE − TΔS in ΔG_H, eV"
    )
    model.add_argument(
        "--oracle",
        choices=("relaxed", "rigid", "none"),
        default=default.oracle,
        help="whether the layer relaxes with its H; none: no hydrogen but DimeNet++'s",
    )
    model.add_argument(
        "--oracle-for",
        choices=("all", "stable"),
        default=default.oracle_for,
        help="stable: the oracle only for layers below 0.1 eV/atom, half the time; hits are the same",
    )
    model.add_argument(
        "--oracle-sites",
        type=int,
        default=default.oracle_sites,
        help="sites where H alone is relaxed, 0 for all",
    )
    model.add_argument(
        "--shortlist",
        type=int,
        default=default.shortlist,
        help="candidates for the second potential and for DFT",
    )
    model.add_argument(
        "--phonons",
        type=int,
        default=default.phonons,
        help="phonons and elastic constants of so many of the best",
    )
    model.add_argument(
        "--fmax", type=float, default=default.fmax, help="force at which a relaxation has converged, eV/Å"
    )
    model.add_argument(
        "--relax-steps", type=int, default=default.relax_steps, help="most steps of a relaxation"
    )
    parser.add_argument("--jobs", type=int, default=default.jobs, help="processes, one thread each")


def settings_from(args) -> Settings:
    """Settings of parsed flags."""
    return Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
