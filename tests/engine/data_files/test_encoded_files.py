"""Text in any common encoding is read, and that is said; a wrong byte is one bad row."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from backend.engine.data_files.file_readers import Broken, notes, read_rows
from backend.errors import DataError
from backend.files.encodings import UTF8, encoding_of
from backend.files.unpacking import DataFile

GERMAN = ["Größe, naïve", "Ärger über die Straße", "Möchtest du Äpfel?"]
FRENCH = ["Où est l’été ?", "“Ça va”, dit-elle — déjà", "Le garçon a mangé"]
POLISH = ["Zażółć gęślą jaźń", "Proszę przetłumaczyć to zdanie", "Kot leży na łóżku"]
RUSSIAN = ["Привет, как дела?", "Кошка на коврике", "Переведи предложение"]
CHINESE = ["你好，今天天气很好", "请把下面的句子翻译成英文", "猫在垫子上"]
TRADITIONAL = ["你好，今天天氣很好", "請把下面的句子翻譯成英文"]
JAPANESE = ["こんにちは、世界", "猫はマットの上にいます", "日本語の文章を書いてください"]
KOREAN = ["안녕하세요 세계", "고양이는 매트 위에 있습니다"]
GREEK = ["Καλημέρα κόσμε", "Η γάτα είναι στο χαλί"]
ALL = [*GERMAN, *RUSSIAN, *CHINESE, *JAPANESE, *KOREAN, "\N{PILE OF POO} ok"]
DOES_NOT_FIT = "it has bytes that do not fit the encoding of the rest of the file"


def texts_of(lines: list[str], times: int = 20) -> list[str]:
    return [f"{line} / and some English {n}" for n in range(times) for line in lines]


def jsonl(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def write(path: Path, content: bytes) -> DataFile:
    path.write_bytes(content)
    return DataFile(path, path.name)


def rows(file: DataFile) -> list[Any]:
    return [row for _, row in read_rows(file.path, file.name)]


@pytest.mark.parametrize(
    ("codec", "lines", "name"),
    [
        ("utf-16", ALL, "UTF-16"),
        ("utf-16-le", ALL, "UTF-16"),
        ("utf-16-be", CHINESE, "UTF-16"),
        ("utf-32", ALL, "UTF-32"),
        ("utf-32-le", ALL, "UTF-32"),
        ("utf-32-be", GERMAN, "UTF-32"),
        ("cp1252", GERMAN, "Windows-1252 (Western European)"),
        ("cp1252", FRENCH, "Windows-1252 (Western European)"),
        ("latin-1", GERMAN, "Windows-1252 (Western European)"),
        ("cp1250", POLISH, "Windows-1250 (Central European)"),
        ("cp1251", RUSSIAN, "Windows-1251 (Cyrillic)"),
        ("koi8-r", RUSSIAN, "KOI8-R (Cyrillic)"),
        ("cp1253", GREEK, "Windows-1253 (Greek)"),
        ("gb18030", CHINESE, "GB18030 (Chinese)"),
        ("gbk", CHINESE, "GB18030 (Chinese)"),
        ("big5", TRADITIONAL, "Big5 (Chinese)"),
        ("shift-jis", JAPANESE, "Shift-JIS (Japanese)"),
        ("euc-jp", JAPANESE, "EUC-JP (Japanese)"),
        ("euc-kr", KOREAN, "EUC-KR (Korean)"),
    ],
)
def test_common_encodings_are_found_and_said(
    tmp_path: Path, codec: str, lines: list[str], name: str
) -> None:
    texts = texts_of(lines)
    file = write(tmp_path / "people.jsonl", jsonl(texts).encode(codec))

    assert [row["text"] for row in rows(file)] == texts
    (note,) = notes(file)
    assert note.startswith(f"people.jsonl is read as {name}: ")
    assert lines[0][:20] in note


@pytest.mark.parametrize("lines", [GERMAN, FRENCH])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_western_words_are_enough(tmp_path: Path, lines: list[str], count: int) -> None:
    text = "prompt;completion\n" + "".join(f"{line};yes\n" for line in lines[:count])
    file = write(tmp_path / "people.csv", text.encode("cp1252"))

    assert [row["prompt"] for row in rows(file)] == lines[:count]


RUSSIAN_ROW = "Где дом 0?;Дом номер 0 стоит у моря."
GERMAN_ROW = "Wo ist Straße 0?;Über der schönen Brücke 0"
POLISH_ROW = "Gdzie jest dom 0?;Żółta łódź płynie, źle się śpi, gęś 0."
HUNGARIAN_ROW = "Hol van a ház 0?;A ház a tenger mellett van, és nagyon erős tetővel épült."
CZECH_ROW = "Kde je dům 0?;Dům je u moře a je žlutý, příliš žluťoučký kůň."
FRENCH_ROW = "Où est la maison 0?;Près de la forêt déjà vue 0"
SPANISH_ROW = "¿Dónde está la casa 0?;La casa está junto al mar, señor."
SHOUTED_ROW = "ГДЕ ДОМ 0?;ДОМ НОМЕР 0 СТОИТ У МОРЯ."


@pytest.mark.parametrize("rows_in_file", [1, 24])
@pytest.mark.parametrize(
    ("row", "codecs"),
    [
        (RUSSIAN_ROW, "cp1251 koi8_r cp866 iso8859_5 mac_cyrillic"),
        (SHOUTED_ROW, "cp1251 koi8_r cp866 iso8859_5"),
        ("Де будинок 0?;Моя хата стоїть біля моря, її видно звідси.", "cp1251 koi8_u"),
        ("Къде е къщата 0?;Къщата е синя като морето.", "cp1251"),
        ("Где је кућа 0?;Кућа је плава као море, њена врата су жута.", "cp1251 iso8859_5"),
        (POLISH_ROW, "cp1250 iso8859_2 cp852"),
        (POLISH_ROW.upper(), "cp1250 iso8859_2"),
        (CZECH_ROW, "cp1250 iso8859_2 cp852"),
        ("Kde je dom 0?;Je pri mori a je modrý, veľký, ležíš v tieni.", "cp1250 iso8859_2"),
        (HUNGARIAN_ROW, "cp1250 iso8859_2 cp852"),
        ("Gdje je kuća 0?;Kuća je pokraj mora, žuta je, đak čita.", "cp1250 iso8859_2 cp852"),
        ("Unde este casa 0?;Casa este lângă mare şi aţi văzut băieţii.", "cp1250 iso8859_2"),
        ("Kur yra namas 0?;Stovi prie jūros, šviečia žvaigždė, ąžuolas.", "cp1257"),
        ("Kur ir māja 0?;Māja ir pie jūras, ļoti skaista, bērni dārzā.", "cp1257"),
        (GERMAN_ROW, "cp1252 latin-1 mac_roman cp850"),
        (FRENCH_ROW, "cp1252 latin-1 mac_roman cp850"),
        (SPANISH_ROW, "cp1252 latin-1 mac_roman cp850"),
        ("Onde está a casa 0?;Não está perto, são três irmãos e o coração.", "cp1252 mac_roman"),
        ("Hvor er huset 0?;Huset er ved søen og er blåt, æble på øen.", "cp1252 mac_roman cp850"),
        ("Πού είναι το σπίτι 0;Το σπίτι 0 είναι μπλε.", "cp1253 iso8859_7 cp737"),
        ("Ev 0 nerede?;Işık güzel, çocuk şarkı söylüyor, ığdır 0.", "cp1254 cp857"),
        ("איפה הבית 0?;הבית ליד הים הכחול 0", "cp1255 cp862"),
        ("أين البيت 0؟;البيت قريب من البحر الأزرق 0", "cp1256"),
        ("Cost of 0?;“About €0” – it’s cheap…", "cp1252"),
    ],
)  # fmt: skip
def test_short_texts_are_read_in_the_code_pages_of_their_language(
    tmp_path: Path, row: str, codecs: str, rows_in_file: int
) -> None:
    lines = [row.replace("0", str(number)) for number in range(rows_in_file)]
    for codec in codecs.split():
        content = "\r\n".join(["prompt;response", *lines]).encode(codec)
        file = write(tmp_path / f"{codec}.csv", content)

        found = [f"{row['prompt']};{row['response']}" for row in rows(file)]

        assert (codec, found) == (codec, lines)


def test_another_likely_encoding_is_said(tmp_path: Path) -> None:
    file = write(tmp_path / "one.txt", "Дом".encode("cp866"))

    assert notes(file) == (
        'one.txt is read as DOS 866 (Cyrillic): "Дом"; it could also be '
        "DOS 850 (Western European).",
    )


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig"])
def test_utf_8_is_not_mentioned(tmp_path: Path, codec: str) -> None:
    file = write(tmp_path / "data.jsonl", jsonl(ALL).encode(codec))

    assert [row["text"] for row in rows(file)] == ALL
    assert notes(file) == ()


@pytest.mark.parametrize("wrong", [GERMAN[0].encode("cp1252"), b"cut \xe4\xbd", b"\xff\xfe x"])
@pytest.mark.parametrize("place", [0, 10, 59])
def test_utf_8_with_some_other_bytes_is_utf_8(tmp_path: Path, wrong: bytes, place: int) -> None:
    lines = [f'{{"text": "{text}"}}'.encode() for text in texts_of(GERMAN)]
    lines[place] = b'{"text": "' + wrong + b'"}'
    file = write(tmp_path / "data.jsonl", b"\n".join(lines))

    found = rows(file)

    assert encoding_of(file) == UTF8
    assert [row.what for row in found if isinstance(row, Broken)] == [DOES_NOT_FIT]
    assert isinstance(found[place], Broken)
    assert len(found) == 60


@pytest.mark.parametrize("name", ["data.csv", "data.txt", "data.json", "data.tsv"])
def test_bytes_that_do_not_fit_make_one_bad_row_in_every_format(tmp_path: Path, name: str) -> None:
    good, bad = "Größe".encode(), b"Gr\xf6\xdfe"
    parts = [good] * 30 + [bad] + [good] * 29
    content = {
        "data.csv": b"text,more\n" + b"".join(each + b",x\n" for each in parts),
        "data.tsv": b"text\tmore\n" + b"".join(each + b"\tx\n" for each in parts),
        "data.txt": b"\n\n".join(parts),
        "data.json": b"[" + b",".join(b'{"text": "' + each + b'"}' for each in parts) + b"]",
    }
    found = rows(write(tmp_path / name, content[name]))

    assert [isinstance(row, Broken) for row in found] == [False] * 30 + [True] + [False] * 29
    assert found[30].what == DOES_NOT_FIT
    assert found[31]["text"] == "Größe"


@pytest.mark.parametrize(
    ("codec", "lines", "bad"),
    [("cp1252", GERMAN, b"\x81"), ("gb18030", CHINESE, b"\xff"), ("shift-jis", JAPANESE, b"\x81 ")],
)
def test_bytes_that_stand_for_nothing_make_one_bad_row(
    tmp_path: Path, codec: str, lines: list[str], bad: bytes
) -> None:
    content = jsonl(texts_of(lines)).encode(codec) + b'{"text": "' + bad + b'"}\n'

    found = rows(write(tmp_path / "data.jsonl", content))

    assert [row.what for row in found if isinstance(row, Broken)] == [DOES_NOT_FIT]


def test_what_lies_beyond_ascii_is_found_far_into_a_file(tmp_path: Path) -> None:
    plain = '{"text": "plain"}\n' * 300_000
    file = write(tmp_path / "data.jsonl", (plain + jsonl(GERMAN)).encode("cp1252"))

    assert notes(file) == (
        'data.jsonl is read as Windows-1252 (Western European): "{"text": "Größe, naïve"}"',
    )


def test_a_changed_file_is_looked_at_again(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", jsonl(GERMAN).encode("cp1252"))
    assert notes(file)

    write(file.path, jsonl([*GERMAN, "more"]).encode())
    assert [row["text"] for row in rows(file)] == [*GERMAN, "more"]
    assert notes(file) == ()


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 40,
        b"\0" * 5000,
        random.Random(0).randbytes(5000),
        b"\xff\xfe" + random.Random(0).randbytes(5000),
    ],
)
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"^data\.jsonl is not text, although its name says"):
        rows(write(tmp_path / "data.jsonl", content))
