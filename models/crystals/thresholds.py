"""Every number that decides a verdict, in one place: what counts as bonded, two-dimensional, stable, active,
the same.
"""

# Geometry: bonds and overlaps in sums of Cordero covalent radii, lengths in Å.
BOND_SCALE = 1.3  # bonded: d <= BOND_SCALE (r_i + r_j); calls 99.6 % of C2DB's monolayers one 2D component
# A verdict that changes between these is borderline: of 1200 C2DB monolayers 1.7 % fall apart at 1.25, and
# 1.2 % are one layer at 1.4 only.
BORDER_SCALES = (1.25, 1.4)
COINCIDENT_SCALE = 0.1  # two atoms on one site, whatever a file rounds to
OVERLAP_SCALE = 0.7  # overlapping: d < OVERLAP_SCALE (r_i + r_j); no bond of C2DB is as short
MIN_VACUUM = 10.0  # Å between a free-standing layer and its images
VACUUM_TOLERANCE = 0.01  # Å that a file's rounding may take of it
MAX_THICKNESS = 12.0  # Å between the outermost nuclei; thicker is a slab of a bulk crystal
LAYER_VACUUM = 15.0  # Å of vacuum in every stored layer
CALCULATION_VACUUM = (
    16.0  # Å of vacuum in a calculation, more than twice the potentials' longest cutoff of 6 Å
)

HEAVIEST = 94  # atomic number of plutonium: no potential, radius or reference phase here is of a heavier one
TOO_HEAVY = f"an element beyond plutonium (atomic number above {HEAVIEST})"

# Symmetry tolerances of spglib, Å.
SYMPREC = 0.1  # printed layer groups and prototypes: a slightly bent layer keeps its group
SAME_SYMPREC = 0.3  # comparison of two layers: 0.03 Å of rattling must not make a new material
SITE_SYMPREC = 0.05  # adsorption sites that symmetry makes equal
EXACT_SYMPREC = 0.01  # relaxed layers in phonons and DFT inputs, which must keep their symmetry

# Energies.
CORRECTION = 0.27  # eV, ΔE_ZPE − TΔS of adsorbed H at 300 K, 1 bar (the mission's constant)
STABLE = 0.1  # eV/atom above the convex hull
BELOW_HULL = (
    -0.15
)  # eV/atom: further below the hull a competing phase is missing, and the structure is not "stable"
ACTIVE = 0.2  # eV, |ΔG_H| of a hit
VERY_ACTIVE = 0.1  # eV, |ΔG_H| of the stricter count and of P(active)
AGREE = 0.2  # eV within which two potentials say the same
SYNTHESIZABLE = 0.5  # P_synth
