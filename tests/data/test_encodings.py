"""Encodings are recognised, look-alikes are refused, and bytes are decoded strictly."""

# text in many scripts looks ambiguous to someone who expects English

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bimo.data.decoding import BAD, MOST_BAD, TextStream
from bimo.data.documents import UnreadableError
from bimo.data.encodings import CONTROL, Encoding, recognise

ENGLISH = "All human beings are born free and equal in dignity and rights.\nThey are endowed with reason.\n"
CHINESE = "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。\n一切都好。"
TRADITIONAL = "人類社會所有成員都有固有尊嚴，並有平等和不可剝奪的權利，承認這一點是世界自由、正義與和平的基礎。"
JAPANESE = "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 서로 형제애의 정신으로 행동하여야 한다."
RUSSIAN = "Все люди рождаются свободными и равными в своем достоинстве и правах."
FRENCH = "Tous les êtres humains naissent libres et égaux en dignité; ils sont doués de raison, où ça çà là, été créé."
THAI = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ"


def decoded(data: bytes, encoding: Encoding, size: int = 7) -> tuple[str, str]:
    """The text of bytes that come in chunks of `size`, and what was wrong with them."""
    stream = TextStream([data[i : i + size] for i in range(0, len(data), size)], encoding)
    text = "".join(stream)
    return text, stream.take_bad(stream.line) if BAD in text else ""


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, TRADITIONAL, JAPANESE + "\n", KOREAN, RUSSIAN, FRENCH, THAI + "\n"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_is_recognised_with_and_without_its_mark(text: str, codec: str) -> None:
    data = text.encode(codec)
    encoding = recognise(data)
    assert encoding.codec == {"utf-8-sig": "utf-8", "utf-16": "utf-16-le"}.get(codec, codec)
    assert decoded(data, encoding) == (text, "")


@pytest.mark.parametrize("text", [CHINESE, TRADITIONAL, "中文 and English: " + ENGLISH, CHINESE + "😀é"])
def test_chinese_in_gb18030_is_recognised(text: str) -> None:
    data = text.encode("gb18030")
    encoding = recognise(data)
    assert encoding.label == "GB18030"
    assert decoded(data, encoding) == (text, "")


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        (FRENCH, "latin-1"),
        (FRENCH, "cp437"),
        ("Übergröße, Straße, fünf dünne Mädchen, große Brücke", "cp1252"),
        ("ÀÉÈÙ ÄÖÜ ÂÊÎÔÛ ÑÇ" * 9, "latin-1"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        (KOREAN, "euc_kr"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8_r"),
        (RUSSIAN, "iso8859_5"),
        (THAI, "tis_620"),
        (TRADITIONAL, "big5"),
        (ENGLISH, "utf-32"),
        (ENGLISH, "utf-32-le"),
    ],
)
def test_other_encodings_are_refused_and_never_taken_for_gb18030(text: str, codec: str) -> None:
    with pytest.raises(UnreadableError):
        recognise((text * 8).encode(codec))


@pytest.mark.parametrize("size", [64, 1000, 50_000])
@pytest.mark.parametrize("lowest", [0, 32, 128])
def test_random_bytes_are_refused(size: int, lowest: int) -> None:
    source = random.Random(size + lowest)
    for _ in range(20):
        with pytest.raises(UnreadableError):
            recognise(bytes(source.randrange(lowest, 256) for _ in range(size)))


@pytest.mark.parametrize(
    "start", [b"\x1f\x8b\x08", b"%PDF-1.7\n", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"text\0text"]
)
def test_other_formats_are_refused(start: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"not text|binary"):
        recognise(start + ENGLISH.encode())


def test_text_full_of_control_characters_or_damage_is_refused() -> None:
    with pytest.raises(UnreadableError, match="control characters"):
        recognise(b"a\x01b\x02" * 50)
    for codec in ("utf-8", "gb18030"):
        with pytest.raises(UnreadableError, match="not UTF-8"):
            recognise((CHINESE[:5].encode(codec) + b"\xff\xff") * 50)


def test_a_sample_that_ends_within_a_character_is_no_damage() -> None:
    for text, codec in ((CHINESE, "utf-8"), (CHINESE, "gb18030")):
        data = text.encode(codec)
        assert {recognise(data[:end]).codec for end in range(80, 90)} == {codec}


def test_a_few_bad_bytes_do_not_hide_the_encoding() -> None:
    chinese = CHINESE * 20
    for codec in ("utf-8", "gb18030"):
        data = chinese.encode(codec)
        assert recognise(data[:300] + b"\xff" + data[300:]).codec == codec
    assert recognise(ENGLISH.encode() + b"\xff").codec == "utf-8"


@given(
    st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\r\n")),
    st.sampled_from(["utf-8", "utf-16-le", "utf-16-be", "gb18030"]),
    st.integers(1, 9),
)
def test_chunks_of_any_size_decode_to_the_same_text(text: str, codec: str, size: int) -> None:
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    assert decoded(text.encode(codec), Encoding(codec, codec), size) == (expected, "")


@given(st.binary(max_size=200), st.sampled_from(["utf-8", "utf-16-le", "utf-16-be", "gb18030"]), st.integers(1, 9))
def test_no_bytes_are_replaced_in_silence(data: bytes, codec: str, size: int) -> None:
    text, told = decoded(data, Encoding(codec, codec), size)
    try:
        data.decode(codec)
        decodes = True
    except UnicodeDecodeError:
        decodes = False
    good = data.decode(codec, "ignore").replace("\r\n", "\n").replace("\r", "\n")
    assert text.replace(BAD, "") == CONTROL.sub("", good), "what can be decoded is kept"
    assert bool(told) == (BAD in text) == (not decodes or CONTROL.search(good) is not None)


@pytest.mark.parametrize(("codec", "offset"), [("utf-8", 6), ("utf-16-le", 4), ("gb18030", 4)])
def test_a_control_character_is_told_with_its_byte_offset(codec: str, offset: int) -> None:
    text, told = decoded("中文\0\r\nend\f\t".encode(codec), Encoding(codec, codec), 3)
    assert text == f"中文{BAD}\nend\f\t"
    assert told == f"control character U+0000 at byte offset {offset}"


def test_damaged_utf8_is_not_taken_for_chinese() -> None:
    assert recognise("bad ¡ô".encode() + b" \xe4\xbd\n").codec == "utf-8"


def test_offsets_count_the_byte_order_mark() -> None:
    data = b"\xef\xbb\xbfgood \xff"
    assert decoded(data, recognise(data)) == (f"good {BAD}", "byte 0xff at offset 8 is not UTF-8")


def test_each_bad_place_is_told_once_and_with_those_of_its_lines() -> None:
    stream = TextStream([b"ok\n\xff and \xfe\n\xfd\n"], Encoding("utf-8", "UTF-8"))
    assert "".join(stream) == f"ok\n{BAD} and {BAD}\n{BAD}\n"
    assert stream.take_bad(2) == "byte 0xff at offset 3 is not UTF-8, and 1 more such places"
    assert stream.take_bad(3) == "byte 0xfd at offset 11 is not UTF-8"


def test_a_stream_that_turns_into_something_else_is_ended() -> None:
    stream = TextStream([b"one\ntwo\n", b"\xff " * (MOST_BAD + 1)], Encoding("utf-8", "UTF-8"))
    with pytest.raises(UnreadableError, match="from here on it is not UTF-8") as error:
        list(stream)
    assert error.value.row == 3
