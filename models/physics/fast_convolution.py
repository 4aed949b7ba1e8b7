"""SevenNet's convolution in fewer, larger tensor operations: the same numbers, more than twice the speed on a
CPU (python -m benchmarks.fast_convolution).

e3nn's generated code cuts its weights into one slice a path, and the gradient of every slice is a zeroed
tensor of the full size: half the time of a force call. Here all paths of one input degree are one batched
product.
"""

import itertools

import torch
from e3nn import o3
from torch import Tensor


class FastConvolution(torch.nn.Module):
    """Channel-wise ("uvu") tensor product of node features with edge harmonics, summed over the edges of each
    atom.

    Args:
        product: the e3nn TensorProduct whose paths it takes over.

    Attributes:
        weight_order: [weights], where this module's k-th weight stands in the product's own order.
    """

    def __init__(self, product: o3.TensorProduct):
        super().__init__()
        self.shapes = [(mul, ir.dim) for mul, ir in product.irreps_in1]
        self.slots = len(product.irreps_out)
        self.groups, self.weight_order = [], []
        starts = [0, *itertools.accumulate(path.path_shape[0] for path in product.instructions)]
        for degree, (mul, _) in enumerate(product.irreps_in1):
            couplings, dims, slots = [], [], []
            for path, start in zip(product.instructions, starts):
                if path.i_in1 != degree:
                    continue
                coupling = _coupling(product, path)
                couplings.append(coupling)
                dims.append(coupling.shape[1])
                slots.append(path.i_out)
                self.weight_order += range(start, start + mul)
            together = torch.cat(couplings, 1).flatten(1)  # [irreps_in2, Σ dims × dim of the degree]
            self.register_buffer(f"coupling{degree}", together, persistent=False)
            self.groups.append((dims, slots))

    def forward(
        self, x: Tensor, source: Tensor, target: Tensor, harmonics: Tensor, weights: Tensor
    ) -> Tensor:
        """Messages summed over the edges of each atom, [N, irreps_out].

        Args:
            x: node features [N, irreps_in1].
            source, target: atoms [E] of each edge.
            harmonics: of the edges, [E, irreps_in2].
            weights: [E, weights] in the order of `weight_order`.
        """
        nodes, sizes = len(x), []
        for (mul, _), (dims, _) in zip(self.shapes, self.groups):
            sizes.append(mul * len(dims))
        features = x.split([mul * dim for mul, dim in self.shapes], 1)
        out = [None] * self.slots
        for degree, (feature, weight) in enumerate(zip(features, weights.split(sizes, 1))):
            (mul, dim), (dims, slots) = self.shapes[degree], self.groups[degree]
            coupling = getattr(self, f"coupling{degree}")
            rotation = (harmonics @ coupling).view(-1, sum(dims), dim)  # [E, Σ dims, dim]
            feature = feature.view(nodes, mul, dim).transpose(1, 2).contiguous()  # [N, dim, mul]
            messages = torch.bmm(rotation, feature.index_select(0, source)).split(
                dims, 1
            )  # [E, dims, mul] each
            for slot, message, scale in zip(slots, messages, weight.split(mul, 1)):
                total = x.new_zeros(nodes, message.shape[1], mul)
                total = total.index_add_(0, target, message * scale.unsqueeze(1))  # [N, dims, mul]
                out[slot] = total.transpose(1, 2).flatten(1)
        return torch.cat(out, 1)


def _coupling(product: o3.TensorProduct, path) -> Tensor:
    """Clebsch-Gordan coefficients of a path with its weight, [irreps_in2, dim out, dim in], zero for other
    harmonics.
    """
    ir_in, ir_filter = product.irreps_in1[path.i_in1].ir, product.irreps_in2[path.i_in2].ir
    ir_out = product.irreps_out[path.i_out].ir
    coupling = torch.zeros(product.irreps_in2.dim, ir_out.dim, ir_in.dim)
    symbols = o3.wigner_3j(ir_in.l, ir_filter.l, ir_out.l).permute(1, 2, 0)
    coupling[product.irreps_in2.slices()[path.i_in2]] = path.path_weight * symbols
    return coupling


def speed_up(model: torch.nn.Module) -> None:
    """Replaces the convolutions of a loaded SevenNet model, in place."""
    from sevenn.nn.convolution import IrrepsConvolution

    for module in list(model.modules()):  # a list, for the loop adds modules
        if not isinstance(module, IrrepsConvolution):
            continue
        module.fast = FastConvolution(module.convolution)
        last = list(module.weight_nn.children())[
            -1
        ]  # the layer that makes the weights makes them in our order
        with torch.no_grad():
            last.weight.copy_(last.weight[:, module.fast.weight_order].clone())
        module.forward = _forward.__get__(module)


def _forward(self, data):
    target, source = data[self.key_edge_idx]
    weights = self.weight_nn(data[self.key_weight_input])
    total = self.fast(data[self.key_x], source, target, data[self.key_filter], weights)
    data[self.key_x] = total.div(self.denominator)
    return data
