"""Work by a potential spread over processes: each loads the potential once, on one thread."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ase import Atoms

from models.infra.jobs import run_jobs
from models.infra.shards import Shard
from models.physics.hydrogen import CORRECTION, HydrogenOracle
from models.physics.potentials import load_potential

LABEL_SITES = 3  # sites at which a label's H is relaxed alone, before everything is at the best of them


@dataclass(frozen=True)
class OracleSettings:
    """How a process makes its oracle; plain values, so that they cross process borders.

    Attributes:
        potential, checkpoint, device: as load_potential takes them.
        correction, sites, relaxed: as HydrogenOracle takes them.
    """

    potential: str
    checkpoint: Path | None = None
    device: str = "cpu"
    correction: float = CORRECTION
    sites: int = 0
    relaxed: bool = True

    def load(self) -> HydrogenOracle:
        """Loads the potential."""
        calculator = load_potential(self.potential, self.checkpoint, self.device).calculator
        return HydrogenOracle(calculator, self.correction, self.sites, self.relaxed)


_process = {}  # the oracle of this worker process, set once when it starts


def _start(settings: OracleSettings) -> None:
    import torch  # here, for one thread a process must be said before any potential is loaded

    torch.set_num_threads(1)
    _process["oracle"] = settings.load()


def _call(task, item):
    return task(item, _process["oracle"])


def run_with_oracle(
    task,
    items: dict,
    shard: Shard,
    jobs: int,
    settings: OracleSettings,
    label: str,
    hours: float = 1e6,
) -> dict[str, str]:
    """Computes the items that the shard lacks (models.infra.jobs.run_jobs).

    Args:
        task: picklable function (item, HydrogenOracle) -> row; the oracle holds the calculator.
        items: key -> item.
        settings: what each process makes its oracle from.
        hours: no new item is started after this time.

    Returns:
        key -> reason of the items lost because a process died.
    """
    return run_jobs(partial(_call, task), items, shard, jobs, _start, (settings,), label, hours)


def label_one(atoms: Atoms, oracle: HydrogenOracle) -> dict:
    """ΔG_H of a layer, which the oracle relaxes first, as a row of stage 2; {"error": why} if it fails."""
    try:
        layer, _ = oracle.own_layer(atoms)
        found = oracle.delta_g(layer)
    except Exception as error:  # one bad structure costs one row
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "delta_g_h": found.delta_g_h,
        "h_site": found.site,
        "flags": found.flags,
        "relaxed_flags": found.relaxed_flags,
        "h_position": None if found.pose is None else found.pose.positions[-1].tolist(),
    }


def oracle_labels(
    layers: dict[str, Atoms],
    shard: Shard,
    potential: str,
    checkpoint: Path | None,
    correction: float,
    jobs: int,
) -> None:
    """ΔG_H of layers by a potential, appended to the shard by key.

    Args:
        layers: key -> layer in the convention.
        potential, checkpoint: as load_potential takes them.
        correction: ΔE_ZPE − TΔS, eV.
        jobs: processes, one thread each.
    """
    settings = OracleSettings(potential, checkpoint, correction=correction, sites=LABEL_SITES)
    lost = run_with_oracle(label_one, layers, shard, jobs, settings, "ΔG_H by the potential")
    for key, reason in lost.items():
        print(f"not labelled: {key}: {reason}")
