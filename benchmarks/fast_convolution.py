"""Time of a SevenNet force call with its own convolution and with ours, side by side: python -m
benchmarks.fast_convolution
"""

import statistics
import time

import torch
from ase.build import mx2
from sevenn.calculator import SevenNetCalculator

from models.physics.fast_convolution import speed_up
from models.physics.potentials import SEVENNET_MODELS

ROUNDS = 8


def seconds(calculator, atoms) -> float:
    """Of one force call."""
    atoms = atoms.copy()
    atoms.calc = calculator
    atoms.rattle(0.01, seed=time.time_ns() % 2**32)
    begin = time.perf_counter()
    atoms.get_forces()
    return time.perf_counter() - begin


def main():
    torch.set_num_threads(1)
    model = SEVENNET_MODELS["sevennet"]
    own, ours = (SevenNetCalculator(model, device="cpu") for _ in range(2))
    speed_up(ours.model)
    for size in (1, 2, 3):
        atoms = mx2("MoS2", size=(size, size, 1), vacuum=8.0)
        atoms.pbc = True
        rounds = [(seconds(own, atoms), seconds(ours, atoms)) for _ in range(ROUNDS + 1)][1:]
        slow, fast = (statistics.median(times) for times in zip(*rounds))
        print(f"{len(atoms):3d} atoms: {slow:.3f} s as shipped, {fast:.3f} s here, ratio {slow / fast:.2f}")


if __name__ == "__main__":
    main()
