"""From potentials to DFT: what ΔE_H by DFT would be at a pose, with a standard deviation.

A Gaussian process on what two potentials of different training data say of the pose and on the surroundings
of H, fitted to the DFT data set (python -m data.build.dft_correction). It keeps its training points as plain
numbers: its file holds no code, and a prediction far from all of them is as wide as the prior.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, Kernel, WhiteKernel

from models.crystals.elements import element_features
from models.infra.files import read_json, write_json

SHELL = 0.1  # decay of a neighbour's weight, in sums of covalent radii beyond the shortest bond to H
FEATURES = (
    "delta_e",  # by the potential that made the pose, eV
    "second_minus_first",  # by the second potential at this pose, less the former, eV
    "near_electronegativity",  # of the neighbours of H, weighted mean
    "near_radius",
    "near_valence",
    "coordination",  # number of neighbours by their weights
    "bond",  # shortest distance of H, in sums of covalent radii
    "height",  # of H above the outermost nucleus of its face, Å
    "electronegativity",  # of the layer: mean, and spread, which tells ionic from metallic
    "electronegativity_spread",
    "valence",
)
PRIOR = 0.6  # eV: by how much ΔE_H by DFT and by a potential differ before anything is known


def site_features(pose: Atoms) -> list[float]:
    """FEATURES but the first two; invariant under rotation, mirror, translation and the order of atoms.

    Args:
        pose: supercell with H as the last atom.
    """
    host, last = pose.numbers[:-1], len(pose) - 1
    ratio = pose.get_distances(last, range(last), mic=True)
    ratio = ratio / (covalent_radii[host] + covalent_radii[pose.numbers[-1]])
    weight = np.exp(-(ratio - ratio.min()) / SHELL)  # [N]
    _, _, electronegativity, radius, valence = np.array([element_features(int(z)) for z in host]).T
    near = [weight @ column / weight.sum() for column in (electronegativity, radius, valence)]
    heights, h = pose.positions[:-1, 2], pose.positions[-1, 2]
    outside = h - heights.max() if h > heights.mean() else heights.min() - h
    whole = [electronegativity.mean(), electronegativity.std(), valence.mean()]
    return [*near, weight.sum(), ratio.min(), outside, *whole]


def features(pose: Atoms, delta_e: float, second: float) -> list[float]:
    """FEATURES of a pose with ΔE_H (eV) by the two potentials."""
    return [delta_e, second - delta_e, *site_features(pose)]


@dataclass
class GaussianProcess:
    """Regression of y on standardised features: a plane, a squared exponential about it, and noise.

    Attributes:
        x: [n, F] features.
        y: [n] eV.
        hyperparameters: {"slope" eV a standard deviation, "amplitude" eV, "length" in standard deviations of
            the features, "noise" eV}.
        widening: factor on the standard deviation that makes it cover what it says on held-out layers.
    """

    x: np.ndarray
    y: np.ndarray
    hyperparameters: dict[str, float]
    widening: float = 1.0

    def __post_init__(self):
        self.mean, self.scale, self.offset = self.x.mean(0), self.x.std(0) + 1e-9, float(self.y.mean())
        self.model = GaussianProcessRegressor(_kernel(**self.hyperparameters), optimizer=None)
        self.model.fit(self._standard(self.x), self.y - self.offset)

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray) -> "GaussianProcess":
        """Hyperparameters of the highest marginal likelihood."""
        standard = (x - x.mean(0)) / (x.std(0) + 1e-9)
        start = _kernel(PRIOR / 3, PRIOR / 3, math.sqrt(x.shape[1]), PRIOR / 3)
        found = GaussianProcessRegressor(start, n_restarts_optimizer=2, random_state=0)
        kernel = found.fit(standard, y - y.mean()).kernel_
        plane, bumps, noise = kernel.k1.k1, kernel.k1.k2, kernel.k2
        named = {
            "slope": math.sqrt(plane.k1.constant_value),
            "amplitude": math.sqrt(bumps.k1.constant_value),
            "length": float(bumps.k2.length_scale),
            "noise": math.sqrt(noise.noise_level),
        }
        return cls(x, y, named)

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mean, standard deviation) [m] eV of y, noise included, at features [m, F]."""
        mean, std = self.model.predict(self._standard(x), return_std=True)
        return mean + self.offset, std * self.widening

    def _standard(self, x: np.ndarray) -> np.ndarray:
        return (np.asarray(x) - self.mean) / self.scale


def _kernel(slope: float, amplitude: float, length: float, noise: float) -> Kernel:
    # Bounds in eV and standard deviations: noise below 0.05 eV would claim more than DFT's own convergence.
    plane = ConstantKernel(slope**2, (0.01**2, 1.0**2)) * DotProduct(0.0, "fixed")
    bumps = ConstantKernel(amplitude**2, (0.01**2, 3.0**2)) * RBF(length, (3.0, 50.0))
    return plane + bumps + WhiteKernel(noise**2, (0.1**2, 1.0**2))


class DftCorrection:
    """ΔE_H by DFT of poses that a potential has relaxed.

    Args:
        process: predicts DFT minus the potential from FEATURES.
        potential: name (models.physics.potentials.Potential.name) that it was fitted for.
        second: spec of the second potential, e.g. "diep".
    """

    def __init__(self, process: GaussianProcess, potential: str, second: str):
        self.process, self.potential, self.second = process, potential, second

    @classmethod
    def load(cls, path: Path) -> "DftCorrection":
        """Reads what `save` wrote.

        Raises:
            ValueError: names the file if it holds something else.
        """
        content = read_json(path)
        try:
            if content["features"] != list(FEATURES):
                raise KeyError("features")
            x, y = np.array(content["x"], float), np.array(content["y"], float)
            process = GaussianProcess(x, y, content["hyperparameters"], content["widening"])
            return cls(process, content["potential"], content["second"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no correction to DFT ({error}): python -m data.build.dft_correction"
            ) from None

    def save(self, path: Path, about: dict) -> None:
        """Writes the correction and `about`, what is to be known of it, as JSON."""
        process = self.process
        write_json(
            path,
            about
            | {
                "potential": self.potential,
                "second": self.second,
                "features": list(FEATURES),
                "hyperparameters": process.hyperparameters,
                "widening": process.widening,
                "x": np.round(process.x, 5).tolist(),
                "y": np.round(process.y, 5).tolist(),
            },
        )

    def delta_e(
        self, poses: list[Atoms], delta_e: np.ndarray, second: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ΔE_H by DFT, its standard deviation) [n] eV.

        Args:
            poses: supercells with H last, relaxed by the potential.
            delta_e: [n] eV by the potential.
            second: [n] eV by the second potential at the same poses.
        """
        x = np.array([features(*row) for row in zip(poses, delta_e, second)])
        mean, std = self.process.predict(x)
        return delta_e + mean, std
