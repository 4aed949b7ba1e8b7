"""The evaluator: one path from a CIF to a row of metrics, for our structures and for anybody's.

Gates (2D, valid), relaxation and E_form / E_hull by the potential, ΔG_H by DimeNet++ and by the potential
with H and layer relaxed, synthesizability, uniqueness and novelty; DFT of the best where asked for; a
shortlist with a second potential's opinion, phonons and DFT inputs; then aggregates with intervals beside
baselines, tables, figures and a report. Steps: models/evaluation/columns.py; what each column means:
models/evaluation/schema.py.
"""

from pathlib import Path

from ase import Atoms

from models.crystals.structure_files import read_structures
from models.evaluation.columns import (
    band_gap,
    dft,
    dimenet,
    element_marks,
    hydrogen,
    novelty,
    phonons,
    relaxation,
    second_delta_g,
    stability,
    synthesizability,
    to_dft,
)
from models.evaluation.outputs import Evaluation, compared_sets, write_outputs
from models.evaluation.provenance import provenance
from models.evaluation.rows import join, table
from models.evaluation.settings import Settings, check_files, settings_from
from models.evaluation.shortlist import oracle_error, ranking
from models.evaluation.verdicts import candidates
from models.infra.shards import Shard
from models.physics.potentials import Potential, load_potential


def second_of(settings: Settings, first: Potential) -> Potential | None:
    """The second potential, None if none is wanted or if it is the first."""
    if settings.second_potential == "none":
        return None
    second = load_potential(settings.second_potential, device=settings.device)
    return None if second.name == first.name else second


def evaluate(
    structures: list[tuple[str, Atoms | str]], settings: Settings, out: Path, resume: bool = False
) -> Evaluation:
    """Rows of a set of structures, one each, whatever happens to it; `out` keeps what is computed as it
    comes.

    Args:
        structures: (material_id, structure), or the reason why there is none.
        resume: whether to keep what the shards in `out` already hold.
    """
    check_files(settings)
    potential = load_potential(settings.potential, settings.potential_checkpoint, settings.device)
    second = second_of(settings, potential)
    sigma, sigma_note = oracle_error(settings.validation)

    relaxed = relaxation(structures, potential, settings, Shard(out / "relaxed.jsonl", resume))
    layers = relaxed.layers
    rows = join(table([{"material_id": name} for name, _ in structures]), relaxed.columns)

    phases = Shard(out / "phases.jsonl")  # keyed by structure and potential: good for every set
    energies, left_out = stability(rows, relaxed.energies, potential, settings, phases)
    rows = join(rows, energies)
    adsorbed, poses = hydrogen(rows, layers, potential, settings, Shard(out / "adsorbed.jsonl", resume))
    rows = join(rows, adsorbed)
    rows = join(rows, band_gap(layers, settings))
    corrected, correction = to_dft(
        rows, layers, poses, potential, settings, Shard(out / "poses.jsonl", resume)
    )
    rows = join(rows, corrected)
    rows = join(rows, dimenet(layers, settings))
    synthesis, synthesis_model = synthesizability(rows, layers, settings)  # it reads E_hull
    rows = join(rows, synthesis)
    rows = join(rows, novelty(rows, layers, settings))  # of twins the one of lower E_hull is unique
    rows = join(rows, element_marks(rows))
    rows = join(rows, ranking(rows, sigma))

    source = provenance(settings, potential, second, synthesis_model)
    source |= {"oracle_error_eV": sigma, "oracle_error_from": sigma_note, "dft_correction": correction}
    source |= {"competing_phases_left_out": left_out}
    evaluation = Evaluation(rows, layers, poses, source)
    judged = evaluation.layers_of_best(settings.dft)
    rows = join(rows, dft(judged, poses, settings, Shard(out / "dft.jsonl", resume)))
    evaluation.rows = rows = join(rows, ranking(rows, sigma))
    best = evaluation.layers_of_best(settings.shortlist)
    best_few = evaluation.layers_of_best(settings.phonons)
    rows = join(rows, second_delta_g(best, second, settings, Shard(out / "second.jsonl", resume)))
    rows = join(rows, phonons(best_few, potential, settings, Shard(out / "phonons.jsonl", resume)))
    evaluation.rows = join(rows, candidates(rows))
    return evaluation


def run_evaluation(args, name: str) -> dict:
    """What both evaluation scripts do: read, evaluate, compare, report.

    Args:
        args: parsed flags (models.evaluation.settings.add_evaluation_flags).
        name: of the set.

    Returns:
        the content of metrics.json.
    """
    settings = settings_from(args)
    evaluation = evaluate(read_structures(args.cifs), settings, args.out, args.resume)
    others = compared_sets(args.compare, name, evaluation.provenance)
    return write_outputs(name, evaluation, others, args.out, settings)
