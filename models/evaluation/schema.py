"""The schema of every table that an evaluation writes: name, type, unit, meaning and missing value of each.

docs/outputs.md is generated from it (models.evaluation.dictionary), and a test holds the two together.
"""

from dataclasses import dataclass

DTYPES = {"str": "str", "float": "float64", "int": "Int64", "bool": "boolean"}  # of pandas


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: as in the header.
        kind: a key of DTYPES.
        unit: "" for a pure number or text.
        meaning: one sentence.
        missing: when its cell is empty; "" for never.
    """

    name: str
    kind: str
    unit: str
    meaning: str
    missing: str = ""


DRY = "an element without dissolved species, or no E_hull"
REFUSED = "not two-dimensional, or its relaxation failed"
METRICS = (
    Column("material_id", "str", "", "name of the CIF without its ending; the key that joins all tables"),
    Column("formula", "str", "", "reduced formula", "unreadable CIF"),
    Column("n_atoms", "int", "", "atoms in the cell as submitted", "unreadable CIF"),
    Column(
        "layer_group",
        "str",
        "",
        "international symbol of the layer group, relaxed (tolerance 0.1 Å)",
        "not 2D",
    ),
    Column("components", "int", "", "connected parts of the bond graph, d <= 1.3 Σ r_cov", "unreadable CIF"),
    Column(
        "periodic_directions", "int", "", "directions in which the largest part is periodic", "unreadable CIF"
    ),
    Column(
        "verdict",
        "str",
        "",
        "2D, layer too thick, layers too close, several layers, layer and molecules, chain, molecule, "
        "3D network or impossible",
        "unreadable CIF",
    ),
    Column(
        "borderline",
        "str",
        "",
        "what it is with bonds up to 1.25 or 1.4 in place of 1.3 covalent sums, if only one is a layer",
        "the verdict is clear",
    ),
    Column("vacuum_A", "float", "Å", "free space between the layer and its next image", "no single layer"),
    Column(
        "thickness_A", "float", "Å", "distance of the outermost nuclei along the normal", "no single layer"
    ),
    Column("two_d", "bool", "", "free-standing 2D crystal: verdict is 2D"),
    Column("valid", "bool", "", "no overlapping atoms (min_dist_ratio >= 0.7) and smact_valid"),
    Column("smact_valid", "bool", "", "SMACT finds charges that balance", "unreadable CIF"),
    Column(
        "min_dist_ratio", "float", "", "shortest distance over the sum of covalent radii", "unreadable CIF"
    ),
    Column("converged", "bool", "", "forces and in-plane stress fell below --fmax", "not 2D"),
    Column("relax_steps", "int", "", "steps of the relaxation", "not 2D"),
    Column(
        "e_form_eV_per_atom", "float", "eV/atom", "formation energy from the elements", "no reference phases"
    ),
    Column(
        "e_hull_eV_per_atom",
        "float",
        "eV/atom",
        "energy above the convex hull of competing phases, same potential; below 0: stabler than they are",
        "no reference phases",
    ),
    Column(
        "e_hull_std_eV_per_atom",
        "float",
        "eV/atom",
        "68 % of the errors of E_hull against DFT lie within it, for formulas like this one (docs/hull.md)",
        "no E_hull, or a potential whose errors were not measured",
    ),
    Column(
        "hull_compounds",
        "int",
        "",
        "competing compounds, polymorphs included; 0: E_hull is a lower bound, never called stable",
        "no reference phases",
    ),
    Column(
        "rmsd_relaxed_A", "float", "Å", "RMS displacement on relaxation, drift and strain removed", REFUSED
    ),
    Column("gap_eV", "float", "eV", "PBE band gap expected by trees on C2DB, at most 2.5 eV", REFUSED),
    Column("gap_std_eV", "float", "eV", "standard deviation of the trees", REFUSED),
    Column("delta_g_h_dimenet_eV", "float", "eV", "ΔG_H by DimeNet++, lowest over all sites", REFUSED),
    Column("delta_g_h_dimenet_std_eV", "float", "eV", "calibrated spread of its members", "no ensemble"),
    Column(
        "delta_g_h_oracle_eV",
        "float",
        "eV",
        "ΔG_H by the oracle: H and layer relaxed with the potential, best site, brought to DFT",
        "H adsorbs nowhere, the layer reconstructs, or the oracle did not run",
    ),
    Column(
        "delta_g_h_oracle_std_eV",
        "float",
        "eV",
        "its standard deviation, DFT being the truth",
        "no correction to DFT for this potential",
    ),
    Column("delta_g_h_potential_eV", "float", "eV", "ΔG_H by the potential alone", "as delta_g_h_oracle_eV"),
    Column(
        "delta_g_h_rigid_eV", "float", "eV", "the same with H alone relaxed", "H adsorbs at no rigid site"
    ),
    Column(
        "slab_change_eV",
        "float",
        "eV",
        "energy of the slab relaxed again without its H, minus that before; below -0.1: it reconstructs",
        "H was not relaxed with the layer",
    ),
    Column(
        "h_site", "str", "", "kind (ontop, bridge, hollow) and face of the best site", "no ΔG_H by the oracle"
    ),
    Column(
        "h_flags",
        "str",
        "",
        'what became of H, flag:count over the rigid sites; behind "then" with the layer free to move',
        "the oracle did not run",
    ),
    Column(
        "stability_score",
        "float",
        "",
        "exp(−max(0, E_form − E_stable^ref)), energies in eV/atom",
        "no E_hull",
    ),
    Column(
        "p_synth",
        "float",
        "",
        "probability of being synthesizable, by the model that metrics.json names",
        REFUSED,
    ),
    Column("unique", "bool", "", "the most stable (E_hull) of its material in the set", REFUSED),
    Column(
        "novel",
        "bool",
        "",
        "the same as no template, no layer of --novelty-db and none that the generator learned from",
        REFUSED,
    ),
    Column("known_as", "str", "", "the known layer that it matches, and where that is from", "novel"),
    Column(
        "p_active",
        "float",
        "",
        "P(|ΔG_H| <= 0.1 eV) with the oracle's RMSE against DFT; from DimeNet++ where the oracle did not run",
        "no ΔG_H",
    ),
    Column(
        "candidate_class",
        "int",
        "",
        "1: 2D, stable, unique, novel; 2: not novel or not unique; 3: dissolves in water; 4: not stable",
        "no p_active",
    ),
    Column(
        "rank",
        "int",
        "",
        "place by class, elements to avoid last, p_active, E_hull and price",
        "no p_active",
    ),
    Column("pareto", "bool", "", "on the Pareto front of |ΔG_H| (oracle), E_hull and P_synth"),
    Column(
        "delta_g_h_second_eV", "float", "eV", "ΔG_H by the second potential", "not shortlisted, or no site"
    ),
    Column("second_h_flags", "str", "", "h_flags of the second potential", "not shortlisted"),
    Column("delta_g_h_dft_eV", "float", "eV", "ΔG_H by DFT at the oracle's site", "not among the --dft best"),
    Column("dft_settings", "str", "", "functional, basis, k-points, and what was relaxed", "no DFT"),
    Column("dft_seconds", "float", "s", "processor time of slab and pose by DFT", "no DFT"),
    Column(
        "phonons",
        "str",
        "",
        "stable, unstable or failed, by finite displacements",
        "not among the --phonons best",
    ),
    Column("lowest_frequency_THz", "float", "THz", "lowest phonon, imaginary as negative", "no phonons"),
    Column("elastic", "str", "", "stable if the in-plane elastic tensor is positive definite", "no phonons"),
    Column(
        "e_pourbaix_eV_per_atom",
        "float",
        "eV/atom",
        "energy above the Pourbaix hull of solids and ions at pH 0, the worse of 0 and −0.2 V (RHE)",
        DRY,
    ),
    Column(
        "e_dissolution_eV_per_atom",
        "float",
        "eV/atom",
        "what it gains by dissolving without electron transfer, at pH 0",
        DRY,
    ),
    Column("aqueous_products", "str", "", "what it decomposes to in water at pH 0", DRY),
    Column(
        "aqueous", "bool", "", "survives pH 0: e_pourbaix at most --max-pourbaix, and hardly soluble", DRY
    ),
    Column("e_pourbaix_base_eV_per_atom", "float", "eV/atom", "e_pourbaix at pH 14", DRY),
    Column("e_dissolution_base_eV_per_atom", "float", "eV/atom", "e_dissolution at pH 14", DRY),
    Column("aqueous_base_products", "str", "", "what it decomposes to in water at pH 14", DRY),
    Column("aqueous_base", "bool", "", "survives pH 14", DRY),
    Column(
        "avoid_elements",
        "str",
        "",
        "toxic or radioactive elements in it (models/crystals/elements.py)",
        "none",
    ),
    Column(
        "price_usd_per_kg",
        "float",
        "USD/kg",
        "what a kilogram of its elements costs (data/element_prices.csv); below E_hull in the ranking",
        "an element without a price",
    ),
    Column("gate_passed", "str", "", "last gate of the unbroken chain that it passes", "not 2D"),
    Column("stopped_by", "str", "", "the first gate that it does not pass", "passes all"),
    Column("hit", "bool", "", "passes the chain up to active, and every later gate that was computed for it"),
    Column(
        "error", "str", "", "every remark on the structure, separated by semicolons", "nothing went wrong"
    ),
)
COLUMNS = tuple(column.name for column in METRICS)
SHORTLIST_COLUMNS = (
    "rank",
    "material_id",
    "formula",
    "layer_group",
    "candidate_class",
    "p_active",
    "pareto",
    "delta_g_h_oracle_eV",
    "delta_g_h_oracle_std_eV",
    "delta_g_h_potential_eV",
    "delta_g_h_dimenet_eV",
    "delta_g_h_dimenet_std_eV",
    "delta_g_h_second_eV",
    "delta_g_h_dft_eV",
    "h_site",
    "e_hull_eV_per_atom",
    "e_hull_std_eV_per_atom",
    "e_pourbaix_eV_per_atom",
    "avoid_elements",
    "price_usd_per_kg",
    "p_synth",
    "hit",
    "stopped_by",
    "phonons",
    "lowest_frequency_THz",
    "elastic",
)
COMPARISON = (
    Column("set", "str", "", "name of the set; the own one stands first"),
    Column("metric", "str", "", "a metric of the list below"),
    Column(
        "value",
        "float",
        "of the metric",
        "rate over all submitted, or mean over those that have it",
        "none has it",
    ),
    Column("low95", "float", "of the metric", "lower end of the 95 % interval", "fewer than two values"),
    Column(
        "high95",
        "float",
        "of the metric",
        "upper end of the 95 % interval",
        "fewer than two values, or unbounded",
    ),
    Column("n", "int", "", "structures that the metric counts"),
    Column("difference", "float", "of the metric", "own set minus this one", "sets of different size"),
    Column(
        "difference_low95",
        "float",
        "of the metric",
        "lower end of its 95 % interval",
        "sets of different size",
    ),
    Column(
        "difference_high95",
        "float",
        "of the metric",
        "upper end of its 95 % interval",
        "sets of different size",
    ),
    Column(
        "p_value",
        "float",
        "",
        "of no difference: Fisher's exact test for rates, permutation test for means; one test each",
        "sets of different size",
    ),
)
GENERATED = (
    Column("material_id", "str", "", "name of the CIF without its ending"),
    Column("formula", "str", "", "reduced formula"),
    Column("template", "str", "", "prototype that it started from"),
    Column("layer_group", "str", "", "international symbol of the layer group as drawn"),
    Column(
        "prototype_known", "bool", "", "a layer of --db has its layer group and sizes of orbits", "failed"
    ),
    Column("head_delta_g_h_eV", "float", "eV", "ΔG_H by the generator's own head", "drawn without the model"),
    Column("head_e_hull_eV_per_atom", "float", "eV/atom", "E_hull by its head", "drawn without the model"),
    Column("head_p_synth", "float", "", "P_synth by its head", "drawn without the model"),
    Column(
        "head_delta_g_h_std_eV",
        "float",
        "eV",
        "spread of ΔG_H that its head expects",
        "drawn without the model",
    ),
    Column("pareto", "bool", "", "on the Pareto front of the heads' |ΔG_H − target|, E_hull and P_synth"),
    Column("kept", "bool", "", "written as a CIF: the best of --best-of"),
    Column(
        "relaxed_energy_eV_per_atom",
        "float",
        "eV/atom",
        "energy after relaxation with the potential, by which --rank potential ranks",
        "ranked by the heads",
    ),
    Column("failure", "str", "", "why it is no structure: diverged, or two atoms on one place", "it is one"),
    Column("redrawn", "int", "", "how often it was drawn again, as two atoms had come to lie on one place"),
    Column("nfe", "float", "", "network evaluations spent on it"),
    Column("seconds", "float", "s", "core-seconds spent on it"),
)

CHEMISTRY, ENERGY, ACTIVITY, NEWS = (
    "Is it a two-dimensional crystal?",
    "Is it stable?",
    "Is it active?",
    "Is it new, and can it be made?",
)
PERCENT, EV, PURE, ANGSTROM = "%", "eV", "", "Å"


@dataclass(frozen=True)
class Metric:
    """A metric of a set: a rate over all submitted (unit PERCENT) or a mean over the structures that have it.

    Attributes:
        name: key in metrics.json.
        group: question that it answers.
        label: for a reader who has not read the schema.
        note: how it is defined.
        unit: PERCENT, EV, PURE or ANGSTROM.
        main: whether the report shows it before "show every quantity".
    """

    name: str
    group: str
    label: str
    note: str
    unit: str
    main: bool = True

    @property
    def is_rate(self) -> bool:
        return self.unit == PERCENT


SET_METRICS = (
    Metric(
        "two_d_rate",
        CHEMISTRY,
        "Two-dimensional crystal",
        "one connected layer, periodic in exactly two directions, thin, free-standing",
        PERCENT,
    ),
    Metric(
        "one_2d_component_rate",
        CHEMISTRY,
        "One connected layer",
        "before the space between layers and the thickness are checked",
        PERCENT,
        False,
    ),
    Metric(
        "valid_rate",
        CHEMISTRY,
        "Chemically plausible",
        "no overlapping atoms, and charges that can balance (SMACT)",
        PERCENT,
    ),
    Metric(
        "distance_valid_rate",
        CHEMISTRY,
        "No overlapping atoms",
        "shortest distance at least 0.7 times the sum of the covalent radii",
        PERCENT,
        False,
    ),
    Metric(
        "smact_valid_rate",
        CHEMISTRY,
        "Charges can balance",
        "SMACT's check of the composition",
        PERCENT,
        False,
    ),
    Metric(
        "stable_rate",
        ENERGY,
        "Stable",
        "relaxed, and less than 0.1 eV/atom above known competing phases (E_hull)",
        PERCENT,
    ),
    Metric(
        "no_competitor_rate",
        ENERGY,
        "No competing phase known",
        "E_hull < 0.1, but nothing competes, or it lies over 0.15 eV/atom below the hull: not stable",
        PERCENT,
        False,
    ),
    Metric(
        "stability_score", ENERGY, "Stability score", "mean of exp(−E_hull), 1 on the hull and below it", PURE
    ),
    Metric("converged_rate", ENERGY, "Relaxation reached a minimum", "", PERCENT, False),
    Metric(
        "rmsd_relaxed_A",
        ENERGY,
        "How far atoms move when relaxed",
        "root mean square; 0 for a structure made at its minimum",
        ANGSTROM,
    ),
    Metric(
        "hit_rate_0.2eV",
        ACTIVITY,
        "Hits",
        "2D, valid, stable, |ΔG_H| ≤ 0.2 eV by relaxed hydrogen, and failing no later gate that was computed",
        PERCENT,
    ),
    Metric("hit_rate_0.1eV", ACTIVITY, "Hits, strictly", "the same with |ΔG_H| ≤ 0.1 eV", PERCENT, False),
    Metric(
        "expected_hit_rate_0.1eV",
        ACTIVITY,
        "The same, with the oracle's error",
        "mean of P(|ΔG_H| ≤ 0.1 eV), 0 if unstable",
        PERCENT,
        False,
    ),
    Metric(
        "reconstructed_rate",
        ACTIVITY,
        "Reconstructs under hydrogen",
        "H taken off again, the layer ends lower: no ΔG_H",
        PERCENT,
    ),
    Metric("active_rate_0.2eV", ACTIVITY, "Active", "|ΔG_H| ≤ 0.2 eV, stable or not", PERCENT),
    Metric(
        "mae_delta_g_h_oracle_eV",
        ACTIVITY,
        "Distance from the ideal ΔG_H = 0",
        "mean |ΔG_H|, hydrogen relaxed with the potential",
        EV,
    ),
    Metric(
        "mae_delta_g_h_dimenet_eV",
        ACTIVITY,
        "The same as DimeNet++ predicts it",
        "mean |ΔG_H|, without relaxing hydrogen",
        EV,
    ),
    Metric(
        "delta_g_h_gap_eV",
        ACTIVITY,
        "How much DimeNet++ flatters",
        "the former minus the latter; above 0 it is too optimistic",
        EV,
    ),
    Metric(
        "sun_rate",
        NEWS,
        "Stable, unique and new",
        "no copy of another one in the set, nor of a known layer, nor of one that the generator learned from",
        PERCENT,
    ),
    Metric("unique_rate", NEWS, "Unique", "one structure of each material, the most stable", PERCENT, False),
    Metric(
        "novel_rate",
        NEWS,
        "New",
        "matches no known layer, nor one that the generator learned from",
        PERCENT,
        False,
    ),
    Metric(
        "synthesis_rate",
        NEWS,
        "Called synthesizable",
        "with probability ≥ ½, by the model under provenance; depends on cell size",
        PERCENT,
    ),
)
SUMMARY = {  # keys of metrics.json
    "set": "name of the set",
    "n": "structures submitted",
    "hit_gates": "gates that a hit has passed: those needed, and those computed for any structure of the set",
    "funnels": "set → gate by gate: structures proven (they pass all so far), possible (they failed none so "
    "far), computed (of those possible before), and the rate of the proven",
    "metrics": "metric → value, ci95 (95 % interval; null where it cannot be had), n",
    "nulls": "the same for the model-free baselines, with difference, difference_ci95 and p_value",
    "compared": "the same for the other sets",
    "sensitivity_to_correction": "hit rates with the correction in ΔG_H moved by −0.05, 0 and +0.05 eV",
    "second_opinion": "agreement of both potentials on the shortlist: both_within_0.2eV, mean_distance_eV, "
    "both_active_0.2eV (structures), shortlisted (structures)",
    "dynamic_stability": "verdict of the phonons → number of structures",
    "shortlist": "rows of shortlist.csv",
    "provenance": "potentials, checkpoints with their hash, settings, seed, versions, the oracle's error",
}
