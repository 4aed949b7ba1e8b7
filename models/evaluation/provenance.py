"""Where the numbers of an evaluation come from: versions, hashes of checkpoints, which model said what."""

import platform
from importlib.metadata import version

from models.evaluation.settings import Settings, needed_files
from models.infra.files import file_hash
from models.physics.potentials import Potential

PACKAGES = (
    "torch",
    "torch-geometric",
    "ase",
    "pymatgen",
    "sevenn",
    "mattersim",
    "diep",
    "phonopy",
    "spglib",
    "smact",
)
SAME = (
    "potential",
    "delta_g_h_correction_eV",
    "dft_correction",
    "checkpoints",
    "oracle",
)  # of two sets that may be compared
SHARED = "trained in part on the same Materials Project calculations, so not independent"


def oracle_in_words(settings: Settings) -> str:
    """How the oracle places its H."""
    rigid = f"H alone relaxed at the best {settings.oracle_sites or 'of all'} sites of a height scan"
    words = {
        "none": "none",
        "rigid": rigid,
        "relaxed": f"{rigid}, then H and layer at the best of these, then the layer without H",
    }
    return words[settings.oracle] + (" (stable layers only)" if settings.oracle_for == "stable" else "")


def provenance(settings: Settings, potential: Potential, second: Potential | None, synthesis: str) -> dict:
    """What metrics.json says of the models; `synthesis` names the synthesizability model."""
    return {
        "potential": potential.name,
        "potential_note": potential.note,
        "second_potential": f"{second.name} ({second.note}; {SHARED})" if second else "none",
        "synthesizability": synthesis,
        "checkpoints": {path.name: file_hash(path) for path in needed_files(settings)},
        "novelty_reference": [settings.novelty_db.name, settings.template_db.name, settings.learned.name],
        "hull_reference": settings.references.name,
        "delta_g_h_correction_eV": settings.correction,
        "oracle": oracle_in_words(settings),
        "seed": settings.seed,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
