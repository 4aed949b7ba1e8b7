"""Hydrogen on a layer, as energy: ΔE_H and ΔG_H by an interatomic potential.

ΔE_H = E(layer + H) − E(layer) − ½ E(H2), all from one potential; ΔG_H ≈ ΔE_H + CORRECTION.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property

from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.constraints import FixAtoms
from ase.optimize import BFGS

from models.crystals.layer import extract_layer
from models.crystals.sites import Site, adsorption_flag, adsorption_sites, roomy, with_hydrogen
from models.crystals.thresholds import CORRECTION
from models.physics.potentials import relax_layer, single_point

SCAN = (-0.35, 0.0, 0.35)  # Å, heights tried about the starting one
RECONSTRUCTED = 0.1  # eV: a slab that ends lower by more, H taken off, was not the reference
FMAX = 0.05  # eV/Å, force on the free atoms at which H has settled; ΔE_H moves by less than 0.01 eV below it
RIGID_STEPS, RELAXED_STEPS = 60, 120  # most optimizer steps with H alone free, and with everything free

VERSION = 2  # of the oracle's answers; kept results of another one are computed again

ADSORBED = "adsorbed"
NOT_CONVERGED = "not converged"


@dataclass(frozen=True)
class Adsorption:
    """ΔE_H at one site of a rigid layer.

    Attributes:
        site: where H started.
        start, end: supercell with H (last atom, tag 2) before and after relaxation.
        slab_energy: of the supercell without H, eV.
        delta_e: eV.
        converged: whether the force on H fell below FMAX.
        flag: "" for adsorbed, else why this is no adsorption.
    """

    site: Site
    start: Atoms
    end: Atoms
    slab_energy: float
    delta_e: float
    converged: bool
    flag: str

    @property
    def outcome(self) -> str:
        """What became of H: the flag, else NOT_CONVERGED or ADSORBED."""
        return _outcome(self.flag, self.converged)


@dataclass(frozen=True)
class Released:
    """ΔE_H with everything relaxed, and what the slab does without its H.

    Attributes:
        end: the relaxed pose, H last.
        delta_e: eV, against the slab as it was.
        slab_change: eV by which the slab, H taken off and relaxed again, lies above where it began.
        converged: whether the relaxations with H and without it both did; a slab that is still on its way
            down has not been shown to come back.
        flag: as adsorption_flag, or "reconstructed": the slab ended more than RECONSTRUCTED lower than it
            began.
    """

    end: Atoms
    delta_e: float
    slab_change: float
    converged: bool
    flag: str

    @property
    def outcome(self) -> str:
        """What became of H: the flag, else NOT_CONVERGED or ADSORBED."""
        return _outcome(self.flag, self.converged)


def _outcome(flag: str, converged: bool) -> str:
    return flag or (ADSORBED if converged else NOT_CONVERGED)


@dataclass(frozen=True)
class HydrogenResult:
    """What the oracle says of a layer.

    Attributes:
        delta_g_h: eV; None where H adsorbs nowhere, or the layer reconstructs under it.
        rigid_delta_g_h: eV, with H alone relaxed; None where it adsorbs nowhere.
        slab_change: eV, of the last site tried with everything relaxed (Released); None before that.
        site: label of the site of delta_g_h.
        pose: supercell with H last that delta_g_h belongs to.
        flags: outcome -> number of sites, H alone relaxed.
        relaxed_flags: the same of the sites tried with everything relaxed.
    """

    delta_g_h: float | None = None
    rigid_delta_g_h: float | None = None
    slab_change: float | None = None
    site: str | None = None
    pose: Atoms | None = None
    flags: dict[str, int] = field(default_factory=dict)
    relaxed_flags: dict[str, int] = field(default_factory=dict)

    @property
    def reconstructed(self) -> bool:
        """Whether the layer falls lower once H has been on it, so that it is no reference."""
        return "reconstructed" in self.relaxed_flags

    @property
    def flags_text(self) -> str:
        """Outcomes at the rigid sites and, behind "then", with the layer free, e.g. "adsorbed:2 sunk:1 then
        reconstructed:1".
        """
        return " then ".join(filter(None, [_counts(self.flags), _counts(self.relaxed_flags)]))


def _counts(flags: dict[str, int]) -> str:
    return " ".join(f"{flag}:{count}" for flag, count in sorted(flags.items()))


def hydrogen_energy(calculator: BaseCalculator) -> float:
    """½ E(H2) in eV from the potential, the bond relaxed."""
    molecule = Atoms("H2", [(0, 0, 0), (0, 0, 0.75)], cell=[15.0] * 3, pbc=True)
    molecule.calc = calculator
    BFGS(molecule, logfile=None).run(fmax=0.01, steps=100)
    return float(molecule.get_potential_energy()) / 2


class HydrogenOracle:
    """ΔG_H of layers by one potential.

    H alone is relaxed at the best sites of a height scan, which ranks them. With `relaxed`, everything is
    then relaxed at the best site, or at the next one while H does not stay or abstracts a surface atom; H is
    taken off and the slab relaxed again. Where the slab ends lower than it began it was no reference for any
    site, and there is no ΔG_H.

    Args:
        calculator: ASE calculator with energy and forces.
        correction: ΔE_ZPE − TΔS, eV.
        sites: at how many sites H is relaxed, lowest height scan first; 0 for all.
        relaxed: whether the layer moves too.
    """

    def __init__(
        self,
        calculator: BaseCalculator,
        correction: float = CORRECTION,
        sites: int = 0,
        relaxed: bool = True,
    ):
        self.calculator = calculator
        self.correction = correction
        self.sites = sites
        self.relaxed = relaxed

    @cached_property
    def half_h2(self) -> float:
        """½ E(H2), eV."""
        return hydrogen_energy(self.calculator)

    def own_layer(self, atoms: Atoms, fmax: float = 0.05, steps: int = 200) -> tuple[Atoms, float]:
        """A layer as this potential relaxes it, in the convention, and its energy in eV.

        Another method's geometry is no reference: what it relaxes by would be counted as adsorption.

        Raises:
            ValueError: the relaxation did not converge, or left two dimensions (NotALayer).
        """
        found = relax_layer(atoms, self.calculator, fmax=fmax, steps=steps)
        if found.problem:
            raise ValueError(f"relaxation: {found.problem}")
        return extract_layer(found.atoms).atoms, found.energy

    def delta_e_at(self, layer: Atoms, pose: Atoms) -> float:
        """ΔE_H (eV) of a pose (supercell, H last) on its layer as they stand, whoever relaxed them."""
        cells = (len(pose) - 1) // len(layer)
        slab = single_point(roomy(layer), self.calculator)
        return single_point(roomy(pose), self.calculator) - cells * slab - self.half_h2

    def delta_g(self, layer: Atoms) -> HydrogenResult:
        """ΔG_H of a layer that this potential has relaxed, in the convention."""
        energy = single_point(roomy(layer), self.calculator)
        found = self.adsorb(layer, energy, self.sites)
        flags = dict(Counter(result.outcome for result in found))
        good = [result for result in found if result.outcome == ADSORBED]
        if not good:
            return HydrogenResult(flags=flags)
        good.sort(key=lambda result: result.delta_e)
        best = good[0]
        answer = HydrogenResult(rigid_delta_g_h=best.delta_e + self.correction, flags=flags)
        if self.relaxed:
            return self._release_in_turn(answer, good)
        return replace(answer, delta_g_h=answer.rigid_delta_g_h, site=best.site.label, pose=best.end)

    def _release_in_turn(self, answer: HydrogenResult, good: list[Adsorption]) -> HydrogenResult:
        """Everything relaxed at one site after the other until H stays."""
        tried = Counter()
        for result in good:
            free = self.release(result.end, result.site.face, result.slab_energy)
            tried[free.outcome] += 1
            answer = replace(answer, slab_change=free.slab_change, relaxed_flags=dict(tried))
            if free.outcome == ADSORBED:
                delta_g = free.delta_e + self.correction
                return replace(answer, delta_g_h=delta_g, site=result.site.label, pose=free.end)
            if free.flag == "reconstructed":
                break
        return answer

    def adsorb(self, layer: Atoms, energy: float, top: int = 0) -> list[Adsorption]:
        """ΔE_H on the rigid layer: a height scan at every site, then H relaxed at the best of them.

        Args:
            layer: a relaxed layer in the convention.
            energy: of `layer` by this potential, eV.
            top: how many sites are relaxed, lowest scan first; 0 for all.
        """
        scanned = [(site, *self._scan(layer, site)) for site in adsorption_sites(layer)]
        scanned.sort(key=lambda item: item[3])
        results = []
        for site, start, moved, _ in scanned[: top or None]:
            moved.set_constraint(FixAtoms(range(len(moved) - 1)))
            relaxed = relax_layer(moved, self.calculator, fmax=FMAX, steps=RIGID_STEPS, cell=False)
            end = relaxed.atoms
            end.set_constraint()
            slab_energy = (len(end) - 1) // len(layer) * energy
            delta_e = relaxed.energy - slab_energy - self.half_h2
            flag = adsorption_flag(end, site.face)
            results.append(Adsorption(site, start, end, slab_energy, delta_e, relaxed.converged, flag))
        return results

    def _scan(self, layer: Atoms, site: Site) -> tuple[Atoms, Atoms, float]:
        """Height scan of H over the rigid layer: (starting pose, best height, its energy in eV)."""
        start = roomy(with_hydrogen(layer, site))
        trials = []
        for lift in SCAN:
            trial = start.copy()
            trial.positions[-1, 2] += site.face * lift
            trials.append((single_point(trial, self.calculator), trial))
        energy, best = min(trials, key=lambda item: item[0])
        return start, best, energy

    def release(self, pose: Atoms, face: int, slab_energy: float) -> Released:
        """Relaxes slab and H together in the cell, then takes H off and relaxes the slab again.

        Args:
            pose: slab with H as the last atom.
            face: that H sits on, +1 or −1.
            slab_energy: of the pose's slab, relaxed without H by this potential, eV.
        """
        limits = {"fmax": FMAX, "steps": RELAXED_STEPS, "cell": False}
        relaxed = relax_layer(pose, self.calculator, **limits)
        again = relax_layer(relaxed.atoms[:-1], self.calculator, **limits)
        change = again.energy - slab_energy
        flag = adsorption_flag(relaxed.atoms, face) or ("reconstructed" if change < -RECONSTRUCTED else "")
        delta_e = relaxed.energy - slab_energy - self.half_h2
        converged = relaxed.converged and again.converged
        return Released(relaxed.atoms, delta_e, change, converged, flag)
