"""The ways of drawing structures that the study of guidance compares."""

from dataclasses import dataclass

SEEDS, SWEEP_SEED = (11, 12, 13), 10
BASE, AGAIN, FILTER, RANDOM = "unguided", "unguided, other seeds", "unguided, filtered", "random elements"


def guide(cfg_scale=0, gradient_scale=0, proposals=1, best_of=1, elements="any", **more) -> tuple[str, ...]:
    """Flags of structure_generator.py that switch everything off but what is named."""
    named = dict(
        cfg_scale=cfg_scale,
        gradient_scale=gradient_scale,
        proposals=proposals,
        best_of=best_of,
        elements=elements,
        **more,
    )
    return tuple(
        text for name, value in named.items() for text in (f"--{name.replace('_', '-')}", str(value))
    )


@dataclass(frozen=True)
class Arm:
    """A way of drawing structures.

    Attributes:
        flags: of structure_generator.py; the others are its defaults.
        share: structures a seed in units of --num.
        shift: added to the seed.
        paired: whether each structure starts from the template that the unguided one of the same number
            starts from.
        oracle: whether the oracle judges it, or DimeNet++ alone.
    """

    flags: tuple = ()
    share: float = 1.0
    shift: int = 0
    paired: bool = False
    oracle: bool = True


CHOICE = dict(
    cfg_scale=2,
    proposals=32,
    templates=32,
    tau=0.05,
    weight_e_hull=4,
    max_e_hull=0.05,
    uncertainty_weight=0.5,
)
ARMS = {
    RANDOM: Arm(("--method", "random"), paired=True),
    "substitution": Arm(("--method", "substitution"), 0.5),
    BASE: Arm(guide()),
    AGAIN: Arm(guide(), shift=100),
    "gradient": Arm(guide(gradient_scale=30), 0.5, paired=True),
    "CFG": Arm(guide(cfg_scale=2), 0.5, paired=True),
    "gradient and CFG": Arm(guide(cfg_scale=2, gradient_scale=30), 0.5, paired=True),
    FILTER: Arm(
        guide(best_of=21, elements="database"), 0.67
    ),  # so that it costs more function evaluations than the default
    "default": Arm((), 0.67),
}
SWEEP = {  # around one setting, with a seed of its own
    "chosen": Arm(guide(**CHOICE)),
    "uncertainty twice": Arm(guide(**CHOICE | dict(uncertainty_weight=1))),
} | {  # gradient and CFG alone, judged by DimeNet++
    **{f"η = {eta}": Arm(guide(gradient_scale=eta), oracle=False) for eta in (10, 100)},
    **{f"s = {s}": Arm(guide(cfg_scale=s), oracle=False) for s in (1, 4)},
}
