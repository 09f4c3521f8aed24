"""What can be wrong with the bytes of a line and of a file: syntax, encodings, what was cut off or is no text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random

from data import text_defects as texts
from data.seeding import (
    ALL,
    ANYWHERE,
    CHINESE,
    ENGLISH,
    GERMAN,
    JSON_ROWS,
    TABLES,
    TASKS,
    changed_bytes,
    changed_file,
    changed_gzip,
)

BROKEN = "broken|json|row"

NOT_JSON = (
    lambda line: line[:-1],
    lambda line: line[:-1] + b",}",
    lambda line: repr(json.loads(line)).encode(),
    lambda line: line.replace(b'": ', b'" ', 1),
    lambda line: line[: len(line) // 2],
    lambda line: b"// " + line,
)
CHANGED_LINES = {
    "broken json": changed_bytes(
        lambda random, data: random.choice(NOT_JSON)(data.rstrip(b"\n")) + b"\n", BROKEN, JSON_ROWS
    ),
    "two records on a line": changed_bytes(lambda random, data: data.rstrip(b"\n"), BROKEN, JSON_ROWS),
    "key twice": changed_bytes(
        lambda random, data: re.sub(rb'^\{("\w+": )', rb'{\1"first", \1', data),
        "twice|duplicate key|repeated",
        JSON_ROWS,
    ),
    "half a character": changed_bytes(
        lambda random, data: re.sub(rb'(": "\w+)', rb"\1\\ud83d", data, count=1),
        "half|surrogate|broken",
        ("english rows", "answers"),
    ),
    "column too many": changed_bytes(lambda random, data: data.rstrip(b"\n") + b",and more\n", "column", TABLES),
    "column too few": changed_bytes(lambda random, data: b"nothing else\n", "column", TABLES),
    "another delimiter": changed_bytes(
        lambda random, data: re.sub(rb'"?,(\w+\n|")', rb";\1", data), "column|delimiter|csv", TABLES
    ),
    "quote not closed": changed_bytes(
        lambda random, data: b'"' + data.replace(b'"', b""),
        "column|quote|csv|broken",
        ("english table", "table of labels"),
    ),
    "byte that is no text": changed_bytes(
        lambda random, data: data[:20] + random.choice((b"\xff", b"\xc0", b"\xfe")) + data[20:],
        "utf-8|byte|encod",
        ENGLISH,
    ),
    "character cut in two": changed_bytes(
        lambda random, data: re.sub(rb"([\xe4-\xe9][\x80-\xbf])[\x80-\xbf]", rb"\1", data, count=1),
        "utf-8|byte|encod",
        CHINESE,
    ),
    "row in gbk": changed_bytes(lambda random, data: data.decode().encode("gb18030"), "utf-8|byte|encod|gb", CHINESE),
    "row in latin-1": changed_bytes(
        lambda random, data: re.sub(rb"\xc3([\x80-\xbf])", lambda m: bytes([m[1][0] + 64]), data),
        "utf-8|byte|encod",
        GERMAN,
    ),
    "number that is none": changed_bytes(
        lambda random, data: data.rstrip(b"}\n") + b', "score": NaN}\n', "NaN|json|broken", ("english rows", "answers")
    ),
    "record over several lines": changed_bytes(
        lambda random, data: json.dumps(json.loads(data), indent=1).encode() + b"\n", BROKEN, TASKS
    ),
    "byte order mark inside": changed_bytes(
        lambda random, data: b"\xef\xbb\xbf" + data, "byte order mark|BOM|invisible"
    ),
}


def _foreign(text: str, codec: str) -> Callable[[bytes], bytes]:
    """A file of the same number of texts in another language, in an encoding of its own."""

    def change(data: bytes) -> bytes:
        said = re.split(r"(?<=[.。])", text)
        return "".join(f"{number}. {said[number % len(said)]}\n\n" for number in range(60)).encode(codec)

    return change


def _cut_line(data: bytes) -> bytes:
    return data[: data.rindex(b"\n", 0, -2) + 20]


def _encoded_twice(data: bytes) -> bytes:
    return data.decode("latin-1").encode()


def _one_list(data: bytes) -> bytes:
    return b"[" + b",\n".join(data.splitlines()) + b"]\n"


def _zeros(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(512) + data[len(data) // 2 :]


def _half_in_dos(data: bytes) -> bytes:
    half = data.index(b"\n", len(data) // 2)
    return data[:half] + data[half:].replace(b"\n", b"\r\n")


def _recoded(codec: str, mark: bytes = b"") -> Callable[[bytes], bytes]:
    return lambda data: mark + data.decode().encode(codec, "ignore")


ENCODED = "encod|not utf-8"
CHANGED_FILES = {
    "gbk": changed_file(_recoded("gbk"), "gb18030|gbk|gb2312", CHINESE),
    "utf-16": changed_file(_recoded("utf-16"), "utf-?16"),
    "utf-16 without mark": changed_file(_recoded("utf-16-le"), "utf-?16"),
    "utf-32": changed_file(_recoded("utf-32"), "utf-?32"),
    "latin-1": changed_file(_recoded("latin-1"), "latin|1252|8859", GERMAN, ANYWHERE),
    "cyrillic windows": changed_file(
        _foreign(texts.OTHER_LANGUAGES["ru"], "cp1251"), "1251|koi8|cyrillic", ("english", "german")
    ),
    "shift-jis": changed_file(
        _foreign(texts.OTHER_LANGUAGES["ja"], "shift_jis"), "shift.?jis|sjis|cp932|932", ("english", "chinese")
    ),
    "euc-kr": changed_file(
        _foreign(texts.OTHER_LANGUAGES["ko"], "euc_kr"), "euc.?kr|cp949|949", ("english", "chinese")
    ),
    "big5": changed_file(_foreign(texts.TRADITIONAL, "big5"), "big.?5|950", ("english", "chinese")),
    "empty file": changed_file(lambda data: b"", "empty"),
    "blank file": changed_file(lambda data: b"\n \n\n", "empty|blank|no text|no document|nothing", ALL, ANYWHERE),
    "binary": changed_file(lambda data: Random(len(data)).randbytes(5000), "binary|not text|not utf-8|encod"),
    "pdf": changed_file(lambda data: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + data, "pdf"),
    "archive": changed_file(lambda data: b"PK\x03\x04\x14\x00\x00\x00\x08\x00" + data, "zip"),
    "block of zeros": changed_file(_zeros, "control|NUL|binary|zero", ALL, ANYWHERE),
    "line ends of two kinds": changed_file(_half_in_dos, "line end|carriage|CRLF", ALL, ANYWHERE),
    "cut file": changed_file(_cut_line, "cut|truncat|broken|json|byte", JSON_ROWS, ANYWHERE),
    "file cut in a character": changed_file(
        lambda data: data[:-4], "cut|truncat|byte|utf-8|incomplete", ("chinese",), ANYWHERE
    ),
    "encoded twice": changed_file(_encoded_twice, "mojibake|decoded|twice", (*GERMAN, *CHINESE), ANYWHERE),
    "records in one list": changed_file(_one_list, "list|array|json|broken", JSON_ROWS, ANYWHERE),
    "no header": changed_file(lambda data: data[data.index(b"\n") + 1 :], "header|column|field", TABLES, ANYWHERE),
    "header twice": changed_file(
        lambda data: data[: data.index(b"\n") + 1] + data, "header|column|label", TABLES, ANYWHERE
    ),
    "cut gzip": changed_gzip(
        lambda random, data: data[: len(data) * random.randint(30, 90) // 100], "cut|truncat|too early"
    ),
    "damaged gzip": changed_gzip(
        lambda random, data: data[: len(data) // 2] + random.randbytes(8) + data[len(data) // 2 + 8 :],
        "damage|corrupt|gzip|compress",
    ),
    "no gzip": changed_gzip(lambda random, data: b"Not compressed at all.\n\nNor is this.\n", "gzip|compress"),
}
