"""Small clean data sets, made from a grammar: what a checkup must not alarm at, and what a defect is put into.

A sentence is drawn once and said in English, German and Chinese, so that rows of a translation set really are
translations. Some sentences hold what looks suspicious and is not: emoji families, versions, primes, tags in prose.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

TIMES = """
In the morning|Am Morgen|清晨; After the long winter|Nach dem langen Winter|漫长的冬天过后
On the third day|Am dritten Tag|第三天; Before the market opened|Noch vor dem Markt|集市开门以前
Late in the evening|Spät am Abend|傍晚时分; During the war|Während des Krieges|战争期间
When the rain stopped|Gleich nach dem Regen|雨停了以后; At the end of May|Ende Mai|五月底
In those years|In jenen Jahren|在那些年里; Shortly after midnight|Kurz nach Mitternacht|午夜刚过
Every second Sunday|Jeden zweiten Sonntag|每隔一个星期天; In 1923|Im Jahr 1923|1923年
A week later|Eine Woche später|一个星期以后; For the first time|Zum ersten Mal|有史以来第一次
At noon|Um die Mittagszeit|中午; Since the autumn|Seit dem Herbst|从秋天开始
On his birthday|An seinem Geburtstag|在他生日那天; As a child|Schon als Kind|还是孩子的时候
Between two storms|Zwischen zwei Gewittern|两场暴风雨之间; Against all advice|Gegen jeden Rat|不顾众人的劝告
Without a word|Ohne ein Wort|一句话也没说; Twice a year|Zweimal im Jahr|一年两次; From then on|Von da an|从那时起
On 17 April|Am 17. April|四月十七日; Last summer|Letzten Sommer|去年夏天
"""
SUBJECTS = """
the old ferryman|der alte Fährmann|老船夫; my grandmother|meine Großmutter|我的祖母
the two brothers|das Brüderpaar|兄弟俩; a travelling teacher|ein fahrender Lehrer|一位游历的老师
the young baker|die junge Bäckerin|年轻的面包师; our neighbour|unser Nachbar|我们的邻居
the café owner|der Besitzer des Cafés|咖啡馆的老板; the mayor|die Bürgermeisterin|市长
a student of physics|ein Student der Physik|一个学物理的学生; the night watchman|der Nachtwächter|守夜人
the new doctor|die neue Ärztin|新来的医生; nobody but the cook|niemand außer dem Koch|除了厨师没有人
the postman|der Briefträger|邮递员; a quiet engineer|ein stiller Ingenieur|一位沉默的工程师
the gardener|die Gärtnerin|园丁; the captain|der Kapitän|船长; her youngest daughter|ihre jüngste Tochter|她的小女儿
the whole village|das ganze Dorf|全村的人; a painter from the south|ein Maler aus dem Süden|一位从南方来的画家
the clockmaker|der Uhrmacher|钟表匠; the choir|der Chor|合唱团; the librarian|der Bibliothekar|图书管理员
a shepherd|ein Schäfer|一个牧羊人; the judge|die Richterin|法官; the blacksmith|der Schmied|铁匠
"""
VERBS = """
repaired|reparierte|修好了; painted|malte|画了; forgot|vergaß|忘记了; found|fand|找到了; sold|verkaufte|卖掉了
described|beschrieb|描述了; measured|vermaß|测量了; showed the guests|zeigte den Gästen|让客人看了
carried away|trug|搬走了; wanted to see|sah|想看看; cleaned|putzte|打扫了; inspected|prüfte|检查了
photographed|fotografierte|拍下了; bought|kaufte|买下了; drew|zeichnete|画下了; remembered|kannte noch|还记得
"""
OBJECTS = """
the wooden bridge|die hölzerne Brücke|那座木桥; a map of the coast|eine Karte der Küste|一张海岸的地图
the broken lamp|die kaputte Lampe|那盏坏了的灯; the letters of her father|die Briefe des Vaters|她父亲的信
seven grey horses|sieben graue Pferde|七匹灰色的马; the stone well|den steinernen Brunnen|那口石井
an unfinished song|ein unfertiges Lied|一首没写完的歌; the church clock|die Kirchenuhr|教堂的钟
the blue boat|das blaue Boot|那条蓝色的小船; a small telescope|ein kleines Fernrohr|一架小望远镜
the apple trees|die Apfelbäume|那些苹果树; the price of salt|den Preis des Salzes|盐的价格
a box of glass eyes|eine Kiste voller Glasaugen|一箱玻璃眼珠; the railway timetable|den Fahrplan der Bahn|火车的时刻表
the roof|das Dach|屋顶; the garden wall|die Gartenmauer|花园的围墙; an old recipe|ein altes Rezept|一个古老的菜谱
the first page|die erste Seite|第一页; a red coat|einen roten Mantel|一件红大衣
the mill by the river|die Mühle am Fluss|河边的磨坊; two heavy doors|zwei schwere Türen|两扇沉重的门
the piano|das Klavier|那架钢琴; a bag of flour|einen Sack Mehl|一袋面粉
the name of the island|den Namen der Insel|那个岛的名字; the silver spoons|die silbernen Löffel|那些银勺子
"""
PLACES = """
behind the school|hinter der Schule|在学校后面; in the harbour|im Hafen|在港口
near the northern gate|nahe dem Nordtor|在北门附近; on the market square|auf dem Marktplatz|在集市广场上
in a town that no map shows|in einer namenlosen Stadt|在一座地图上没有的小城里
across the valley|jenseits des Tales|在山谷的另一边; under the stairs|unter der Treppe|在楼梯下面
at the edge of the wood|am Waldrand|在树林边上; in the library|in der Bibliothek|在图书馆里
on the way to the station|auf dem Weg zum Bahnhof|在去车站的路上; in the cellar|im Keller|在地下室里
next to the pharmacy|neben der Apotheke|在药店旁边; by the lake|am See|在湖边
in front of everyone|vor aller Augen|当着所有人的面; on the top floor|im obersten Stock|在顶楼
in the kitchen|in der Küche|在厨房里; outside the city walls|vor den Stadtmauern|在城墙外面
"""
TAILS = """
because the money was gone|denn das Geld war weg|因为钱已经花完了
although it was forbidden|obwohl es verboten war|虽然这是不允许的
and went home singing|und ging singend heim|然后唱着歌回家了
while the dog slept|während der Hund schlief|那时狗正在睡觉
so that the children could cross|damit die Kinder hinüberkonnten|为了让孩子们可以过去
which surprised us all|was uns alle überraschte|这让我们都很吃惊
but kept it a secret|hielt es aber geheim|但是没有告诉任何人; for 3.50 a piece|für 3,50 das Stück|每件三块五
as the law demands|wie es das Gesetz verlangt|这是法律的要求
until the lights went out|bis die Lichter ausgingen|一直到灯都灭了
and nobody knew why|und niemand wusste, warum|没有人知道这是为什么
in less than 20 minutes|in weniger als 20 Minuten|用了不到二十分钟; with a steady hand|mit ruhiger Hand|手一点也不抖
just in time|gerade noch rechtzeitig|刚好来得及; as if it were nothing|als wäre es nichts|好像这不算什么事
hoping for a reply|in der Hoffnung auf Antwort|希望能得到一个答复
"""
ODDITIES = {  # suspicious at a glance, and all of it in order
    "en": (
        "“It’s half past four – come in!”", "Version 2.10.4 fixed that.", "The family 👨‍👩‍👧 waved. 🏳️‍🌈",
        "Write <b> for bold text.", "If a < b and b > c, then stop…", "She had forgotten the password again.",
        "Ha ha ha ha!", "Its ISBN is 978-3-16-148410-0.", "No, no, no, no, not that one.",
        "The file is called notes_2024-05-17.txt.", "E = mc², naïve as it is.", "Order no. 10002934 came back.",
        "Salt & pepper cost €4.80 (2 for £7).", "See https://www.example.org/guide for more.",
        "It was -12 °C at 6′ depth.",
    ),
    "de": (
        "„Schon halb fünf – herein!“", "Die Fassung 2.10.4 hat das behoben.", "Die Familie 👨‍👩‍👧 winkte.",
        "Für fette Schrift schreibt man <b>.", "Nein, nein, nein, nicht das da.",
        "Das Passwort war wieder vergessen.", "Es kostet 4,80 € (2 für 7 €).", "Siehe Abb. 3 a, S. 117 ff.",
    ),
    "zh": (
        "“四点半了，快进来吧！”", "版本2.10.4已经解决了这个问题。", "哈哈哈哈哈！",
        "那一家人👨‍👩‍👧都在挥手。", "不，不，不，不是这个。", "她又忘记了密码……", "一共4.80元（两个7元）。",
        "《红楼梦》第十二回——我看了三遍。", "用 Python 写的 App，在 iPhone 上也能用。", "体温是36.5℃。",
    ),
}  # fmt: skip
OPINIONS = {
    "positive": ("I loved it", "It is worth the money", "We will gladly come again"),
    "negative": ("I want my money back", "It broke on the second day", "Never again", "The service was a disgrace"),
    "neutral": ("It does what it says", "Neither good nor bad", "It arrived on time", "I have no opinion on this yet"),
}
QUESTIONS = ("Can you tell me more?", "And what happened then?", "Why was that?", "Who told you so?", "Is that true?")

Said = dict[str, str]
Row = Any
"""A text, or a record of fields."""


def _lexicon(entries: str) -> list[tuple[str, ...]]:
    return [tuple(entry.strip().split("|")) for line in entries.strip().splitlines() for entry in line.split(";")]


PARTS = [_lexicon(entries) for entries in (TIMES, SUBJECTS, VERBS, OBJECTS, PLACES, TAILS)]


def sentence(random: Random) -> Said:
    """The same new sentence in each language."""
    drawn = [random.choice(part) for part in PARTS]
    english, german, chinese = ([entry[place] for entry in drawn] for place in range(3))
    return {
        "en": "{}, {} {} {} {}, {}.".format(*english),
        "de": "{0} {2} {1} {3} {4}, {5}.".format(*german),
        "zh": "{0}，{1}{4}{2}{3}，{5}。".format(*chinese),
    }


def prose(random: Random, language: str, sentences: int, oddities: float = 0.15) -> str:
    """Some sentences one after the other, now and then an odd one among them."""
    said = [sentence(random)[language] for _ in range(sentences)]
    if random.random() < oddities:
        said.insert(random.randrange(len(said) + 1), random.choice(ODDITIES[language]))
    return ("" if language == "zh" else " ").join(said)


def _text(language: str) -> Callable[[Random], Row]:
    return lambda random: prose(random, language, random.randint(3, 9))


def _lines(random: Random) -> Row:
    """A document of several lines, as in letters and verse."""
    return "\n".join(prose(random, "en", 1) for _ in range(random.randint(2, 6)))


def _record(language: str) -> Callable[[Random], Row]:
    return lambda random: {"text": prose(random, language, random.randint(3, 9)), "origin": random.choice("abc")}


def _pair(language: str) -> Callable[[Random], Row]:
    def draw(random: Random) -> Row:
        said = [sentence(random) for _ in range(random.randint(1, 3))]
        gap = "" if language == "zh" else " "
        return {"source": " ".join(s["en"] for s in said), "target": gap.join(s[language] for s in said)}

    return draw


def _summary(random: Random) -> Row:
    said = [sentence(random)["en"] for _ in range(random.randint(4, 8))]
    return {"document": " ".join(said), "summary": said[0].split(", ")[1].capitalize()}


def _answer(random: Random) -> Row:
    said = sentence(random)["en"]
    return {"prompt": f"{random.choice(QUESTIONS)} {said}", "completion": prose(random, "en", random.randint(1, 3))}


def _labelled(random: Random) -> Row:
    label = random.choice(list(OPINIONS))
    return {"text": f"{prose(random, 'en', random.randint(1, 2))} {random.choice(OPINIONS[label])}.", "label": label}


def _chat(random: Random) -> Row:
    messages = [{"role": "system", "content": "You answer in full sentences."}] if random.random() < 0.3 else []
    for _ in range(random.randint(1, 3)):
        question = f"{sentence(random)['en']} {random.choice(QUESTIONS)}"
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": prose(random, "en", random.randint(1, 3))})
    return {"messages": messages}


@dataclass(frozen=True)
class Form:
    """What kind of data set it is."""

    suffix: str
    draw: Callable[[Random], Row]
    field: str = ""
    """The field that text defects go into; empty where a row is a text or a chat."""


FORMS = {
    "english": Form(".txt", _text("en")),
    "letters": Form(".txt", _lines),
    "german": Form(".txt", _text("de")),
    "chinese": Form(".txt", _text("zh")),
    "markdown": Form(".md", _text("en")),
    "english rows": Form(".jsonl", _record("en"), "text"),
    "german rows": Form(".jsonl", _record("de"), "text"),
    "chinese rows": Form(".jsonl", _record("zh"), "text"),
    "english table": Form(".csv", _record("en"), "text"),
    "chinese pairs": Form(".jsonl", _pair("zh"), "target"),
    "german pairs": Form(".jsonl", _pair("de"), "target"),
    "table of pairs": Form(".csv", _pair("de"), "target"),
    "summaries": Form(".jsonl", _summary, "document"),
    "answers": Form(".jsonl", _answer, "completion"),
    "labels": Form(".jsonl", _labelled, "text"),
    "table of labels": Form(".csv", _labelled, "text"),
    "chats": Form(".jsonl", _chat),
}


def draw_files(form: Form, seed: int) -> dict[str, list[Row]]:
    """Two files to train on, one of them compressed, and one to measure on; no two rows are the same."""
    random = Random(seed)
    sizes = {"train/one": random.randint(50, 90), "train/two": random.randint(50, 90), "valid/valid": 30}
    names = {place: place + form.suffix + (".gz" if place == "train/two" else "") for place in sizes}
    return {names[place]: [form.draw(random) for _ in range(size)] for place, size in sizes.items()}


def as_chunks(name: str, rows: list[Row]) -> list[bytes]:
    """The bytes of each row in a file of this name, and before them those of the header, which may be none."""
    if ".jsonl" in name:
        return [b"", *(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)]
    if ".csv" in name:
        return [_csv_line(list(rows[0])), *(_csv_line(list(row.values())) for row in rows)]
    return [b"", *(row.encode() + b"\n\n" for row in rows)]


def _csv_line(cells: list[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()
