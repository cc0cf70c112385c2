"""Which of the code pages with one byte for each character a text is in, by its letters.

Each language has its letters beyond ASCII, the frequent ones first. A code page is as likely as the
text that it makes of the bytes: letters of one language, capitals at the start of words, no signs
inside them. Knows nothing of files.
"""

import math
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

WESTERN = ("cp1252", "mac_roman", "cp850")
CENTRAL = ("cp1250", "iso8859_2", "cp852", "cp1252")
CYRILLIC = ("cp1251", "koi8_r", "cp866", "iso8859_5", "mac_cyrillic")
LANGUAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("’“”–…—‘€£é°", WESTERN),  # English
    ("üäöß", WESTERN),
    ("éèàêçôîûâùëïœæü", WESTERN),
    ("óíáéñúü¿¡", WESTERN),
    ("ãçáéíóêâõúàôü", WESTERN),
    ("èàùòéì", WESTERN),
    ("äöå", WESTERN),
    ("åøæé", WESTERN),
    ("éëïöóüè", WESTERN),
    ("àéòèíóúçüï", WESTERN),
    ("áíðóéöþúæý", ("cp1252", "mac_iceland")),
    ("ëç", WESTERN),
    ("ąęłżóśćńź", CENTRAL),
    ("íáéěýřčžšůúťďňó", CENTRAL),
    ("áíčéýžúšôľťďňäĺŕó", CENTRAL),
    ("áéöíóőüúű", CENTRAL),
    ("čšžćđ", CENTRAL),
    ("ăîşâţ", CENTRAL),
    ("ėšųįžūčąę", ("cp1257",)),
    ("āīēšņļžūģķč", ("cp1257",)),
    ("äõüöšž", ("cp1252", "cp1257")),
    ("ıüşğçöİâî", ("cp1254", "cp857")),
    ("оеаинтсрвлкмдпуяызьбгчйхжшюцщэфъё", CYRILLIC),
    ("оаниіветрслкдмупяьзбгйчхцюжїшєщфґ", ("cp1251", "koi8_u", "mac_cyrillic", "iso8859_5")),
    ("аиоетнрсвлкдпмзябъгучщцжшйхфюь", ("cp1251", "cp866", "iso8859_5", "mac_cyrillic")),
    ("аоиенрсјтукдвмплзбгчцћжшљњђхџф", ("cp1251", "iso8859_5")),
    ("аніоерыстлкдувзмцпяьбйхўчжгшюэфё", ("cp1251", "iso8859_5")),
    ("αοιετσνηυρπκλμςωίόάγήέδθχύώφβξζψϊΐϋΰ", ("cp1253", "iso8859_7", "cp737")),
    ("יוהלאתרמבשנםעדקחכפטזסגןצךףץ", ("cp1255", "cp862")),
)
NAMES = {
    "cp1252": "Windows-1252 (Western European)",
    "mac_roman": "Mac Roman (Western European)",
    "cp850": "DOS 850 (Western European)",
    "mac_iceland": "Mac Icelandic",
    "cp1250": "Windows-1250 (Central European)",
    "iso8859_2": "ISO-8859-2 (Central European)",
    "cp852": "DOS 852 (Central European)",
    "cp1257": "Windows-1257 (Baltic)",
    "cp1254": "Windows-1254 (Turkish)",
    "cp857": "DOS 857 (Turkish)",
    "cp1251": "Windows-1251 (Cyrillic)",
    "koi8_r": "KOI8-R (Cyrillic)",
    "koi8_u": "KOI8-U (Ukrainian)",
    "cp866": "DOS 866 (Cyrillic)",
    "iso8859_5": "ISO-8859-5 (Cyrillic)",
    "mac_cyrillic": "Mac Cyrillic",
    "cp1253": "Windows-1253 (Greek)",
    "iso8859_7": "ISO-8859-7 (Greek)",
    "cp737": "DOS 737 (Greek)",
    "cp1255": "Windows-1255 (Hebrew)",
    "cp862": "DOS 862 (Hebrew)",
}
TYPOGRAPHY = "“”„‘’‚–—…«»€£§©®°™·•№\u00a0\u2011´½¼²×±"
FINAL = "ςךםןףץ"
"""Letters that only end words."""
APOSTROPHES = "’\u2011·´"
LETTERS, SIGNS, FOREIGN, OTHER = 0.9, 0.06, 1e-4, 1e-6
"""The shares of a language's letters and of typography; of one other letter, and anything else."""
FALL = 3.3
"""From the most to the least frequent letter of a language, as a logarithm."""
START_CAPITAL, NEXT_CAPITAL, INNER_CAPITAL = 0.1, 0.3, 0.0005
"""How much rarer capitals are: at the start of a word, after a capital, after a small letter."""
SIGN_IN_WORD, TWO_SCRIPTS, LETTERS_IN_A_ROW = 0.01, 0.002, 0.15
"""How rare signs between letters are, Latin letters next to others, and two accents in a row."""
LEAST = -4.9
"""Below this mean logarithm, bytes are no text in any of the languages."""
RARER = 0.5
"""How much rarer than the one before it each code page of a language is, as a logarithm."""
IN_CAPITALS = -4.0
"""How rare texts are that are all in capitals, as a logarithm."""
CLOSE = 3.0
"""Code pages with so small a difference, as a logarithm, are both likely."""


Seen = Counter[tuple[str, float, float]]
"""Characters, and how usual each is at its place: in any text, and in one all in capitals."""


class Guess(NamedTuple):
    """The likeliest code page, and another one that is nearly as likely (empty: none)."""

    codec: str
    other: str = ""


def guess(sample: bytes, marking: str) -> Guess | None:
    """Return the code page of a text; None where it is none of those that are known here.

    `marking`: the error handler for bytes that stand for nothing.
    """
    texts = {codec: sample.decode(codec, marking) for codec in NAMES}
    seen = {codec: _seen(text) for codec, text in texts.items()}
    scores: dict[str, float] = {}
    for letters, codecs in LANGUAGES:
        for at, codec in enumerate(codecs):
            score = _score(seen[codec], letters) - at * RARER
            scores[codec] = max(scores.get(codec, -math.inf), score)
    best, *others = sorted(scores, key=lambda codec: -scores[codec])
    beyond = sum(seen[best].values())
    if not beyond or scores[best] / beyond < LEAST:
        return None
    differing = (codec for codec in others if texts[codec] != texts[best])
    other = next(differing, "")
    is_close = bool(other) and scores[best] - scores[other] < CLOSE
    return Guess(best, other if is_close else "")


def _seen(text: str) -> Seen:
    """Count the characters beyond ASCII, with how usual they are at their places."""
    places = Counter(zip(f" {text}", text, f"{text[1:]} ", strict=False))
    seen: Seen = Counter()
    for (before, each, after), count in places.items():
        if not each.isascii():
            usual = _usual_beside(before, each, after)
            seen[each, usual * _usual_case(before, each), usual] += count
    return seen


def _usual_case(before: str, each: str) -> float:
    if not each.isupper():
        return 1.0
    if before.islower():
        return INNER_CAPITAL
    return NEXT_CAPITAL if before.isupper() else START_CAPITAL


def _usual_beside(before: str, each: str, after: str) -> float:
    if not each.isalpha():
        joins = before.isalpha() and after.isalpha() and each not in APOSTROPHES
        return SIGN_IN_WORD if joins else 1.0
    if _is_latin(each):
        return LETTERS_IN_A_ROW if before.isalpha() and not before.isascii() else 1.0
    if each in FINAL and after.isalpha():
        return INNER_CAPITAL
    latin = sum(beside.isascii() and beside.isalpha() for beside in (before, after))
    return TWO_SCRIPTS**latin


def _is_latin(letter: str) -> bool:
    return letter < "\u0250"


def _score(seen: Seen, letters: str) -> float:
    """Return the logarithm of how likely characters are in a language."""
    shares = _shares(letters)
    is_latin = any(map(_is_latin, letters))
    usual = capitals = 0.0
    for (each, in_text, in_capitals), count in seen.items():
        share = shares.get(each) or shares.get(each.lower())
        if share is None:
            alike = each.isalpha() and _is_latin(each) == is_latin
            share = FOREIGN if alike else OTHER
        usual += count * math.log(share * in_text)
        capitals += count * math.log(share * (INNER_CAPITAL if each.islower() else in_capitals))
    return max(usual, capitals + IN_CAPITALS)


@lru_cache(maxsize=len(LANGUAGES))
def _shares(letters: str) -> dict[str, float]:
    """Return the share of each character: letters by their rank, signs all alike."""
    shares = dict.fromkeys(TYPOGRAPHY, SIGNS / len(TYPOGRAPHY))
    weights = {each: math.exp(-FALL * at / len(letters)) for at, each in enumerate(letters)}
    whole = sum(weights.values())
    return shares | {each: LETTERS * weight / whole for each, weight in weights.items()}
