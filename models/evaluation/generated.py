"""What the generator leaves behind: a CIF a structure, generated.csv, and on demand all of it relaxed."""

from collections import Counter
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

from models.crystals.layer import reduced_formula, unpack_atoms
from models.crystals.matching import layer_group
from models.crystals.symmetry import layer_operations
from models.crystals.templates import Templates
from models.evaluation.metrics import pareto_front
from models.evaluation.ranking import by_energy, relaxations
from models.evaluation.schema import GENERATED
from models.evaluation.settings import Settings
from models.evaluation.tasks import RELAXATION, computed, relax_one
from models.infra.files import write_rows, write_text
from models.infra.shards import Shard
from models.networks.proposals import COINCIDENT, DIVERGED, HEADS, head_properties, opinions
from models.networks.settings import Guide
from models.physics.potentials import load_potential

COLUMNS = [column.name for column in GENERATED]
REMEDIES = {
    DIVERGED: "lower the guide's scales",
    COINCIDENT: "the model knows little of this composition, or the layer group leaves no room for its atoms",
}
UNSURE = 0.5  # eV of the members' spread beyond which ΔG_H is said to be a guess


def write_structures(
    found: list[dict],
    kept: set[int],
    guide: Guide,
    database: Templates,
    out: Path,
    energies: dict[int, float] | None = None,
) -> dict[str, Atoms]:
    """One CIF for each structure that is kept, and generated.csv with all of them; CIFs of an earlier run are
    removed.

    Args:
        found: as Generator.run gives them.
        kept: their numbers.
        database: whose prototypes are known.
        energies: number -> eV/atom relaxed by the potential, where that ranked them.

    Returns:
        material_id -> layer of those kept.
    """
    for stale in out.glob("gen_*.cif"):
        stale.unlink()
    rows, structures = [], {}
    front = _front(opinions(found), guide)
    for k, row in enumerate(found):
        atoms = unpack_atoms(row["atoms"])
        identity = name_of(k, atoms)
        columns = {
            "material_id": identity,
            "formula": "" if atoms is None else reduced_formula(atoms),
            "template": row["template"],
            "layer_group": "" if atoms is None else layer_group(atoms),
            "prototype_known": "" if atoms is None else database.holds_prototype(atoms),
            "pareto": front[k],
            "kept": k in kept,
            "relaxed_energy_eV_per_atom": (energies or {}).get(k, ""),
            "failure": row["failure"],
            "redrawn": row["redrawn"],
            "nfe": row["nfe"],
            "seconds": row["seconds"],
        }
        rows.append(columns | dict(zip(HEADS, row["heads"])))
        if k in kept:
            structures[identity] = atoms
            write_cif(out / f"{identity}.cif", atoms)
    write_rows(out / "generated.csv", rows, COLUMNS)
    return structures


def name_of(number: int, atoms: Atoms | None) -> str:
    """material_id of a drawn structure: no brackets in a file's name."""
    plain = "failed" if atoms is None else atoms.get_chemical_formula(empirical=True)
    return f"gen_{number:04d}_{plain}"


def ranked_by_potential(
    found: list[dict], count: int, settings: Settings, shard: Shard
) -> tuple[set[int], dict[int, float], list[str]]:
    """Which `count` structures of one formula have the lowest energy when relaxed with the potential.

    Returns:
        their numbers; number -> eV/atom of all that relaxed; lines that say what it cost.
    """
    structures = {k: unpack_atoms(row["atoms"]) for k, row in enumerate(found) if row["atoms"]}
    names = {name_of(k, atoms): k for k, atoms in structures.items()}
    relaxed, potential = relaxations(dict(zip(names, structures.values())), settings, shard)
    order = [names[name] for name in by_energy(relaxed)]
    energies = {
        names[name]: round(relaxed[name].energy, 4) for name in relaxed if relaxed[name].atoms is not None
    }
    spent = [one.seconds for one in relaxed.values() if one.seconds]
    drawing = sum(row["seconds"] for row in found)
    line = f"ranked by {potential}: {len(spent)} different ones of {len(found)} relaxed in {sum(spent):.0f} "
    line += (
        f"core-seconds, beside {drawing:.0f} for drawing them; {len(energies)} of {len(found)} have an energy"
    )
    return set(order[:count]), energies, [line]


def write_cif(path: Path, atoms: Atoms) -> None:
    """CIF of a layer with its layer group and the Wyckoff position of each atom in it.

    CIF has no item for a layer group: the symbol and the number stand under names of our own, which readers
    pass over. Every atom is listed, so a reader needs no operations.
    """
    found = layer_operations(atoms)
    letters = found.wyckoff or ("a",) * len(atoms)
    write(path, atoms, format="cif", loop_keys={"_atom_site_Wyckoff_symbol": [letters]})
    text = path.read_text()
    head, rest = text.split("\n", 1)
    group = f"_her2d_layer_group_name_H-M '{found.group}'\n_her2d_layer_group_number {found.number}"
    write_text(path, f"{head}\n{group}\n{rest}")


def _front(heads: np.ndarray, guide: Guide) -> np.ndarray:
    """[n] which structures are on the Pareto front of |ΔG_H − target|, E_hull above 0, and P_synth."""
    return pareto_front(
        np.column_stack([abs(heads[:, 0] - guide.delta_g_h), np.maximum(heads[:, 1], 0), -heads[:, 2]])
    )


def summary(found: list[dict], kept: set[int], guide: Guide) -> list[str]:
    """Lines that say what was drawn."""
    heads = opinions(found)
    formulas = {reduced_formula(unpack_atoms(found[k]["atoms"])) for k in kept}
    lines = []
    for failure, count in Counter(row["failure"] for row in found if row["failure"]).items():
        lines.append(f"{count} of {len(found)} are not written: {failure} ({REMEDIES[failure]})")
    again = sum(row["redrawn"] > 0 for row in found)
    if again:
        lines.append(f"{again} of {len(found)} were drawn again, as {COINCIDENT} had come out")
    lines += [f"{len(kept)} of {len(found)} structures as CIFs, {len(formulas)} formulas"]
    if not np.isnan(heads).all():
        unsure = sum(heads[k, 3] > UNSURE for k in kept)
        lines.append(
            f"ΔG_H by the heads is uncertain by more than {UNSURE} eV on {unsure} of them; "
            f"{_front(heads, guide).sum()} of all are on the Pareto front"
        )
    return lines


def refine(structures: dict[str, Atoms], model, settings: Settings, shard: Shard) -> list[str]:
    """Relaxes the structures with the potential: *.cif, and refined.csv with the heads' opinion before and
    after, in the folder of the shard.

    Args:
        structures: material_id -> layer.
        model: whose heads judge.
        settings: of the evaluator: potential, device, processes.
        shard: keeps what was relaxed.

    Returns:
        lines that say how many there are, and name what failed or left two dimensions.
    """
    potential = load_potential(settings.potential, settings.potential_checkpoint, settings.device)
    tasks, folder = list(structures.items()), shard.path.parent
    checkpoint = settings.potential_checkpoint
    found = computed(relax_one, tasks, settings, potential, checkpoint, shard, "refining", RELAXATION)
    for stale in folder.glob("gen_*.cif"):
        stale.unlink()
    rows, lines = [], []
    for (name, atoms), result in zip(tasks, found):
        if not result.get("relaxed"):
            lines.append(f"not refined: {name}: {result.get('lost') or result['row'].get('error')}")
            continue
        relaxed = unpack_atoms(result["relaxed"])
        write(folder / f"{name}.cif", relaxed)
        row = {column: result["row"].get(column) for column in ("rmsd_relaxed_A", "converged")}
        before, after = head_properties(model, [atoms, relaxed], settings.device).tolist()
        for head, x, y in zip(HEADS, before, after):
            row |= {head: f"{x:.4f}", f"{head}_refined": f"{y:.4f}"}
        rows.append({"material_id": name} | row)
    if rows:
        write_rows(folder / "refined.csv", rows, list(rows[0]))
    count = f"{len(rows)} of {len(structures)} structures refined with {potential.name} in {folder}"
    return [*lines, f"{count}: report them apart from the others"]
