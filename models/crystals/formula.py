"""Formulas as people write them: understood, or refused in one line that says what was understood."""

import re
import unicodedata
from fractions import Fraction
from math import gcd, lcm

from ase.data import atomic_numbers, chemical_symbols
from pymatgen.core import Composition

from models.crystals.thresholds import HEAVIEST

LARGEST_DENOMINATOR = (
    12  # of an amount like 0.5: an ordered cell of more formula units is no layer drawn here
)
SYMBOLS = {symbol.lower(): symbol for symbol in chemical_symbols[1 : HEAVIEST + 1]}
STRICT = re.compile(r"(?:[A-Z][a-z]?\d*\.?\d*|[()\[\]]\d*\.?\d*)+")
PHASE = re.compile(r"(?:\d?[THRO]'{0,2}d?|[hcmortαβγδa-z]|alpha|beta|gamma|delta|mono|bulk)[-–\s]+(?=[A-Z])")
PLACEHOLDERS = {
    "T": "T stands for unspecified terminations: name them, as in Ti3C2O2",
    "Tx": "Tx stands for unspecified terminations: name them, as in Ti3C2O2",
    "D": "D is deuterium: write H",
    "M": "M stands for a metal: name it",
    "X": "X stands for any element: name it",
    "R": "R stands for any element: name it",
    "A": "A stands for any element: name it",
}


class BadFormula(ValueError):
    """The text is no formula of one compound; the message says what was understood and what to write."""


def read_formula(text: str) -> tuple[str, str]:
    """The reduced formula that a text means, and a line about how it was read ("" if just as written).

    Args:
        text: e.g. MoS2, Mo1S2, MoS₂, mos2, 1T-MoS2, Ti3C2(OH)2, Mo0.5W0.5S2.

    Raises:
        BadFormula: it means nothing, several things, or what this project cannot draw.
    """
    plain = re.sub(r"[\s_{}$]", "", unicodedata.normalize("NFKC", PHASE.sub("", text.strip())))
    if not plain:
        raise BadFormula(f"{text!r} holds no formula: write one like MoS2")
    note = "" if plain == text.strip() else f"{text!r} is read as {plain}"
    if not STRICT.fullmatch(plain) or not _known(plain):
        plain = _one_reading(text, plain)
        note = f"{text!r} is read as {plain}"
    if any(float(amount) == 0 for amount in re.findall(r"\d+\.?\d*", plain)):
        raise BadFormula(f"{text!r} has an amount of 0: leave that element out")
    try:
        composition = Composition(plain)
    except (ValueError, KeyError) as error:
        raise BadFormula(f"{text!r} is no formula ({error}): write one like MoS2") from None
    whole = _whole(text, composition)
    reduced = Composition(whole).reduced_formula
    if any(amount != int(amount) for amount in composition.values()):
        note = f"{text!r} is read as the ordered compound {reduced}"
    return reduced, note


def _symbols(text: str) -> list[str]:
    return re.findall(r"[A-Z][a-z]?", text)


def _known(text: str) -> bool:
    return all(symbol.lower() in SYMBOLS for symbol in _symbols(text))


def _refuse_placeholders(text: str, plain: str) -> None:
    """Says what a symbol stands for that is no element, or an element that nobody here knows."""
    for symbol in _symbols(plain):
        if symbol in PLACEHOLDERS:
            raise BadFormula(f"{text!r}: {PLACEHOLDERS[symbol]}")
        if symbol in atomic_numbers and atomic_numbers[symbol] > HEAVIEST:
            raise BadFormula(f"{text!r}: nothing is known of {symbol} here, elements end at Pu")


def _one_reading(text: str, plain: str) -> str:
    """The only formula that the letters give when upper and lower case are ignored."""
    if not re.fullmatch(r"[A-Za-z\d.]+", plain):
        raise BadFormula(f"{text!r} is no formula of one compound: write one like MoS2")
    found = sorted(set(_readings(plain)))
    if plain[0].islower() and STRICT.fullmatch(plain[1:]) and _known(plain[1:]):
        hint = f"{plain[1:]} with a letter for its phase in front"
        raise BadFormula(f"{text!r} may mean {' or '.join([hint, *found])}: write the formula alone")
    if not found:
        _refuse_placeholders(text, plain)
        raise BadFormula(f"{text!r} holds what is no element: write symbols as in MoS2")
    if len(found) > 1:
        raise BadFormula(f"{text!r} may mean {' or '.join(found)}: write symbols as in MoS2")
    return found[0]


def _readings(text: str) -> list[str]:
    """Every way of cutting letters and amounts into elements."""
    if not text:
        return [""]
    found = []
    for size in (1, 2):
        symbol = SYMBOLS.get(text[:size].lower())
        if symbol and text[:size].isalpha() and len(text) >= size:
            amount = re.match(r"\d*\.?\d*", text[size:]).group()
            found += [symbol + amount + rest for rest in _readings(text[size + len(amount) :])]
    return found


def _whole(text: str, composition: Composition) -> dict[str, int]:
    """Amounts as whole numbers without a common factor."""
    amounts = {}
    for element, amount in composition.items():
        fraction = Fraction(amount).limit_denominator(LARGEST_DENOMINATOR)
        if amount <= 0 or abs(float(fraction) - amount) > 1e-3:
            raise BadFormula(
                f"{text!r}: {amount:g} {element.symbol} makes no ordered compound of a small cell"
            )
        amounts[element.symbol] = fraction
    scale = lcm(*(fraction.denominator for fraction in amounts.values()))
    counts = {symbol: int(fraction * scale) for symbol, fraction in amounts.items()}
    common = gcd(*counts.values())
    return {symbol: count // common for symbol, count in counts.items()}
