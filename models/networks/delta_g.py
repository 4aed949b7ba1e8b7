"""ΔG_H of a layer, twice: predicted by DimeNet++ from the starting pose, and by the potential with H and
layer relaxed.

ΔG_H = min over symmetry-distinct sites on both faces of ΔE_H, plus the correction (design: 0.27 eV).
"""

import numpy as np
from ase import Atoms
from tqdm import tqdm

from models.crystals.sites import adsorption_sites, roomy, with_hydrogen
from models.crystals.thresholds import CORRECTION
from models.datasets.adsorption import adsorption_graph
from models.networks.dimenet import Ensemble, predict_spread

CHUNK = 32  # layers whose sites are predicted together


def predict_delta_g(
    model: Ensemble, layers, batch_size: int = 64, correction: float = CORRECTION, progress: bool = False
):
    """Predicted ΔG_H of layers, site by site from the starting pose of H.

    Args:
        layers: list of (name, ASE layer in the convention).

    Yields:
        (name, {"delta_g_h": eV, "delta_g_h_std": eV or None, "h_site", "h_position": [3] Å in the supercell,
        "sites": n}); a layer that fails gives {"error": why}.
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
                    "delta_g_h": float(energy + correction),
                    "delta_g_h_std": None if np.isnan(spread) else float(spread),
                    "h_site": site.label,
                    "h_position": graph.pos[-1].tolist(),
                }
        yield from results.items()


def _site_graph(atoms: Atoms, site, model):
    slab = roomy(with_hydrogen(atoms, site))
    return adsorption_graph(slab, slab.get_tags(), model.cutoff)
