"""Diffusion inside a layer group: noise, updates and drift projected onto the symmetric degrees of freedom.

The network is equivariant, so a symmetric layer stays symmetric under an update without noise, and atoms on
special positions stay there. What is left to do is to project what is not equivariant: the Gaussian noise,
the lattice channel (which depends on the basis), and the rounding. The projections are orthogonal, in Å for
the atoms and in standardised units for the lattice: noise of variance σ² in every direction has variance σ²
along every symmetric one, which is what the network was told of the noise level. (Published for bulk:
DiffCSP++, arXiv:2402.03992; SymmCD, arXiv:2502.03638.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.crystals.symmetry import Operations
from models.networks.layers import Layers, TensorFields

PASSES = 3  # of the lattice's projection; one is exact but for centred rectangular cells in a skewed basis


@dataclass
class Symmetry(TensorFields):
    """The operations of B layers of at most N atoms, padded to G.

    Attributes:
        rotations: [B, G, 2, 2] on fractional coordinates.
        signs: [B, G] of z.
        translations: [B, G, 2] fractional.
        sources: [B, G, N] the atom that each operation sends to this one.
        share: [B, G] one over the number of operations, 0 on padding.
    """

    rotations: Tensor
    signs: Tensor
    translations: Tensor
    sources: Tensor
    share: Tensor

    @classmethod
    def of(cls, operations: Sequence[Operations], atoms: int) -> "Symmetry":
        """Padded batch for layers that are padded to `atoms`."""
        count, most = len(operations), max(len(group) for group in operations)
        out = cls(
            torch.eye(2).repeat(count, most, 1, 1),
            torch.ones(count, most),
            torch.zeros(count, most, 2),
            torch.arange(atoms).repeat(count, most, 1),
            torch.zeros(count, most),
        )
        for k, group in enumerate(operations):
            size, n = group.images.shape
            out.rotations[k, :size] = torch.tensor(group.rotations, dtype=torch.float32)
            out.signs[k, :size] = torch.tensor(group.signs, dtype=torch.float32)
            out.translations[k, :size] = torch.tensor(group.translations, dtype=torch.float32)
            out.sources[k, :size, :n] = torch.tensor(group.images).argsort(1)  # the inverse permutation
            out.share[k, :size] = 1 / size
        return out

    def _from_sources(self, x: Tensor) -> Tensor:
        """[B, G, N, …] of x [B, N, …]: what the atom has that each operation sends here."""
        batch = torch.arange(len(x), device=x.device)[:, None, None]
        return x[batch, self.sources]

    def _mean(self, x: Tensor) -> Tensor:
        """Mean over the operations [B, N, …] of x [B, G, N, …]."""
        return torch.einsum("bg,bgn...->bn...", self.share.to(x), x)

    def displacements(self, frac: Tensor) -> Tensor:
        """Symmetric part of displacements [B, N, 2] in fractional coordinates."""
        sent = torch.einsum("bgij,bgnj->bgni", self.rotations.to(frac), self._from_sources(frac))
        return self._mean(sent)

    def heights(self, z: Tensor) -> Tensor:
        """Symmetric part of heights or displacements along z [B, N]."""
        return self._mean(self.signs.to(z)[..., None] * self._from_sources(z))

    def positions(self, frac: Tensor) -> Tensor:
        """Fractional coordinates [B, N, 2] that obey the operations exactly, from some that nearly do."""
        sent = torch.einsum("bgij,bgnj->bgni", self.rotations.to(frac), self._from_sources(frac))
        away = sent + self.translations.to(frac)[:, :, None] - frac[:, None]  # [B, G, N, 2]
        return (frac + self._mean(away - torch.round(away))) % 1.0

    def metric(self, metric: Tensor) -> Tensor:
        """Mean of Wᵀ G W over the operations: the invariant part of a metric [B, 2, 2]."""
        turn = self.rotations.to(metric)
        return torch.einsum("bg,bgji,bjk,bgkl->bil", self.share.to(metric), turn, metric, turn)

    def lattice(self, lattice: Tensor, count: Tensor, diffusion) -> Tensor:
        """The standardised lattice [B, 3] of the group that is nearest to this one.

        The invariant lattices are a plane in S = ½ log G for all groups in the bases met in practice but one
        (centred rectangular cells in a skewed basis), where they are a curved surface: there each pass is a
        step along the tangent and back onto the surface.

        Args:
            count: [B] atoms.
            diffusion: whose scale the lattice is in.
        """
        x = lattice.double()
        on = self._onto(x, count, diffusion)  # some point of the surface
        for _ in range(PASSES):
            on = self._onto(on + self._along(x - on, on, count, diffusion), count, diffusion)
        return on.to(lattice)

    def _onto(self, x: Tensor, count: Tensor, diffusion) -> Tensor:
        return diffusion.encode_metric(self.metric(diffusion.decode_metric(x, count)), count)

    def _along(self, step: Tensor, on: Tensor, count: Tensor, diffusion) -> Tensor:
        """Part of a step [B, 3] tangential to the surface of invariant lattices at one of them."""
        units = step.new_tensor([[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 1], [1, 0]]])
        # [B, 3, 2, 2]
        invariant = torch.stack([self.metric(unit.expand(len(step), 2, 2)) for unit in units], 1)
        values, vectors = torch.linalg.eigh(diffusion.decode_metric(on, count))
        slope = _log_slope(values)  # [B, 2, 2]
        inner = vectors.mT[:, None] @ invariant @ vectors[:, None]
        change = vectors[:, None] @ (slope[:, None] * inner) @ vectors.mT[:, None]  # [B, 3, 2, 2] of log G
        change = 0.5 * torch.stack([change[..., 0, 0], change[..., 1, 1], change[..., 0, 1]], -1)
        basis = torch.linalg.svd((change / diffusion.lattice_std.to(step)).mT).U  # [B, 3, 3], columns
        # averaging is a projection of the three components: its trace is the number of free ones
        free = invariant[:, 0, 0, 0] + invariant[:, 1, 1, 1] + invariant[:, 2, 0, 1]
        kept = torch.arange(3, device=step.device) < free.round()[:, None]  # [B, 3]
        weights = torch.einsum("bij,bi->bj", basis, step) * kept
        return torch.einsum("bij,bj->bi", basis, weights)

    def settled(self, layers: Layers) -> Layers:
        """The layers with atoms exactly where the operations want them; the cell as it is."""
        keep = layers.mask.to(layers.z.dtype)
        frac = self.positions(layers.frac_coords) * keep[..., None]
        return layers.replace(frac_coords=frac, z=self.heights(layers.z) * keep)


def _log_slope(values: Tensor) -> Tensor:
    """[B, 2, 2] divided differences of the logarithm at the eigenvalues [B, 2] (Daleckii and Krein)."""
    one, other = values[:, :, None], values[:, None, :]
    gap = one - other
    same = gap.abs() < 1e-9 * (one + other)
    return torch.where(same, 1 / one, (one.log() - other.log()) / torch.where(same, 1.0, gap))
