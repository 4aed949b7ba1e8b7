"""From potentials to DFT: what ΔE_H by DFT would be at a pose, with a standard deviation.

A Gaussian process on what two potentials of different training data say of the pose and on the band gap of
the layer, fitted to the DFT data set (python -m data.build.dft_correction). Potentials bind H too strongly
where there is a gap: its electron must go to a state above it, and no potential knows where that lies. The
process keeps its training points as plain numbers: its file holds no code, and a prediction far from all of
them is as wide as the prior.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, Kernel

from models.infra.files import read_json, write_json

FEATURES = (
    "delta_e",  # by the potential that made the pose, eV
    "second_minus_first",  # by the second potential at this pose, less the former, eV
    "gap",  # band gap of the layer, eV, at most that of models.networks.gap.CAP
)
# eV; not below 0.1, which is more than DFT's own convergence
NOISES = (0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5)
GROWTH = 0.6  # 1/eV: held-out errors have a spread of 0.2 eV without a gap, and of 0.5 eV at a gap of 2.5 eV
PRIOR = 0.6  # eV: by how much ΔE_H by DFT and by a potential differ before anything is known
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(5)  # to average over a gap that is not known exactly


@dataclass
class GaussianProcess:
    """Regression of y on standardised features: a plane, a squared exponential about it, and noise.

    Attributes:
        x: [n, F] features.
        y: [n] eV.
        spread: [n] relative size of the noise of each point.
        hyperparameters: {"slope" eV a standard deviation, "amplitude" eV, "length" in standard deviations of
            the features, "noise" eV at a spread of 1}.
    """

    x: np.ndarray
    y: np.ndarray
    spread: np.ndarray
    hyperparameters: dict[str, float]

    def __post_init__(self):
        self.mean, self.scale, self.offset = self.x.mean(0), self.x.std(0) + 1e-9, float(self.y.mean())
        named = dict(self.hyperparameters)
        self.noise = named.pop("noise")
        variance = (self.noise * self.spread) ** 2
        self.model = GaussianProcessRegressor(_kernel(**named), alpha=variance, optimizer=None)
        self.model.fit(self._standard(self.x), self.y - self.offset)

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, spread: np.ndarray) -> "GaussianProcess":
        """Hyperparameters of the highest marginal likelihood, the noise among NOISES."""
        standard, best = (x - x.mean(0)) / (x.std(0) + 1e-9), None
        for noise in NOISES:
            start = _kernel(PRIOR / 3, PRIOR / 3, math.sqrt(x.shape[1]))
            found = GaussianProcessRegressor(start, alpha=(noise * spread) ** 2).fit(standard, y - y.mean())
            if best is None or found.log_marginal_likelihood_value_ > best[0]:
                best = found.log_marginal_likelihood_value_, noise, found.kernel_
        _, noise, kernel = best
        plane, bumps = kernel.k1, kernel.k2
        named = {
            "slope": math.sqrt(plane.k1.constant_value),
            "amplitude": math.sqrt(bumps.k1.constant_value),
            "length": float(bumps.k2.length_scale),
            "noise": noise,
        }
        return cls(x, y, spread, named)

    def predict(self, x: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mean, standard deviation) [m] eV of y, noise included, at features [m, F] of some spread [m]."""
        mean, std = self.model.predict(self._standard(x), return_std=True)
        return mean + self.offset, np.hypot(std, self.noise * spread)

    def _standard(self, x: np.ndarray) -> np.ndarray:
        return (np.asarray(x) - self.mean) / self.scale


def _kernel(slope: float, amplitude: float, length: float) -> Kernel:
    # Bounds in eV and standard deviations of the features.
    plane = ConstantKernel(slope**2, (0.01**2, 1.0**2)) * DotProduct(0.0, "fixed")
    return plane + ConstantKernel(amplitude**2, (0.01**2, 3.0**2)) * RBF(length, (1.0, 30.0))


def noise_spread(gap: np.ndarray) -> np.ndarray:
    """Relative size of the noise: 1 of a metal, GROWTH more for each eV of gap (eV)."""
    return 1.0 + GROWTH * np.asarray(gap)


class DftCorrection:
    """ΔE_H by DFT of poses that a potential has relaxed.

    Args:
        process: predicts DFT minus the potential from FEATURES.
        potential: name (models.physics.potentials.Potential.name) that it was fitted for.
        second: spec of the second potential, e.g. "diep".
        widening: factor on the standard deviation that makes it cover what it says on held-out layers.
    """

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, potential: str, second: str) -> "DftCorrection":
        """From FEATURES [n, F] and DFT minus the potential [n] eV."""
        return cls(GaussianProcess.fit(x, y, noise_spread(x[:, 2])), potential, second)

    def __init__(self, process: GaussianProcess, potential: str, second: str, widening: float = 1.0):
        self.process, self.potential, self.second, self.widening = process, potential, second, widening

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
            process = GaussianProcess(x, y, noise_spread(x[:, 2]), content["hyperparameters"])
            return cls(process, content["potential"], content["second"], content["widening"])
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
                "widening": self.widening,
                "x": np.round(process.x, 5).tolist(),
                "y": np.round(process.y, 5).tolist(),
            },
        )

    def delta_e(
        self, delta_e: np.ndarray, second: np.ndarray, gap: np.ndarray, gap_std: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ΔE_H by DFT, its standard deviation) [n] eV.

        Args:
            delta_e: [n] eV by the potential, at poses that it relaxed.
            second: [n] eV by the second potential at the same poses.
            gap, gap_std: [n] eV, expected band gap of the layers and its uncertainty.
        """
        means, variances = [], []
        for node in NODES:
            drawn = np.maximum(gap + node * gap_std, 0.0)
            x = np.column_stack([delta_e, second - delta_e, drawn])
            mean, std = self.process.predict(x, noise_spread(drawn))
            means.append(mean)
            variances.append(std**2)
        share = WEIGHTS / WEIGHTS.sum()
        mean = share @ means
        variance = share @ variances + share @ (np.array(means) - mean) ** 2
        return delta_e + mean, self.widening * np.sqrt(variance)
