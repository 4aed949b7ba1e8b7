"""DFT inputs for a candidate: what one computes next to check a predicted ΔG_H, for VASP and for GPAW."""

import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from string import Template

import numpy as np
from ase import Atoms
from ase.calculators.calculator import kptdensity2monkhorstpack
from ase.io import write

from models.crystals.layer import symmetry_of
from models.crystals.sites import spaced_supercell
from models.crystals.thresholds import CALCULATION_VACUUM, CORRECTION, EXACT_SYMPREC
from models.infra.files import write_text

KPOINT_DENSITY = (
    5.0  # points per Å^-1 of reciprocal vector (2π included): 15 along graphene's a, 5 along 6.4 Å
)
CUTOFF = 520.0  # eV, 1.3 times the hardest common PAW set
SMEARING = 0.05  # eV, Gaussian or Fermi-Dirac
MAGNETIC = frozenset([*range(23, 29), *range(58, 71), *range(92, 97)])  # V to Ni, Ce to Yb, U to Cm
HIGH_SPIN, LOW_SPIN = 5.0, 0.6  # μB to start from, as in the Materials Project's sets
MOLECULE = Atoms("H2", [(0, 0, 0), (0, 0, 0.75)], cell=[14.0, 15.0, 16.0])
CALCULATION_FILES = ("POSCAR", "structure.extxyz", "INCAR", "KPOINTS")
SCRIPT = "gpaw_delta_g.py"
PREDICTIONS = {
    "formula": "formula",
    "layer_group": "layer group",
    "e_form_eV_per_atom": "formation energy (eV/atom)",
    "e_hull_eV_per_atom": "energy above the hull (eV/atom)",
    "delta_g_h_dimenet_eV": "ΔG_H by DimeNet++ (eV)",
    "delta_g_h_oracle_eV": "ΔG_H by the potential (eV)",
    "delta_g_h_dft_eV": "ΔG_H by DFT at that site (eV)",
    "dft_settings": "settings of that DFT",
    "h_site": "site of H",
    "h_flags": "what became of H at the sites tried",
    "p_synth": "P(synthesizable)",
    "error": "remarks",
}

INCAR = Template("""\
SYSTEM = $title
PREC = Accurate
ENCUT = $cutoff        ! eV; raise it if a POTCAR's ENMAX times 1.3 is above
EDIFF = 1E-6
EDIFFG = -0.02         ! eV/A
IBRION = 2
ISIF = 2               ! atoms move, the cell does not
NSW = 200
ISMEAR = 0
SIGMA = $smearing
GGA = PE               ! PBE
IVDW = 12              ! D3(BJ): a choice; delete the line for plain PBE, and do so in all three folders
LASPH = .TRUE.
LREAL = .FALSE.
LWAVE = .FALSE.
LCHARG = .FALSE.
""")
KPOINTS = Template("""\
Gamma-centred, $density points per 1/A
0
Gamma
$mesh
0 0 0
""")
GPAW_SCRIPT = Template('''\
"""ΔE_H and ΔG_H of $title by GPAW. Run: mpiexec -n 8 gpaw python $script

A stub to start from: PBE, PW $cutoff eV; converge cutoff, k-points and vacuum before believing it.
"""

from pathlib import Path

from ase.io import read
from ase.optimize import BFGS
from ase.parallel import parprint
from gpaw import GPAW, PW, FermiDirac

HERE = Path(__file__).resolve().parent
D3 = True  # D3(BJ), a choice: False for plain PBE; it needs the dftd3 program
CORRECTION = $correction  # eV, ΔE_ZPE − TΔS of adsorbed H
KPTS = $kpts
DIPOLE = {"poissonsolver": {"dipolelayer": "xy"}}


def relaxed_energy(folder, kpts, **options):
    """Energy in eV with the atoms relaxed in their cell."""
    atoms = read(folder / "structure.extxyz")
    gpaw = GPAW(
        mode=PW($cutoff), xc="PBE", kpts={"size": kpts, "gamma": True}, occupations=FermiDirac($smearing),
        convergence={"energy": 1e-5}, txt=str(folder / "gpaw.txt"), **options,
    )
    atoms.calc = gpaw
    if D3:
        from ase.calculators.dftd3 import DFTD3

        atoms.calc = DFTD3(dft=gpaw, xc="pbe", damping="bj", label=str(folder / "dftd3"))
    BFGS(atoms, logfile=str(folder / "relax.log"), trajectory=str(folder / "relax.traj")).run(fmax=0.02)
    return atoms.get_potential_energy()


slab = relaxed_energy(HERE / "slab", KPTS$slab_options)
slab_h = relaxed_energy(HERE / "slab_H", KPTS, **DIPOLE)
h2 = relaxed_energy(HERE.parent / "h2", (1, 1, 1))
delta_e = slab_h - slab - h2 / 2
parprint(f"E(slab) = {slab:.4f} eV")
parprint(f"E(slab+H) = {slab_h:.4f} eV")
parprint(f"E(H2) = {h2:.4f} eV")
parprint(f"ΔE_H = {delta_e:.4f} eV")
parprint(f"ΔG_H = {delta_e + CORRECTION:.4f} eV")
''')
README = Template("""\
DFT inputs for $name

slab/      the layer in the supercell that keeps hydrogens 6 A apart
$pose_line
../h2/     H2 in a box, one for all candidates
Each holds POSCAR, structure.extxyz, INCAR and KPOINTS. $script_line
    ΔE_H = E(slab+H) − E(slab) − E(H2)/2        ΔG_H = ΔE_H + $correction eV

What the pipeline predicts (by an interatomic potential and a network, not by DFT)
$predictions

Where that comes from
$provenance

What is left to you
- No POTCAR is included: put your own, species in the order of POSCAR's sixth line.
- D3(BJ) is on in INCAR and in the GPAW script. The pipeline's potentials were trained on PBE without it: turn
  it off in all three folders (IVDW, D3) to compare like with like. MatterSim and SevenNet saw +U on some
  oxides and fluorides; there is none here.
- Cutoff, k-points and vacuum ($vacuum A) are a start, not converged. Spin is on for magnetic elements,
  ferromagnetic to start from, and for an odd number of electrons (H on a closed shell).
- ZPE and entropy of this very site: frequencies of H in slab_H/ instead of the constant $correction eV.
- The lattice is the potential's. Relax it with DFT first where strain matters.
""")


def write_handoff(
    folder: Path, name: str, layer: Atoms, pose: Atoms | None, row: dict, provenance: dict
) -> Path:
    """Writes `folder`/<safe name>/ with slab/, slab_H/, a GPAW script and README.txt, and `folder`/h2/ for
    the reference molecule.

    Writing again gives the same files; what a calculation has put beside them stays.

    Args:
        folder: where all candidates go.
        name: material_id; made safe by safe_name.
        layer: the relaxed layer in the convention; used where there is no pose.
        pose: supercell of it with H (one atom of tag 2, else the last atom), or None: then neither slab_H/
            nor the script is written.
        row: its row of metrics.csv.
        provenance: what metrics.json says about potential and models.

    Returns:
        `folder`/<safe name>.

    Raises:
        ValueError: the pose has no H where it should, or c is not along z.
    """
    title = safe_name(name)
    target = Path(folder) / title
    slab, slab_h = _cells(layer, pose)
    _write_calculation(target / "slab", slab, title, _is_polar(slab))
    if slab_h is None:
        _remove(target / "slab_H", CALCULATION_FILES)
        _remove(target, [SCRIPT])
    else:
        _write_calculation(target / "slab_H", slab_h, f"{title} with H", True)
        write_text(target / SCRIPT, _gpaw_script(title, slab))
    _write_calculation(Path(folder) / "h2", _molecule(), "H2", False)
    write_text(target / "README.txt", _readme(name, slab_h is not None, row, provenance))
    return target


def remove_stale(folder: Path, names: Iterable[str]) -> list[str]:
    """Takes away inputs of candidates of an earlier shortlist; what a calculation has put beside them stays.

    Args:
        folder: where all candidates go.
        names: material_ids of the present shortlist.

    Returns:
        names of folders that stay because they hold results; they are printed.
    """
    kept, current = [], {"h2", *map(safe_name, names)}
    for target in sorted(Path(folder).glob("*/README.txt")):
        target = target.parent
        if target.name in current:
            continue
        for part in (target / "slab", target / "slab_H"):
            _remove(part, CALCULATION_FILES)
            if part.is_dir() and not any(part.iterdir()):
                part.rmdir()
        _remove(target, [SCRIPT, "README.txt"])
        if any(target.iterdir()):
            kept.append(target.name)
            print(f"no longer shortlisted, but it holds results of yours: {target}")
        else:
            target.rmdir()
    return kept


def safe_name(name: str) -> str:
    """A folder name of letters, digits, ".", "_", "-"; a name that had to change carries a hash, so that no
    two become one.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:80].strip("._-")
    if safe and safe == name and name.lower() != "h2":
        return name
    return f"{safe or 'unnamed'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def kpoint_mesh(atoms: Atoms) -> tuple[int, int, int]:
    """Γ-centred mesh of KPOINT_DENSITY in the plane, one point along z."""
    plane = atoms.copy()
    plane.pbc = (True, True, False)
    return tuple(int(n) for n in kptdensity2monkhorstpack(plane, KPOINT_DENSITY, even=False))


def _cells(layer: Atoms, pose: Atoms | None) -> tuple[Atoms, Atoms | None]:
    """Slab and slab with H in one and the same cell; H comes last, the other atoms are grouped by species."""
    if pose is None:
        return _arranged(spaced_supercell(layer)), None
    hydrogen = _adsorbate(pose)
    rest = [k for k in range(len(pose)) if k != hydrogen]
    whole = _arranged(pose[[*rest, hydrogen]])
    return whole[:-1], whole


def _adsorbate(pose: Atoms) -> int:
    """Index of the adsorbed hydrogen."""
    tagged = np.flatnonzero(pose.get_tags() == 2)
    index = int(tagged[0]) if len(tagged) == 1 else len(pose) - 1
    if pose.numbers[index] != 1:
        raise ValueError(
            f"the pose {pose.get_chemical_formula()} has no H as the one atom of tag 2 or the last one"
        )
    return index


def _arranged(atoms: Atoms) -> Atoms:
    """Bare copy: species together (H last, order kept within one), right-handed, CALCULATION_VACUUM along z,
    centred, wrapped in the plane.
    """
    cell = atoms.cell.array.copy()
    if np.abs([cell[2, :2], cell[:2, 2]]).max() > 1e-5:
        raise ValueError(f"needs c along z and a, b across, got {cell.round(4).tolist()}")
    if cell[0, 0] * cell[1, 1] < cell[0, 1] * cell[1, 0]:
        cell[:2] = cell[1::-1]
    order = sorted(range(len(atoms)), key=lambda k: (atoms.numbers[k] == 1, atoms.symbols[k]))
    z = atoms.positions[order, 2]
    cell[2] = (0, 0, np.ptp(z) + CALCULATION_VACUUM)
    positions = atoms.positions[order]
    positions[:, 2] += (cell[2, 2] - z.min() - z.max()) / 2
    arranged = Atoms(atoms.numbers[order], positions, cell=cell, pbc=(True, True, False))
    arranged.wrap(pbc=(True, True, False))
    return arranged


def _molecule() -> Atoms:
    molecule = MOLECULE.copy()
    molecule.center()
    return molecule


def _is_polar(atoms: Atoms) -> bool:
    """Whether no symmetry turns z over, so that a dipole along z is allowed."""
    found = symmetry_of(atoms, EXACT_SYMPREC)
    return found is None or not (found["rotations"][:, 2, 2] == -1).any()


def _moments(atoms: Atoms) -> np.ndarray | None:
    """Initial moments [N] in μB where spin matters: magnetic elements, or an odd number of electrons; else
    None.
    """
    magnetic = np.isin(atoms.numbers, list(MAGNETIC))
    if magnetic.any() or atoms.numbers.sum() % 2:
        return np.where(magnetic, HIGH_SPIN, LOW_SPIN)
    return None


def _write_calculation(folder: Path, atoms: Atoms, title: str, dipole: bool) -> None:
    """POSCAR, structure.extxyz, INCAR and KPOINTS."""
    moments = _moments(atoms)
    extended = atoms.copy()
    if moments is not None:
        extended.set_initial_magnetic_moments(moments)
    write_text(folder / "POSCAR", _as_text(atoms, "vasp", direct=True))
    write_text(folder / "structure.extxyz", _as_text(extended, "extxyz"))
    write_text(folder / "INCAR", _incar(atoms, title, moments, dipole))
    mesh = " ".join(map(str, kpoint_mesh(atoms) if atoms.pbc.any() else (1, 1, 1)))
    write_text(folder / "KPOINTS", KPOINTS.substitute(density=f"{KPOINT_DENSITY:g}", mesh=mesh))


def _as_text(atoms: Atoms, kind: str, **options) -> str:
    buffer = io.StringIO()
    write(buffer, atoms, format=kind, **options)
    return buffer.getvalue()


def _incar(atoms: Atoms, title: str, moments, dipole: bool) -> str:
    text = INCAR.substitute(title=title, cutoff=f"{CUTOFF:g}", smearing=f"{SMEARING:g}")
    if moments is None:
        text += "ISPIN = 1\n"
    else:
        text += "ISPIN = 2\nMAGMOM = " + " ".join(f"{moment:g}" for moment in moments) + "\n"
    if dipole:
        centre = atoms.get_center_of_mass(scaled=True)[2]
        text += f"LDIPOL = .TRUE.\nIDIPOL = 3\nDIPOL = 0.5 0.5 {centre:.4f}\n"
    return text


def _gpaw_script(title: str, slab: Atoms) -> str:
    return GPAW_SCRIPT.substitute(
        title=title,
        script=SCRIPT,
        cutoff=f"{CUTOFF:g}",
        smearing=f"{SMEARING:g}",
        correction=f"{CORRECTION:g}",
        kpts=kpoint_mesh(slab),
        slab_options=", **DIPOLE" if _is_polar(slab) else "",
    )


def _readme(name: str, has_pose: bool, row: dict, provenance: dict) -> str:
    pose_line = "slab_H/    the same with H as the last atom, at the best site of the pipeline"
    if not has_pose:
        pose_line = "(no slab_H/: at no site that the pipeline tried did H adsorb)"
    known = {label: row[key] for key, label in PREDICTIONS.items() if row.get(key) not in ("", None)}
    return README.substitute(
        name=repr(name),
        pose_line=pose_line,
        script_line=f"{SCRIPT} computes all three with GPAW." if has_pose else "",
        correction=f"{CORRECTION:g}",
        vacuum=f"{CALCULATION_VACUUM:g}",
        predictions=_listing(known),
        provenance=_listing(provenance),
    )


def _listing(values: dict) -> str:
    """One line a value; numbers to four digits."""
    return "\n".join(f"    {key}: {_plain(value)}" for key, value in values.items()) or "    (nothing)"


def _plain(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _remove(folder: Path, names) -> None:
    """Files of an earlier writing that no longer hold; nothing else in the folder."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
