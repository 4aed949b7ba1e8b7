"""Both panels of the README's figure."""

import argparse

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.io import read
from ase.neighborlist import neighbor_list

from models.crystals.layer import flipped
from models.crystals.thresholds import CORRECTION
from models.evaluation.figures import save, subscripts
from models.infra.files import ROOT, read_rows

PUBLISHED = ROOT / "results" / "published"
SHOWN = "16_RhS2"  # the layer of the top 20 that both potentials call a hit and that DFT has judged as well
ARMS = {  # name in study.csv -> label
    "random elements": "random elements in a template",
    "substitution": "element substitution",
    "unguided": "diffusion, unguided",
    "CFG": "diffusion, classifier-free guidance",
    "unguided, filtered": "unguided, best of 21 (equal cost)",
    "default": "default: guidance + choosing",
}
MODEL_FREE = ("random elements", "substitution")
GREY, BLUE, ORANGE = "#9aa3ad", "#6c9bd1", "#e0702a"

# The picture of the layer.
HALF_WIDTH = 9.0  # Å shown to either side of the hydrogen
PIXELS_PER_ANGSTROM = 56
TILT = np.radians(62.0)  # between the layer's normal and the line of sight
TURN = np.radians(12.0)  # about the normal, so that no row of atoms hides another
BALL = 0.46  # radius of an atom in covalent radii: bonds stay visible
STICK = 0.13  # Å, radius of a bond
BOND = 1.20  # bonded below this many sums of covalent radii
LIGHT = np.array([-0.45, 0.55, 0.70])
HYDROGEN = np.array([0.86, 0.16, 0.16])  # red, as white does not show on white


def patch_around_hydrogen(pose: Atoms) -> Atoms:
    """Atoms of the layer within HALF_WIDTH of one hydrogen, its periodic images included, that hydrogen last.

    Args:
        pose: supercell with H as its last atom.
    """
    count = len(pose)
    images = pose.repeat((9, 9, 1))
    centre = images.positions[(9 * 4 + 4) * count + count - 1]
    images.positions -= centre
    distance = np.linalg.norm(images.positions[:, :2], axis=1)
    hydrogen = np.arange(len(images)) % count == count - 1
    keep = np.flatnonzero((distance < HALF_WIDTH) & ~(hydrogen & (distance > 0.1)))
    patch = images[keep]
    patch.pbc = False
    order = np.argsort(patch.numbers == 1, kind="stable")
    return patch[order]


def spheres_of(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Balls and sticks, all as spheres: centres [n, 3] Å, radii [n] Å, colours [n, 3]."""
    colours = jmol_colors[atoms.numbers].copy()
    colours[atoms.numbers == 1] = HYDROGEN
    radii = BALL * covalent_radii[atoms.numbers]
    radii[atoms.numbers == 1] = 0.42
    centres, all_radii, all_colours = [atoms.positions], [radii], [colours]
    cutoffs = BOND * covalent_radii[atoms.numbers]
    first, second = neighbor_list("ij", atoms, cutoffs)
    along = np.linspace(0, 0.5, 40)[:, None]  # each atom draws its own half of a bond
    for i, j in zip(first, second):
        centres.append(atoms.positions[i] + along * (atoms.positions[j] - atoms.positions[i]))
        all_radii.append(np.full(len(along), STICK))
        all_colours.append(np.tile(0.85 * colours[i], (len(along), 1)))
    return np.concatenate(centres), np.concatenate(all_radii), np.concatenate(all_colours)


def looked_at(points: np.ndarray) -> np.ndarray:
    """Points [n, 3] in the frame of the picture: right, up, towards the viewer."""
    turn = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(TILT), np.sin(TILT)], [0, -np.sin(TILT), np.cos(TILT)]])
    return points @ turn.T @ tilt.T


def rendered(atoms: Atoms) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Orthographic picture of balls and sticks, lit from one side: RGBA [h, w, 4] and its extent in Å."""
    centres, radii, colours = spheres_of(atoms)
    centres = looked_at(centres)
    low, high = (centres - radii[:, None]).min(0), (centres + radii[:, None]).max(0)
    width, height = np.ceil((high - low)[:2] * PIXELS_PER_ANGSTROM).astype(int)
    picture, depth = np.zeros((height, width, 4)), np.full((height, width), -np.inf)
    light = LIGHT / np.linalg.norm(LIGHT)
    fade = np.ptp(centres[:, 2])
    for centre, radius, colour in zip(centres, radii, colours):
        x, y = (centre[:2] - low[:2]) * PIXELS_PER_ANGSTROM
        reach = radius * PIXELS_PER_ANGSTROM
        columns = np.arange(max(0, int(x - reach)), min(width, int(x + reach) + 2))
        rows = np.arange(max(0, int(y - reach)), min(height, int(y + reach) + 2))
        across, up = (columns - x)[None] / reach, (rows - y)[:, None] / reach
        inside = across**2 + up**2 < 1
        toward = np.sqrt(np.where(inside, 1 - across**2 - up**2, 0))  # [rows, columns], of the unit normal
        here = np.ix_(rows, columns)
        seen = inside & (centre[2] + radius * toward > depth[here])
        brightness = across * light[0] + up * light[1] + toward * light[2]
        shine = np.clip(brightness, 0, 1) ** 24
        shaded = colour * (0.42 + 0.62 * np.clip(brightness, 0, 1))[..., None] + 0.35 * shine[..., None]
        haze = 0.35 * (high[2] - centre[2]) / fade  # what is far away fades
        shaded = np.clip(shaded * (1 - haze) + haze, 0, 1)
        picture[here] = np.where(
            seen[..., None], np.concatenate([shaded, np.ones((*shaded.shape[:2], 1))], -1), picture[here]
        )
        depth[here] = np.where(seen, centre[2] + radius * toward, depth[here])
    return picture[::-1], (low[0], high[0], low[1], high[1])


def signed(energy: float) -> str:
    """An energy in eV with its sign, a true minus."""
    return f"{energy:+.2f}".replace("-", "−")


def layer_panel(axis):
    """The layer with its hydrogen, and what the potential and DFT say of it."""
    row = next(row for row in read_rows(PUBLISHED / "top20" / "top20.csv") if row["material_id"] == SHOWN)
    dft = next(row for row in read_rows(PUBLISHED / "dft_single_points.csv") if row["layer"] == SHOWN)
    pose = read(PUBLISHED / "top20" / f"{SHOWN}_H.cif")
    if row["h_site"].endswith("bottom"):
        pose = flipped(pose)  # so that H is on top
    patch = patch_around_hydrogen(pose)
    picture, extent = rendered(patch)
    axis.imshow(picture, extent=extent, interpolation="lanczos")
    axis.set_aspect(
        "equal", adjustable="datalim"
    )  # the panel keeps its height, and its title that of the bars'
    hydrogen = looked_at(patch.positions[-1:])[0]
    axis.annotate(
        "H", hydrogen[:2], (14, 10), textcoords="offset points", color=HYDROGEN, fontsize=15, weight="bold"
    )
    axis.set_axis_off()
    axis.set_title(
        f"{subscripts(row['formula'])}, a generated monolayer with its H", fontsize=13, loc="left", pad=14
    )
    potential, truth = float(row["delta_g_h_oracle_eV"]), float(dft["dft_eV"]) + CORRECTION
    text = (
        f"ΔG$_H$  {signed(potential)} eV by the potential that judges the bars: a hit\n"
        f"ΔG$_H$  {signed(truth)} eV by DFT at the same pose: not a hit"
    )
    axis.text(0.0, 0.0, text, transform=axis.transAxes, fontsize=11, va="top", linespacing=1.5)


def hits_panel(axis):
    """Hit rates of the study's arms with their 95 % intervals."""
    study = {(row["set"], row["metric"]): row for row in read_rows(PUBLISHED / "study.csv")}
    for place, (name, _) in enumerate(ARMS.items()):
        entry = study[name, "hit_rate_0.2eV"]
        value, low, high = (float(entry[column]) for column in ("value", "low95", "high95"))
        colour = GREY if name in MODEL_FREE else ORANGE if name == "default" else BLUE
        axis.barh(place, 100 * value, color=colour, height=0.66)
        axis.plot([100 * low, 100 * high], [place] * 2, color="0.25", lw=1.3)
        n = int(entry["n"])
        axis.text(100 * high + 0.5, place, f"{round(value * n)} of {n}", va="center", fontsize=10.5)
    axis.set_yticks(range(len(ARMS)), ARMS.values(), fontsize=11)
    axis.invert_yaxis()
    axis.set_xlim(0, 29)
    axis.set_xlabel("hits, % of all structures drawn (lines: 95 % interval)", fontsize=11)
    axis.tick_params(axis="y", length=0)
    axis.set_title("Hits: stable and |ΔG$_H$| ≤ 0.2 eV, both by SevenNet", fontsize=13, loc="left", pad=14)


def run(args: argparse.Namespace) -> None:
    """The study; args are the parsed flags."""
    figure, (layer, hits) = plt.subplots(
        1, 2, figsize=(13.2, 4.7), width_ratios=(1.0, 0.95), layout="constrained"
    )
    layer_panel(layer)
    hits_panel(hits)
    save(figure, args.out)
