"""Model-free baselines that a predicted adsorption energy must beat: the mean, and extra-trees on composition
and site.
"""

import numpy as np
import torch
from ase.data import covalent_radii
from scipy.stats import spearmanr
from sklearn.ensemble import ExtraTreesRegressor
from torch_geometric.data import Data

from models.crystals.elements import composition_features, element_features
from models.datasets.adsorption import edge_vectors
from models.networks.dimenet import readout_atoms

# of the shells around the adsorbate, in sums of covalent radii beyond the shortest bond
WIDTHS = (0.1, 0.3, 0.8)
TREES = 300  # three times scikit-learn's default: a baseline must not lose by its own noise


def site_features(graph: Data) -> np.ndarray:
    """What the trees see of an adsorption graph; invariant under rotation, translation, mirror and
    permutation.

    Args:
        graph: fields of `models.datasets.adsorption.GRAPH_FIELDS`, adsorbate tagged.

    Returns:
        [F]: composition of the host; of each shell around the adsorbate the weighted mean of its elements'
        properties and its coordination number; length of the shortest bond in covalent sums.
    """
    adsorbate = readout_atoms(graph.tags, torch.zeros_like(graph.tags))
    numbers = graph.atomic_numbers.numpy()
    source, target = graph.edge_index
    seen = adsorbate[target] & ~adsorbate[source] if not adsorbate.all() else adsorbate[target]
    distance = edge_vectors(graph, torch.zeros_like(graph.tags))[seen].norm(dim=1).numpy()
    elements = numbers[source[seen].numpy()]
    ratio = distance / (covalent_radii[elements] + covalent_radii[numbers[target[seen].numpy()]])
    table = np.array([element_features(int(number)) for number in elements])
    shells = []
    for width in WIDTHS:
        weight = np.exp(-(ratio - ratio.min()) / width)
        shells += [*(weight @ table / weight.sum()), weight.sum() / int(adsorbate.sum())]
    host = numbers if adsorbate.all() else numbers[~adsorbate.numpy()]
    return np.array([*composition_features(host), *shells, ratio.min()])


def features_of(graphs: list[Data]) -> np.ndarray:
    """[n, F + 1] site features of graphs, and whether only the adsorbate moved to reach the target."""
    return np.stack([[*site_features(graph), graph.rigid] for graph in graphs])


def surrogate_report(
    energies: np.ndarray, spreads: np.ndarray, train: list[Data], test: list[Data], seed: int = 0
) -> dict:
    """Errors of predicted adsorption energies on held-out hosts beside the baselines' on the same data.

    Args:
        energies, spreads: [n] eV of the test graphs; spreads may be NaN.
        train, test: graphs with targets `y` (eV), `host` and `rigid`.

    Returns:
        {"rigid" | "relaxed": {n, hosts, train_hosts, mae, mae_mean, mae_median, mae_trees, mae_best_site (of
        each host's lowest energy), within_1_spread, within_2_spreads, spread_error_rank_correlation}},
        energies in eV; levels without test graphs are left out.
    """
    if not test:
        return {}
    y = np.array([graph.y for graph in train])
    trees = ExtraTreesRegressor(TREES, min_samples_leaf=2, max_features=0.4, random_state=seed)
    guesses = {
        "mean": np.full(len(test), y.mean()),
        "median": np.full(len(test), np.median(y)),
        "trees": trees.fit(features_of(train), y).predict(features_of(test)),
    }
    rigid = np.array([graph.rigid for graph in test])
    train_hosts = len({graph.host for graph in train})
    report = {}
    for level, chosen in (("rigid", np.flatnonzero(rigid)), ("relaxed", np.flatnonzero(~rigid))):
        if len(chosen):
            graphs = [test[k] for k in chosen]
            found = _errors(graphs, energies[chosen], spreads[chosen])
            for name, guess in guesses.items():
                found[f"mae_{name}"] = _mae(graphs, guess[chosen])
            report[level] = found | {"train_hosts": train_hosts}
    return report


def _mae(graphs: list[Data], energies: np.ndarray) -> float:
    """Mean absolute error of energies [n], eV."""
    return float(np.abs(energies - np.array([graph.y for graph in graphs])).mean())


def _errors(graphs: list[Data], energies: np.ndarray, spreads: np.ndarray) -> dict:
    """Errors of predicted energies [n] with their spreads [n] on graphs of one level."""
    true = np.array([graph.y for graph in graphs])
    hosts = np.array([graph.host for graph in graphs])
    best = []  # error of each host's lowest energy, which is what ΔG_H is made of
    for host in np.unique(hosts):
        best.append(energies[hosts == host].min() - true[hosts == host].min())
    error = np.abs(energies - true)
    found = {
        "n": len(graphs),
        "hosts": len(best),
        "mae": error.mean(),
        "mae_best_site": np.abs(best).mean(),
    }
    if np.isfinite(spreads).all():
        found |= {
            "within_1_spread": (error / spreads <= 1).mean(),
            "within_2_spreads": (error / spreads <= 2).mean(),
            "spread_error_rank_correlation": spearmanr(error, spreads).statistic,
        }
    return found
