"""Whether a relaxed layer sits in a minimum: phonons by finite displacements and in-plane elastic constants,
by any potential.

Force constants by phonopy (Togo et al. 2023, J. Phys.: Condens. Matter 35, 353001). No long-range correction:
LO-TO splitting of polar layers is missing, which moves the highest frequencies and not the verdict.
"""

import numpy as np
from ase import Atoms, units

from models.crystals.layer import reduce_plane
from models.crystals.thresholds import EXACT_SYMPREC
from models.physics.potentials import fully_periodic, relax_layer

# Å between in-plane images; at 9 the ZA branch of graphene and MoS2 dips to −0.8 and −1.0 THz near Γ
IMAGE_DISTANCE = 12.0
MAX_ATOMS = 150  # of the supercell; about 2 s a displacement with SevenNet l3i5 on one thread
NOISE = 0.1  # THz below zero that forces in single precision can make: 1e-5 eV/Å over 0.01 Å on a light atom
TOLERANCE = 0.5  # THz, imaginary flexural frequency near Γ that is still called stable
NEAR_GAMMA = 0.25  # of the shortest reciprocal vector: half of the way to the zone's edge
# overlap with the layer moving as one along z from which a mode counts as flexural acoustic; 0.75 in Janus
# MoSSe
RIGID = 0.5
PATH_POINTS = 120
FMAX, STEPS = (
    0.005,
    300,
)  # eV/Å; the atoms are relaxed further than for an energy, or the soft modes come out wrong
NEWTON_PER_METRE = units.J / units.m**2  # eV/Å^2
SHEARS = np.array(
    [[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 0.5], [0.5, 0]]]
)  # xx, yy and the engineering shear xy


def phonon_stability(
    layer: Atoms,
    calculator,
    supercell: int | None = None,
    displacement: float = 0.01,
    tolerance: float = TOLERANCE,
) -> dict:
    """Dynamic stability of a layer from phonons on the grid that the supercell holds and along the path of
    its plane lattice.

    Atoms are first relaxed in the given cell. The layer is unstable if any frequency lies below −NOISE,
    unless the mode is the flexural acoustic one (ZA) nearer to Γ than NEAR_GAMMA and no lower than
    −tolerance: force constants cut off at the supercell and not invariant to rotation bend that branch down.
    Whenever this was used, `note` says so. Where that branch alone falls
    lower, the supercell is made larger once: an artefact shrinks (FeSe, SevenNet: −0.63, −0.21, 0 THz at n =
        4, 5, 6).

    Args:
        layer: relaxed layer in the convention (models.crystals.layer); not changed.
        calculator: ASE calculator with forces.
        supercell: repeats along a and b, taken as given; by default as many along each as keep the images
            IMAGE_DISTANCE apart, fewer where that takes more than MAX_ATOMS atoms.
        displacement: Å.
        tolerance: THz.

    Returns:
        `verdict`: "stable", "unstable", or "failed" with the reason in `error`, the rest None;
        `lowest_frequency_THz` (negative: imaginary), `lowest_at` (name of a special point, or "(qx, qy)" in
        reciprocal vectors), `highest_frequency_THz`, `tolerated_ZA_THz` (lowest frequency that was tolerated,
        or None), `supercell` [na, nb, 1], `image_distance_A`, `displacements` (number), `note`. Frequencies
        come with the supercell that is named.
    """
    names = (
        "lowest_frequency_THz",
        "lowest_at",
        "highest_frequency_THz",
        "tolerated_ZA_THz",
        "supercell",
        "image_distance_A",
        "displacements",
        "note",
    )
    try:
        atoms = _settled(layer, calculator)
        repeats = (supercell, supercell) if supercell else _repeats(atoms)
        found, only_flexural = _judge(atoms, calculator, repeats, displacement, tolerance)
        larger = (repeats[0] + 1, repeats[1] + 1)
        if only_flexural and not supercell and np.prod(larger) * len(atoms) <= MAX_ATOMS:
            found, _ = _judge(atoms, calculator, larger, displacement, tolerance)
    except Exception as error:  # one bad structure costs one row
        return dict.fromkeys(names) | {"verdict": "failed", "error": f"{type(error).__name__}: {error}"}
    return found | {"error": ""}


def elastic_positivity(layer: Atoms, calculator, strain: float = 0.01) -> dict:
    """In-plane elastic constants by central differences of the stress, atoms relaxed at each strain, and
    their positivity.

    Args:
        layer: relaxed layer in the convention; not changed. Atoms are first relaxed in its cell.
        calculator: ASE calculator with forces and stress.
        strain: ±xx, ±yy and ±engineering shear.

    Returns:
        `verdict`: "stable" if the matrix in Voigt order (xx, yy, xy) is positive definite, "unstable", or
        "failed" with the reason in `error`, the rest None; `C11`, `C22`, `C12`, `C66`, `C16`, `C26`,
        `lowest_eigenvalue` and `residual_stress` [xx, yy, xy] of the layer as given, all in N/m.
    """
    names = ("C11", "C22", "C12", "C66", "C16", "C26", "lowest_eigenvalue", "residual_stress")
    try:
        start = _settled(layer, calculator)
        matrix = np.array([_stress_slope(start, calculator, strain * shear) for shear in SHEARS]) / strain
        if not np.isfinite(matrix).all():
            raise ValueError("elastic constants are not finite")
        residual = _membrane_stress(start, calculator).tolist()
    except Exception as error:  # one bad structure costs one row
        return dict.fromkeys(names) | {"verdict": "failed", "error": f"{type(error).__name__}: {error}"}
    matrix = (matrix + matrix.T) / 2
    lowest = float(np.linalg.eigvalsh(matrix).min())
    constants = {
        f"C{'126'[i]}{'126'[j]}": float(matrix[i, j])
        for i, j in ((0, 0), (1, 1), (0, 1), (2, 2), (0, 2), (1, 2))
    }
    more = {"lowest_eigenvalue": lowest, "residual_stress": residual}
    return constants | more | {"verdict": "stable" if lowest > 0 else "unstable", "error": ""}


def _settled(layer: Atoms, calculator) -> Atoms:
    """The layer with its atoms relaxed in its own cell.

    Raises:
        ValueError: c is not along z, or the relaxation did not converge.
    """
    if np.abs([layer.cell[2, :2], layer.cell[:2, 2]]).max() > 1e-5:
        raise ValueError(f"needs c along z and a, b across, got {layer.cell.array.round(4).tolist()}")
    relaxed = relax_layer(layer, calculator, fmax=FMAX, steps=STEPS, cell=False)
    if not relaxed.converged:
        raise ValueError(f"relaxing the atoms to {FMAX:g} eV/Å: {relaxed.problem}")
    return relaxed.atoms


def _shortest(atoms: Atoms, repeats) -> float:
    """Å between the in-plane images of a supercell."""
    return float(np.linalg.norm(reduce_plane(atoms.cell.array[:2, :2] * np.array(repeats)[:, None])[0]))


def _repeats(atoms: Atoms) -> tuple[int, int]:
    """Repeats along a and b that keep images IMAGE_DISTANCE apart, the larger one cut until MAX_ATOMS
    holds.
    """
    lengths = atoms.cell.lengths()[:2]
    if np.ptp(lengths) < 0.01 * lengths.max():  # equal but for rounding: a rotation may map a to b
        lengths[:] = lengths.min()
    repeats = np.maximum(np.ceil(IMAGE_DISTANCE / lengths - 0.01), 1).astype(int)
    while _shortest(atoms, repeats) < 0.99 * IMAGE_DISTANCE:
        repeats += 1
    while repeats.prod() * len(atoms) > MAX_ATOMS and repeats.max() > 1:
        repeats[repeats == repeats.max()] -= 1
    return int(repeats[0]), int(repeats[1])


def _force_constants(atoms: Atoms, calculator, repeats, displacement: float):
    """A phonopy object with force constants that obey the space group, the acoustic sum rule and the symmetry
    of indices.
    """
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    unit, _ = fully_periodic(atoms)
    cell = PhonopyAtoms(
        numbers=unit.numbers,
        cell=unit.cell.array,
        scaled_positions=unit.get_scaled_positions(),
        masses=unit.get_masses(),
    )
    phonon = Phonopy(cell, np.diag([*repeats, 1]), primitive_matrix=np.eye(3), symprec=EXACT_SYMPREC)
    phonon.generate_displacements(distance=displacement)
    phonon.forces = [_forces(moved, calculator) for moved in phonon.supercells_with_displacements]
    phonon.produce_force_constants(show_drift=False)
    phonon.symmetrize_force_constants(
        level=2, show_drift=False
    )  # phonopy 4.10's symfc projector ruins h-BN's: −28 THz
    return phonon


def _forces(cell, calculator) -> np.ndarray:
    """Forces [N, 3] in eV/Å on a phonopy cell."""
    atoms = Atoms(cell.symbols, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)
    atoms.calc = calculator
    forces = atoms.get_forces()
    if not np.isfinite(forces).all():
        raise ValueError("forces are not finite")
    return forces


def _wave_vectors(atoms: Atoms, repeats) -> tuple[np.ndarray, dict]:
    """Wave vectors [Q, 3] in reciprocal vectors, and the names of the special ones."""
    grid = [(i / repeats[0], j / repeats[1], 0.0) for i in range(repeats[0]) for j in range(repeats[1])]
    path = atoms.cell.bandpath(npoints=PATH_POINTS, pbc=(True, True, False), eps=1e-3)
    return np.array([*path.kpts, *grid]), path.special_points


def _judge(atoms: Atoms, calculator, repeats, displacement: float, tolerance: float) -> tuple[dict, bool]:
    """The result for one supercell, and whether nothing but the flexural branch near Γ makes the layer
    unstable.
    """
    phonon = _force_constants(atoms, calculator, repeats, displacement)
    wave_vectors, special = _wave_vectors(atoms, repeats)
    modes = phonon.run_qpoints(wave_vectors, with_eigenvectors=True)
    frequencies = modes.frequencies
    near = _distance_to_gamma(wave_vectors, atoms) < NEAR_GAMMA * _shortest_reciprocal(atoms)
    flexural = near[:, None] & (_rigid_lift(modes.eigenvectors, atoms.get_masses()) >= RIGID)
    imaginary = frequencies < -NOISE
    elsewhere = bool((imaginary & ~flexural).any())
    lowest = frequencies.min(1)
    q = lowest.round(4).argmin()  # of equivalent ones the first, which has a name
    stable = not elsewhere and lowest[q] >= -max(tolerance, NOISE)
    found = {
        "verdict": "stable" if stable else "unstable",
        "lowest_frequency_THz": float(lowest[q]),
        "lowest_at": _place(wave_vectors[q], special),
        "highest_frequency_THz": float(frequencies.max()),
        "tolerated_ZA_THz": None,
        "supercell": [*repeats, 1],
        "image_distance_A": _shortest(atoms, repeats),
        "displacements": len(phonon.supercells_with_displacements),
        "note": "acoustic sum rule and index symmetry imposed, rotational invariance not",
    }
    if found["image_distance_A"] < IMAGE_DISTANCE:
        found["note"] += f"; in-plane images only {found['image_distance_A']:.1f} Å apart"
    if stable and imaginary.any():
        found["tolerated_ZA_THz"] = float(lowest[q])
        found["note"] += f"; flexural ZA imaginary near Γ to {lowest[q]:.2f} THz, tolerated to {-tolerance:g}"
    return found, not stable and not elsewhere


def _distance_to_gamma(wave_vectors: np.ndarray, atoms: Atoms) -> np.ndarray:
    """1/Å from each wave vector [Q, 3] to the nearest reciprocal lattice point."""
    shifts = np.array([(i, j, 0) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    folded = wave_vectors - np.round(wave_vectors)
    return np.linalg.norm((folded[:, None] + shifts) @ atoms.cell.reciprocal().array, axis=2).min(1)


def _shortest_reciprocal(atoms: Atoms) -> float:
    return float(np.linalg.norm(reduce_plane(atoms.cell.reciprocal().array[:2, :2])[0]))


def _rigid_lift(eigenvectors: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Overlap [Q, 3N] of each mode (columns of [Q, 3N, 3N]) with all atoms moving alike along z."""
    along_z = eigenvectors[:, 2::3, :]
    return np.abs(np.einsum("k,qkb->qb", np.sqrt(masses / masses.sum()), along_z)) ** 2


def _place(wave_vector: np.ndarray, special: dict) -> str:
    """Name of a special point, or its two coordinates."""
    for name, point in special.items():
        if np.allclose(wave_vector, point, atol=1e-6):
            return "Γ" if name == "G" else name
    return "({:.3f}, {:.3f})".format(*wave_vector[:2])


def _membrane_stress(atoms: Atoms, calculator) -> np.ndarray:
    """Force per length [xx, yy, xy] in N/m: the stress times the height of the cell."""
    copy, _ = fully_periodic(atoms)
    copy.calc = calculator
    return copy.get_stress()[[0, 1, 5]] * copy.cell[2, 2] / NEWTON_PER_METRE


def _stress_slope(start: Atoms, calculator, strain: np.ndarray) -> np.ndarray:
    """Half the difference [3] in N/m of the stress of relaxed atoms at +strain and −strain [2, 2]."""
    ends = []
    for sign in (1, -1):
        strained = start.copy()
        deformation = np.eye(3)
        deformation[:2, :2] += sign * strain
        strained.set_cell(start.cell.array @ deformation, scale_atoms=True)
        ends.append(_membrane_stress(_settled(strained, calculator), calculator))
    return (ends[0] - ends[1]) / 2
