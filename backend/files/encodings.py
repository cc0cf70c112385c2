"""The encoding of a text file, from a bounded sample: its beginning, and where ASCII ends.

A file that is UTF-8 but for some lines is UTF-8. Knows nothing of rows.
"""

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from charset_normalizer import from_bytes

from backend.files import code_pages, read_limits
from backend.files.unpacking import DataFile

BAD = "\udcff"
"""Stands for bytes that do not fit the encoding: no text in any encoding contains it."""
MARKING = "mark-bad-bytes"
READ_AT_ONCE = 1 << 20
START = 1 << 16
WEIGHED = 1 << 16
"""The bytes of lines beyond ASCII that are compared with the habits of languages."""
SHOWN, BEFORE = 60, 20
MARKS: tuple[tuple[bytes, str, str], ...] = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
OTHER_NAMES = {
    "cp1256": "Windows-1256 (Arabic)",
    "cp874": "Windows-874 (Thai)",
    "gb18030": "GB18030 (Chinese)",
    "big5": "Big5 (Chinese)",
    "cp932": "Shift-JIS (Japanese)",
    "euc_jp": "EUC-JP (Japanese)",
    "cp949": "EUC-KR (Korean)",
}
NAMES = code_pages.NAMES | OTHER_NAMES
TRIED = ("cp1252", "cp1250", "cp1254", "cp1257", "cp1251", "cp1253", "cp1255", *OTHER_NAMES)
"""What is compared where the letters alone do not tell."""
WESTERN = frozenset(
    "äöüßÄÖÜáàâãåæçéèêëíìîïñóòôõøœúùûÁÀÂÃÅÆÇÉÈÊËÍÎÏÑÓÔÕØŒÚÛ€£§©®°·«»¿¡‘’“”„–—…•™´½¼²"
)
"""What French, German, Spanish and their neighbours write; elsewhere these bytes are others."""
LATIN = ("cp1252", "cp1250", "cp1254", "cp1257")
VOTES, FEWEST_LINES = 5, 10
KANA = re.compile("[\u3040-\u30ff]")
CONTROLS = re.compile(rb"[\x01-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
MOST_CONTROLS, MOST_NULS, MOST_ODD = 0.01, 0.2, 0.05
"""The shares of control characters, NULs and wrong wide characters in what is still text."""


def _mark_bad(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return BAD, error.end


codecs.register_error(MARKING, _mark_bad)


class Encoding(NamedTuple):
    """How a text is decoded: the codec, its name for people, and some text beyond ASCII.

    `other` is the name of another one that is nearly as likely.
    """

    codec: str
    name: str = "UTF-8"
    sample: str = ""
    other: str = ""

    def note(self, file: str) -> str:
        """Return a sentence for the data report; empty for UTF-8."""
        if self.name == "UTF-8":
            return ""
        shown = f': "{self.sample}"' if self.sample else "."
        doubt = f"; it could also be {self.other}." if self.other else ""
        return f"{file} is read as {self.name}{shown.removesuffix('.') if doubt else shown}{doubt}"


UTF8 = Encoding("utf-8-sig")


def encoding_of(file: DataFile) -> Encoding:
    """Find out the encoding of a text file; raises DataError where it cannot be read."""
    return _encoding_of(file, file.stamp)


def is_binary(start: bytes) -> bool:
    """Tell whether the first bytes of a file are not text."""
    for mark, codec, _ in MARKS:
        if start.startswith(mark):
            return codec != "utf-8-sig" and not _is_mostly_plain(start.decode(codec, MARKING))
    if not start or _wide(start):
        return False
    controls = len(CONTROLS.findall(start)) - 1  # one alone may be a slip
    return controls > MOST_CONTROLS * len(start) or start.count(0) > max(4, MOST_NULS * len(start))


@lru_cache(maxsize=64)
def _encoding_of(file: DataFile, stamp: tuple[int, int]) -> Encoding:
    start = file.start(START)
    with file.open() as content:
        for mark, codec, name in MARKS:
            if start.startswith(mark):
                return Encoding(codec, name, _shown(start.decode(codec, MARKING)))
        if wide := _wide(start):
            return Encoding(wide, wide[:6].upper(), _shown(start.decode(wide, MARKING)))
        sample = _beyond_ascii(content)
    if not sample or _is_utf8(sample):
        return UTF8
    guess = code_pages.guess(sample, MARKING) or code_pages.Guess(_likeliest(sample))
    shown = _shown(sample.decode(guess.codec, MARKING))
    return Encoding(guess.codec, NAMES[guess.codec], shown, NAMES.get(guess.other, ""))


def _wide(start: bytes) -> str:
    """Return the codec of UTF-16 or UTF-32 without a byte-order mark; empty where it is neither.

    Line ends, digits and quotation marks have NULs in them whatever the language.
    """
    if b"\0" not in start or _is_utf8_with_nuls(start):
        return ""
    return next((codec for codec in WIDE if _is_plain(start, codec)), "")


def _is_utf8_with_nuls(start: bytes) -> bool:
    """Tell whether bytes are UTF-8 apart from some NULs, of which wide text has more."""
    if start.count(0) > MOST_NULS * len(start):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start.replace(b"\0", b""))
    except UnicodeDecodeError:
        return False
    return True


def _is_plain(start: bytes, codec: str) -> bool:
    """Tell whether bytes are text in a codec, with no character that texts do not have."""
    whole = start[: len(start) // 4 * 4]
    try:
        text = codecs.getincrementaldecoder(codec)().decode(whole or start)
    except UnicodeDecodeError:
        return False
    return text.translate(_BLANKS).isprintable() and any(each.isascii() for each in text)


def _is_mostly_plain(text: str) -> bool:
    odd = sum(not each.isprintable() for each in text.translate(_BLANKS))
    return odd <= max(1, MOST_ODD * len(text))


_BLANKS = {ord(each): " " for each in "\t\r\n\f\ufeff\u00a0\u2028\u2029\u3000\u200b\u200d\u00ad"}


def _beyond_ascii(content: BinaryIO) -> bytes:
    """Return the lines with bytes beyond ASCII, from where the first ones are."""
    scanned = 0
    before = b""
    while scanned < read_limits.ENCODING_SCANNED_BYTES:
        piece = content.read(READ_AT_ONCE)
        if not piece:
            return b""
        if not piece.isascii():
            sample = before + piece + content.read(read_limits.ENCODING_SAMPLE_BYTES)
            return b"".join(_taken(sample))
        scanned += len(piece)
        before = piece[-START:]
    return b""


def _taken(sample: bytes) -> Iterator[bytes]:
    """Yield lines beyond ASCII, as many as are weighed; of a long one only where they are."""
    taken = 0
    for line in sample.splitlines(keepends=True):
        if line.isascii():
            continue
        if len(line) > WEIGHED:
            first = next(at for at, byte in enumerate(line) if byte > 127)
            line = line[max(0, first - BEFORE) :][:WEIGHED]
        yield line
        taken += len(line)
        if taken >= WEIGHED:
            return


def _is_utf8(sample: bytes) -> bool:
    """Tell whether more of the characters beyond ASCII are valid UTF-8 than not.

    In other encodings at most half as many are by accident: most in EUC-JP.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(MARKING)
    text = decoder.decode(sample)  # not the end: the last character may be cut
    bad = text.count(BAD)
    beyond = sum(not each.isascii() for each in text)
    return beyond >= 2 * bad


def _likeliest(sample: bytes) -> str:
    """Return the codec of a text that is not UTF-8.

    Lines with bytes that do not fit it would rule it out, so parts of a longer sample vote.
    """
    lines = sample.splitlines(keepends=True)
    if len(lines) < VOTES * FEWEST_LINES:
        return _best(sample)
    parts = [b"".join(lines[part::VOTES]) for part in range(VOTES)]
    return Counter(map(_best, parts)).most_common(1)[0][0]


def _best(sample: bytes) -> str:
    found = [each.encoding for each in from_bytes(sample, cp_isolation=[*TRIED])]
    found = [each for each in found if each in TRIED]
    if "euc_jp" in found and _share(sample, "euc_jp", KANA) > 0.5:
        return "euc_jp"
    western = {each for each in sample.decode("cp1252", MARKING) if not each.isascii()}
    if not found or (found[0] in LATIN and western <= WESTERN):
        return "cp1252"
    return found[0]


def _share(sample: bytes, codec: str, letters: re.Pattern[str]) -> float:
    """Return the share of some letters in what lies beyond ASCII."""
    text = sample.decode(codec, MARKING)
    beyond = sum(not each.isascii() for each in text)
    return len(letters.findall(text)) / max(1, beyond)


def _shown(text: str) -> str:
    """Return some text around the first character beyond ASCII, in one line."""
    line = next((each for each in text.splitlines() if not each.isascii()), text[:SHOWN])
    first = next((at for at, each in enumerate(line) if not each.isascii()), 0)
    start = max(0, first - BEFORE)
    cut = line[start : start + SHOWN].lstrip("\ufeff").replace(BAD, "\ufffd")
    clean = "".join(each if each.isprintable() else " " for each in cut).strip()
    return ("... " if start else "") + clean + (" ..." if start + SHOWN < len(line) else "")
