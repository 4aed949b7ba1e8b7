"""ΔG_H of a layer, twice: predicted by DimeNet++ from the starting pose, and by the potential with H and layer relaxed.

ΔG_H = min over symmetry-distinct sites on both faces of ΔE_H, plus the correction (design: 0.27 eV).
"""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from tqdm import tqdm

from models.adsorption import CORRECTION, adsorb, hydrogen_energy, relax_and_release
from models.crystals.layer import extract_layer
from models.crystals.sites import adsorption_sites, roomy, with_hydrogen
from models.dimenet import Ensemble, adsorption_graph, predict_spread
from models.infra.jobs import run_jobs
from models.infra.shards import Shard
from models.potentials import load_potential, relax_layer, single_point

CHUNK = 32  # layers whose sites are predicted together
LABEL_SITES = 3  # sites at which a label's H is relaxed alone, before everything is at the best of them


def predict_delta_g(
    model: Ensemble, layers, batch_size: int = 64, correction: float = CORRECTION, progress: bool = False
):
    """Predicted ΔG_H of layers, site by site from the starting pose of H.

    Args:
        layers: list of (name, ASE layer in the convention).

    Yields:
        (name, {"delta_g_h": eV, "delta_g_h_std": eV or None, "h_site", "h_position": [3] Å in the supercell, "sites": n});
        a layer that fails gives {"error": why}.
    """
    bar = tqdm(range(0, len(layers), CHUNK), desc="ΔG_H by DimeNet++", disable=not progress, mininterval=2)
    for start in bar:
        graphs, owners, results = [], [], {}
        for name, atoms in layers[start : start + CHUNK]:
            try:
                sites = adsorption_sites(atoms)
                made = [_site_graph(atoms, site, model) for site in sites]
            except Exception as error:  # one bad structure costs one row
                results[name] = {"error": f"{type(error).__name__}: {error}"}
                continue
            graphs += made
            owners += [(name, site) for site in sites]
        energies, spreads = predict_spread(model, graphs, batch_size)
        for (name, site), graph, energy, spread in zip(owners, graphs, energies, spreads):
            best = results.setdefault(name, {"delta_g_h": np.inf, "sites": 0})
            best["sites"] += 1
            if energy + correction < best["delta_g_h"]:
                best |= {
                    "delta_g_h": float(energy + correction), "delta_g_h_std": None if np.isnan(spread) else float(spread),
                    "h_site": site.label, "h_position": graph.pos[-1].tolist(),
                }  # fmt: skip
        yield from results.items()


def _site_graph(atoms: Atoms, site, model):
    slab = roomy(with_hydrogen(atoms, site))
    return adsorption_graph(slab, slab.get_tags(), model.cutoff)


def oracle_delta_g(atoms: Atoms, calculator, half_h2: float, correction: float = CORRECTION, sites: int = 0, relaxed: bool = True):
    """ΔG_H by a potential.

    H alone is relaxed at the best sites of a height scan, which ranks them. With `relaxed`, everything is then relaxed at the
    best site, or at the next one while H does not stay; H is taken off and the slab relaxed again. Where the slab ends lower
    than it began it was no reference for any site, and there is no ΔG_H.

    Args:
        atoms: relaxed layer in the convention.
        half_h2: ½ E(H2) by the same potential, eV.
        sites: at how many sites H is relaxed, best height scan first; 0 for all.
        relaxed: whether the layer moves too.

    Returns:
        {"delta_g_h": eV or None where H adsorbs nowhere, "rigid_delta_g_h": eV or None, "slab_change": eV or None, "h_site",
        "pose": Atoms, "flags": {flag: count} of the rigid sites, "relaxed_flags": of those relaxed with the layer}.
    """
    energy = single_point(roomy(atoms), calculator)
    found = adsorb(atoms, calculator, adsorption_sites(atoms), energy, half_h2, top=sites)
    flags = Counter(_flag(result) for result in found)
    good = sorted((result for result in found if _flag(result) == "adsorbed"), key=lambda result: result.delta_e)
    none = {"delta_g_h": None, "rigid_delta_g_h": None, "slab_change": None, "h_site": None, "pose": None}
    answer = none | {"flags": dict(flags), "relaxed_flags": {}}
    if not good:
        return answer
    answer["rigid_delta_g_h"] = good[0].delta_e + correction
    if not relaxed:
        return answer | {"delta_g_h": answer["rigid_delta_g_h"], "h_site": good[0].site.label, "pose": good[0].end}
    tried = Counter()
    for result in good:
        cells = (len(result.end) - 1) // len(atoms)
        free = relax_and_release(result.end, result.site.face, calculator, cells * energy, half_h2)
        tried[_flag(free)] += 1
        answer |= {"slab_change": free.slab_change, "relaxed_flags": dict(tried)}
        if _flag(free) == "adsorbed":
            return answer | {"delta_g_h": free.delta_e + correction, "h_site": result.site.label, "pose": free.end}
        if free.flag == "reconstructed":
            break
    return answer


def _flag(result) -> str:
    """What became of H: "adsorbed", "not converged", or the flag of an Adsorption or a Released."""
    return result.flag or ("adsorbed" if result.converged else "not converged")


_worker = {}


def _start_oracle(potential: str, checkpoint: Path | None, correction: float):
    torch.set_num_threads(1)
    calculator = load_potential(potential, checkpoint).calculator
    _worker.update(calculator=calculator, half_h2=hydrogen_energy(calculator), correction=correction)


def _oracle_label(atoms: Atoms) -> dict:
    calculator = _worker["calculator"]
    try:
        relaxed = relax_layer(atoms, calculator)  # another method's geometry is no reference: what it relaxes by is no adsorption
        if not relaxed.converged:
            return {"error": relaxed.problem}
        layer = extract_layer(relaxed.atoms).atoms
        found = oracle_delta_g(layer, calculator, _worker["half_h2"], _worker["correction"], sites=LABEL_SITES)
    except Exception as error:  # one bad structure costs one row
        return {"error": f"{type(error).__name__}: {error}"}
    position = None if found["pose"] is None else found["pose"].positions[-1].tolist()
    flags = {name: found[name] for name in ("flags", "relaxed_flags")}
    return {name: found[name] for name in ("delta_g_h", "h_site")} | flags | {"h_position": position}


def oracle_labels(layers: dict[str, Atoms], shard: Shard, potential: str, checkpoint: Path | None, correction: float, jobs: int) -> None:
    """ΔG_H of layers by a potential, which relaxes them first (oracle_delta_g); appended to the shard by key.

    Args:
        layers: key -> layer in the convention.
        potential, checkpoint: as load_potential takes them.
        jobs: processes, one thread each.
    """
    lost = run_jobs(_oracle_label, layers, shard, jobs, _start_oracle, (potential, checkpoint, correction), "ΔG_H by the potential")
    for key, reason in lost.items():
        print(f"not labelled: {key}: {reason}")
