"""What can be wrong inside a text: snippets that do not belong there, and changes that damage what is there.

All of it is made up: keys are random letters, numbers carry right check digits and belong to nobody.
"""

from __future__ import annotations

import base64
import json
import quopri
import re
import string
import unicodedata
from random import Random
from urllib.parse import quote

HTML = (
    '<div class="post"><p>Read on</p><br/><a href="/next">next</a></div>',
    "<table><tr><td>1</td><td>2</td></tr></table>",
    '<span style="color:red">new</span> <img src="a.png" alt="a">',
    "<script>var a = document.getElementById('x');</script>",
)
ENTITIES = (
    "Tom &amp; Jerry said &quot;no&quot;",
    "5 &lt; 7 &amp;&amp; 7 &gt; 5",
    "caf&eacute;&nbsp;noir",
    "it&#39;s &#8220;so&#8221;",
)
PLACEHOLDERS = (
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore.",
    "Lorem ipsum dolor sit amet, consetetur sadipscing elitr, sed diam nonumy eirmod tempor.",
)
CHAT_MARKS = ("<|im_start|>assistant", "<|endoftext|>", "<|im_end|>", "[INST] go on [/INST]", "<|eot_id|>")
OTHER_LANGUAGES = {
    "ru": "Вчера вечером старый рыбак вернулся домой позже обычного. Он долго сидел у окна и смотрел на реку, потому "
    "что не мог уснуть. Утром его дочь нашла на столе письмо, которого раньше там не было.",
    "ar": "عاد الصياد العجوز إلى بيته في المساء متأخرا. جلس طويلا قرب النافذة ينظر إلى النهر لأنه لم يستطع النوم. "
    "وفي الصباح وجدت ابنته رسالة على الطاولة.",
    "ja": "昨日の夜、年をとった漁師はいつもより遅く家に帰りました。眠れなかったので、窓のそばに座って川を見ていました。"
    "朝になって、娘はテーブルの上に手紙を見つけました。",
    "ko": "어젯밤 늙은 어부는 평소보다 늦게 집에 돌아왔다. 잠이 오지 않아서 오랫동안 창가에 앉아 강을 바라보았다. "
    "아침에 그의 딸은 탁자 위에서 편지 한 통을 발견했다.",
    "fr": "Hier soir, le vieux pêcheur est rentré chez lui plus tard que d'habitude. Il est resté "
    "longtemps assis près de la fenêtre à regarder la rivière, parce qu'il ne pouvait pas dormir. "
    "Le matin, sa fille a trouvé une lettre.",
    "zh": "昨天晚上，老渔夫比平时更晚才回到家里。他睡不着，就在窗边坐了很久，看着外面的河。"
    "早上他的女儿在桌子上发现了一封信，那封信以前是没有的。",
    "en": "Last night the old fisherman came home later than usual. He could not sleep, so he sat by the window for a "
    "long time and looked at the river. In the morning his daughter found a letter on the table.",
}
TRADITIONAL = (
    "昨天晚上，老漁夫比平時更晚才回到家裡。他睡不著，就在窗邊坐了很久，看著外面的河。"
    "早上他的女兒在桌子上發現了一封信，那封信以前是沒有的。"
)
CONFUSABLES = str.maketrans("aeopcxy", "аеорсху")
"""Latin letters to Cyrillic ones that look the same."""


def letters(random: Random, count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(random.choice(alphabet) for _ in range(count))


def insert(random: Random, text: str, snippet: str) -> str:
    """The text with the snippet at a border between two words, or after a mark in Chinese."""
    borders = [match.end() for match in re.finditer(r"(?<=[a-zäöüß,.]) (?=\w)|[，。]", text)] or [len(text)]
    place = random.choice(borders)
    return f"{text[:place]}{snippet} {text[place:]}".rstrip(" ")


def insert_inside(random: Random, text: str, snippet: str) -> str:
    """The text with the snippet inside a word."""
    places = [match.end() for match in re.finditer(r"[a-z](?=[a-z])|[\u4e00-\u9fff](?=[\u4e00-\u9fff])", text)]
    place = random.choice(places)
    return text[:place] + snippet + text[place:]


def mojibake(random: Random, text: str) -> str:
    """One sentence as it looks when its UTF-8 bytes were read as Windows-1252, with Latin-1 where that has holes."""
    sentences = re.split(r"(?<=[.。]) ?", text)
    foreign = [place for place, said in enumerate(sentences) if not said.isascii()]
    chosen = random.choice(foreign)
    said = sentences[chosen].encode()
    sentences[chosen] = "".join(_as_1252(byte) for byte in said)
    return " ".join(sentences)


def _as_1252(byte: int) -> str:
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


def gbk_as_latin(random: Random, text: str) -> str:
    """The Chinese text as it looks when its GBK bytes were read as Latin-1."""
    return text.encode("gbk", "ignore").decode("latin-1")


def apostrophe_mojibake(random: Random, text: str) -> str:
    """Typographic quotes as they look after a wrong decoding."""
    return insert(random, text, random.choice(("donâ€™t ask,", "â€œneverâ€\x9d", "it wasnâ€™t", "one â€“ two")))


def decomposed(random: Random, text: str) -> str:
    return unicodedata.normalize("NFD", text)


def confusable(random: Random, text: str) -> str:
    """One long word with Cyrillic letters among the Latin ones."""
    words = [match for match in re.finditer(r"[A-Za-z]{5,}", text) if re.search("[aeopcxy]", match[0][1:-1])]
    word = random.choice(words)
    inner = word[0][1:-1].translate(CONFUSABLES)
    return text[: word.start()] + word[0][0] + inner + word[0][-1] + text[word.end() :]


def escaped(random: Random, text: str) -> str:
    """The text as JSON wrote it, taken for the text itself: a backslash and an n where a line ended."""
    half = text.find(" ", len(text) // 2)
    return json.dumps(f"{text[:half]}\n\n{text[half:].strip()}\n")[1:-1]


def repeated_character(random: Random, text: str) -> str:
    return insert(random, text, random.choice("aAz啊") * random.randint(120, 400))


def repeated_words(random: Random, text: str) -> str:
    words = random.choice(("very", "and the", "I do not know", "重要的", "thank you so much"))
    return insert(random, text, " ".join([words] * random.randint(60, 120)))


def repeated_lines(random: Random, text: str) -> str:
    line = random.choice(
        ("Please wait while the page is loading.", "请稍候，页面正在加载。", "Next entry in the list:")
    )
    return "\n".join([text, *[line] * random.randint(30, 60)])


def base64_blob(random: Random) -> str:
    return base64.b64encode(random.randbytes(random.randint(400, 900))).decode()


def data_uri(random: Random) -> str:
    return f"data:image/png;base64,{base64.b64encode(random.randbytes(600)).decode()}"


def hex_blob(random: Random) -> str:
    return random.randbytes(random.randint(300, 600)).hex()


def minified_code(random: Random) -> str:
    calls = []
    for _ in range(60):
        a, b, c = (letters(random, 3, string.ascii_lowercase) for _ in range(3))
        calls.append(f"function {a}({b},{c}){{return {b}.{a}?{c}[{random.randrange(99)}]:null}};var {c}={b}||{{}};")
    return "!" + "".join(calls)


def email(random: Random) -> str:
    name, host = (letters(random, 6, string.ascii_lowercase) for _ in range(2))
    return f"{name}.{random.choice(('miller', 'weber', 'zhang'))}@{host}.{random.choice(('com', 'de', 'cn', 'org'))}"


def phone(random: Random) -> str:
    digits = letters(random, 7, "23456789")
    return random.choice(
        (f"+49 30 {digits}", f"+1 (415) {digits[:3]}-{digits[3:]}", f"+44 20 7{digits[:3]} {digits[3:]}")
    )


def chinese_mobile(random: Random) -> str:
    digits = random.choice(("138", "139", "158", "186", "177")) + letters(random, 8, string.digits)
    return random.choice(("手机", "电话：", "")) + random.choice((digits, f"{digits[:3]}-{digits[3:7]}-{digits[7:]}"))


def chinese_id(random: Random) -> str:
    born = f"19{random.randint(50, 99)}{random.randint(1, 12):02}{random.randint(1, 28):02}"
    first = random.choice(("110105", "310104", "440305")) + born + letters(random, 3, string.digits)
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(digit) * weight for digit, weight in zip(first, weights, strict=True))
    return first + "10X98765432"[total % 11]


def credit_card(random: Random) -> str:
    digits = random.choice("45") + str(random.randint(1, 5)) + letters(random, 13, string.digits)
    doubled = [int(digit) * (2 - place % 2) for place, digit in enumerate(digits)]
    check = -sum(value // 10 + value % 10 for value in doubled) % 10
    number = digits + str(check)
    return random.choice((number, " ".join(number[at : at + 4] for at in range(0, 16, 4))))


def iban(random: Random) -> str:
    account = letters(random, 18, string.digits)
    check = 98 - int(account + "131400") % 97
    number = f"DE{check:02}{account}"
    return random.choice((number, " ".join(number[at : at + 4] for at in range(0, 22, 4))))


def ip_address(random: Random) -> str:
    return ".".join(str(part) for part in (random.choice((81, 93, 145, 212)), *random.choices(range(16, 250), k=3)))


def aws_key(random: Random) -> str:
    return "AKIA" + letters(random, 16, string.ascii_uppercase + "234567")


def private_key(random: Random) -> str:
    body = "\n".join(base64.b64encode(random.randbytes(48)).decode() for _ in range(8))
    name = random.choice(("RSA ", "EC ", "OPENSSH ", ""))
    return f"-----BEGIN {name}PRIVATE KEY-----\n{body}\n-----END {name}PRIVATE KEY-----"


def github_token(random: Random) -> str:
    return random.choice(("ghp_", "gho_", "ghs_")) + letters(random, 36)


def model_key(random: Random) -> str:
    return random.choice(("sk-", "sk-proj-", "sk-ant-api03-")) + letters(random, 48)


def web_token(random: Random) -> str:
    head, claims = ('{"alg":"HS256","typ":"JWT"}', json.dumps({"sub": letters(random, 10), "admin": True}))
    parts = [base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in (head, claims)]
    return ".".join([*parts, letters(random, 43)])


def password(random: Random) -> str:
    secret = letters(random, 8) + str(random.randint(10, 99)) + random.choice("!#%&")
    return random.choice((f"password={secret}", f"DB_PASSWORD={secret}", f'password: "{secret}"'))


def login_in_address(random: Random) -> str:
    return f"postgres://admin:{letters(random, 14)}@db.example.com:5432/shop"


def marks_upon_marks(random: Random, text: str) -> str:
    """One word under a heap of combining marks."""
    word = re.search(r"[a-z]{4,}", text)
    assert word, "every text has a word"
    heaped = "".join(letter + "".join(chr(random.randrange(0x300, 0x36F)) for _ in range(9)) for letter in word[0])
    return text[: word.start()] + heaped + text[word.end() :]


def spaced_letters(random: Random, text: str) -> str:
    """A text as bad character recognition gives it."""
    return " ".join(text)


def percent_encoded(random: Random, text: str) -> str:
    return quote(text)


def unicode_escapes(random: Random, text: str) -> str:
    return json.dumps(text)[1:-1]


def quoted_printable(random: Random, text: str) -> str:
    return quopri.encodestring(text.encode()).decode()


def shouted_marks(random: Random, text: str) -> str:
    return insert(random, text, random.choice("!.?~-") * random.randint(200, 400))


def emoji_flood(random: Random, text: str) -> str:
    return insert(random, text, random.choice("😂👍🔥") * random.randint(100, 300))


def numbers_only(random: Random, text: str) -> str:
    return " ".join(f"{random.random() * 1000:.4f}" for _ in range(120))


def variation_selectors(random: Random, text: str) -> str:
    """Bytes hidden behind a letter, as marks that choose a glyph."""
    return insert_inside(random, text, "".join(chr(0xE0100 + random.randrange(0xEF)) for _ in range(30)))


def social_security(random: Random) -> str:
    return f"SSN {random.randint(101, 665)}-{random.randint(11, 99)}-{random.randint(1001, 9998)}"


def six_groups(random: Random) -> str:
    return random.choice(("2a02:8109:9c40:", "2003:e5:372f:")) + ":".join(
        letters(random, 4, "123456789abcdef") for _ in range(5)
    )


def google_key(random: Random) -> str:
    return "AIza" + letters(random, 35)


def chat_token(random: Random) -> str:
    return f"xoxb-{letters(random, 12, string.digits)}-{letters(random, 12, string.digits)}-{letters(random, 24)}"


def payment_key(random: Random) -> str:
    return "sk_live_" + letters(random, 24)


def bearer(random: Random) -> str:
    return f"Authorization: Bearer {letters(random, 40)}"


def web_page(random: Random, text: str) -> str:
    return f"<!DOCTYPE html>\n<html><head><title>Home</title></head>\n<body><p>{text}</p></body></html>"
