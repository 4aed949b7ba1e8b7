"""Bulk crystals that may compete with a layer: AFLOW's prototypes, which pymatgen ships, filled with its
elements.

Nothing here knows an energy. `candidates` proposes the compounds of one chemical system that chemistry makes
likely, best first; physics/competitors.py asks a potential which of them lie low.

Prototypes: Mehl et al., Comput. Mater. Sci. 136, S1 (2017); Hicks et al., ibid. 161, S1 (2019).
"""

import itertools
from functools import cache

from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from pymatgen.core import Element

from models.crystals.templates import chemical_distance, substitute

MAX_PROTOTYPE_ATOMS = (
    14  # of a primitive cell; a relaxation's cost grows with it, and few stable phases need more
)
MAX_CELL_ATOMS = 60  # of a conventional cell; reducing the larger ones takes a minute, and none is used
SCREENED = 24  # candidates of one system whose energy is looked at, most likely first

# Elements between which no ionic bond forms: pairs of them take METALLIC prototypes, all others IONIC ones.
NONMETALS = frozenset("H B C N O F Si P S Cl Ge As Se Br Sb Te I".split())
INERT = frozenset("He Ne Ar Kr Xe Rn".split())

# Prototypes of metals with metals: AFLOW tag, and Strukturbericht or parent. Ratio of the covalent radii of
# the
# rarer to the more frequent element in which the type is known to form; Laves phases: 1.05 to 1.7 by
# Pettifor.
ANY = (0.0, 9.0)
METALLIC = {
    "AB_cP2_221_b_a": ANY,  # B2
    "AB_tP2_123_a_d": ANY,  # L1_0
    "AB3_cP4_221_a_c": ANY,  # L1_2
    "A2B_cF24_227_d_a": (1.0, 1.8),  # C15 Laves, MgCu2
    "AB2_tI6_139_a_e": ANY,  # C11_b, MoSi2
    "AB2_hP12_194_f_ah": (1.0, 1.8),  # C14 Laves, MgZn2
    "AB_oC8_63_c_c": ANY,  # B33, CrB
    "AB5_hP6_191_a_cg": (1.1, 2.2),  # D2_d, CaCu5
    "A3B_hP8_194_h_c": ANY,  # D0_19, Ni3Sn
    "AB2_hP3_191_a_d": (0.9, 2.2),  # C32, AlB2
    "AB2_hP6_194_b_f": (0.9, 2.2),  # CaIn2
    "AB2_hP6_194_c_ad": (0.7, 1.3),  # B8_2, Ni2In
    "A2B_oP12_62_2c_c": (0.5, 1.3),  # C37, Co2Si
    "A2B_oP12_62_2c_c:PbCl2": (0.5, 1.3),  # C23
    "A2B_tI12_140_h_a": ANY,  # C16, CuAl2
    "AB3_cF16_225_a_bc": ANY,  # D0_3, BiF3
    "A3B_tI8_139_bd_a": ANY,  # D0_22, TiAl3
    "AB_oP8_62_c_c:FeB": ANY,  # B27
    "AB_cF16_227_a_b": ANY,  # B32, NaTl
    "A3B2_hP5_164_ad_d": ANY,  # D5_13, Ni2Al3
    "A4B_tI10_139_de_a": (0.9, 2.2),  # D1_3, BaAl4
    "AB5_cF24_216_a_ce": (1.0, 2.2),  # C15_b, AuBe5
    "AB4_tI10_87_a_h": (0.8, 1.3),  # D1_a, MoNi4
    "AB_tP4_129_c_c": ANY,  # B11, CuTi
    "AB_hP4_194_c_a": ANY,  # B8_1, NiAs
    "AB_cP8_198_a_a": ANY,  # B20, FeSi
    "A3B_cP8_223_c_a": (0.7, 1.2),  # A15
    "AB2_oI6_71_a_g": (0.8, 1.3),  # MoPt2
    "A2B_tP6_129_ac_c": ANY,  # C38, Cu2Sb
    "AB_oP4_51_e_f": ANY,  # B19, AuCd
    "AB2_cF12_225_a_c": ANY,  # C1, fluorite, as in AuAl2 and Mg2Sn
    "A3B_oP8_59_bf_a": (0.8, 1.3),  # D0_a, Cu3Ti
    "AB3_hP8_194_c_bf": (0.5, 1.3),  # D0_18, Na3As
    "A2B3_tP10_127_g_ah": ANY,  # D5_a, U3Si2
    "AB_hP6_191_f_ad": ANY,  # B35, CoSn
    "A2B_oC12_63_2c_c": ANY,  # C49, ZrSi2
}
# Prototypes of an element with a more electronegative one, which takes the more electronegative one's place.
IONIC = (
    "AB_cF8_225_a_b AB_hP4_194_c_a AB_oP8_62_c_c:MnP AB_oC8_63_c_c AB_hP2_187_d_a AB_tP4_129_a_c "
    "AB_oP8_62_c_c:GeS AB_tP4_131_c_e AB_hR6_160_b_b AB_cP8_198_a_a AB_hP4_186_b_b AB_cP2_221_b_a "
    "AB_oP8_62_c_c:FeB AB2_cP12_205_a_c AB2_oP6_58_a_g AB2_hP3_164_a_d AB2_hP6_194_c_f "
    "A2B_oP12_62_2c_c:PbCl2 A2B_tP6_136_f_a AB2_cF12_225_a_c A2B_tP6_129_ac_c AB2_tI6_139_a_e "
    "AB2_hP3_191_a_d A2B_tI12_141_e_a A2B_mP12_14_2e_e A2B_oC12_63_2c_c A2B_cP6_224_b_a AB2_hP6_194_c_ad "
    "A2B_oP12_62_2c_c A2B_hP9_189_fg_bc A2B_tI12_140_h_a AB3_hR8_148_c_f AB3_hR8_155_c_de A3B_cP4_221_d_a "
    "AB3_cF16_225_a_bc AB3_hP8_194_c_bf A3B_hP4_191_bc_a A2B3_hR5_166_c_ac A2B3_hR10_167_c_e "
    "A3B2_hP5_164_ad_d A2B3_tP10_127_g_ah A4B_cI10_217_c_a A3B_cP8_223_c_a A4B_tI10_139_de_a "
    "A6B_cP7_221_f_a AB4_cP5_215_a_e A3B_hP8_194_h_c AB3_tP8_113_a_ce"
).split()


@cache
def aflow() -> dict[str, Atoms]:
    """Primitive cells of pymatgen's AFLOW prototypes by tag; where several share a tag, the later ones by
    `tag:formula`.
    """
    from pymatgen.analysis.prototypes._data import AFLOW_PROTOTYPE_LIBRARY
    from pymatgen.io.ase import AseAtomsAdaptor

    found = {}
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        if len(entry["snl"].structure) > MAX_CELL_ATOMS:
            continue
        structure, tag = entry["snl"].structure.get_primitive_structure(), entry["tags"]["aflow"]
        atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
        found.setdefault(tag, atoms)
        found.setdefault(f"{tag}:{structure.composition.reduced_formula}", atoms)
    return found


def balanced(fill: dict[str, int]) -> bool:
    """Whether some choice of common oxidation states adds up to zero; `fill`: element -> atoms."""
    states = [Element(symbol).common_oxidation_states for symbol in fill]
    return any(
        sum(q * n for q, n in zip(choice, fill.values())) == 0 for choice in itertools.product(*states)
    )


def is_ionic(symbols) -> bool:
    """Whether a nonmetal is among the elements."""
    return any(symbol in NONMETALS for symbol in symbols)


def candidates(symbols: tuple[str, ...], layers: list[tuple[str, Atoms]] = ()) -> list[tuple[str, Atoms]]:
    """Compounds of a chemical system to try as competing phases, the most likely first.

    Two elements: prototypes of metals with metals, both ways round, or of an element with a more
    electronegative one. More elements: every prototype with so many, the elements in the places of those that
    are chemically nearest (Pettifor's scale), charge-balanced ones first.

    Args:
        symbols: two to four elements.
        layers: (name, layer) of known layers, tried beside the bulk prototypes of three and more elements.

    Returns:
        (name, structure, scaled to the new bond lengths) of at most SCREENED compounds.
    """
    if len(symbols) > 2:
        return _by_analogy(symbols, layers)[:SCREENED]
    return (_ionic_pairs(symbols) if is_ionic(symbols) else _metallic_pairs(symbols))[:SCREENED]


def _named(tag: str, prototype: Atoms, fill: dict[str, str]) -> tuple[str, Atoms]:
    symbols = list(prototype.symbols)
    rarest_first = sorted(fill, key=lambda symbol: (symbols.count(symbol), symbol))
    return f"{'-'.join(fill[symbol] for symbol in rarest_first)}:{tag}", substitute(prototype, fill)


def _radius(symbol: str) -> float:
    return covalent_radii[atomic_numbers[symbol]]


def _metallic_pairs(symbols) -> list[tuple[str, Atoms]]:
    found = []
    for (tag, (low, high)), (rarer, other) in itertools.product(METALLIC.items(), (symbols, symbols[::-1])):
        prototype = aflow()[tag]
        own = sorted(set(prototype.symbols), key=list(prototype.symbols).count)
        if low <= _radius(rarer) / _radius(other) <= high:
            found.append(_named(tag, prototype, dict(zip(own, (rarer, other)))))
    return _distinct(found)


def _ionic_pairs(symbols) -> list[tuple[str, Atoms]]:
    by_electronegativity = sorted(symbols, key=lambda symbol: Element(symbol).X)
    found = []
    for tag in IONIC:
        prototype = aflow()[tag]
        own = sorted(set(prototype.symbols), key=lambda symbol: Element(symbol).X)
        found.append(_named(tag, prototype, dict(zip(own, by_electronegativity))))
    likely = lambda item: not balanced(item[1].symbols.formula.count())  # False sorts first
    return sorted(_distinct(found), key=likely)


def _distinct(found: list[tuple[str, Atoms]]) -> list[tuple[str, Atoms]]:
    """Without the second of two assignments that symmetry makes equal: B2 both ways round."""
    equal = {"AB_cP2_221_b_a", "AB_tP2_123_a_d", "AB_cF16_227_a_b", "AB_cF8_225_a_b", "AB_cF8_216_c_a"}
    seen, kept = set(), []
    for name, atoms in found:
        elements, tag = name.split(":", 1)
        key = (tag, frozenset(elements.split("-"))) if tag in equal else name
        if key not in seen:
            seen.add(key)
            kept.append((name, atoms))
    return kept


def _by_analogy(symbols, layers) -> list[tuple[str, Atoms]]:
    """Prototypes and layers of as many elements, filled in the most alike way; the nearest of one name."""
    best = {}
    for name, prototype in itertools.chain(_prototypes_of(len(symbols)), layers):
        own = sorted(set(prototype.symbols))
        if len(own) != len(symbols):
            continue
        for order in itertools.permutations(symbols):
            distance = sum(chemical_distance(a, b) for a, b in zip(own, order))
            fill = dict(zip(own, order))
            amounts = tuple(fill[s] for s in prototype.symbols)
            rank = (not balanced({s: amounts.count(s) for s in symbols}), distance)
            key = (name, tuple(sorted((s, amounts.count(s)) for s in symbols)))
            if key not in best or rank < best[key][0]:
                best[key] = rank, prototype, fill
    ranked = sorted(best.items(), key=lambda item: (item[1][0], item[0]))
    return [_named(key[0], prototype, fill) for key, (_, prototype, fill) in ranked]


@cache
def _prototypes_of(count: int) -> tuple[tuple[str, Atoms], ...]:
    """(tag, structure) of AFLOW's prototypes with `count` elements that are small enough; ordered alloys of
    steel, which stand for disorder, are left out.
    """
    alloys = {"Cr", "Fe", "Ni"}
    return tuple(
        (tag, atoms)
        for tag, atoms in aflow().items()
        if len(set(atoms.symbols)) == count
        and len(atoms) <= MAX_PROTOTYPE_ATOMS
        and not alloys <= set(atoms.symbols)
        and not (":" in tag and aflow()[tag.split(":")[0]] is atoms)
    )
