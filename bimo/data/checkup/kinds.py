"""Every kind of finding: how bad it is, and how to mend it. The page docs/data.md explains each."""

from __future__ import annotations

from bimo.data.checkup.findings import Severity

KINDS: dict[str, tuple[Severity, str]] = {
    # files and rows
    "unreadable": ("error", "Copy the file again, or remove it."),
    "not read": ("note", "Convert them, if they belong to the data."),
    "empty file": ("warning", "Remove it, or copy it again."),
    "encoding": ("warning", "Convert it to UTF-8; --fix does."),
    "unknown encoding": ("error", "Convert it to UTF-8."),
    "bad bytes": ("error", "Repair these bytes; --fix leaves the row out."),
    "mixed encodings": ("error", "Convert this part to UTF-8; --fix leaves the row out."),
    "truncated": ("error", "Copy the file again; --fix keeps all before the cut."),
    "unfinished last line": ("note", "Look whether the end of the file is missing."),
    "broken row": ("error", "Write one record per line; --fix leaves the row out."),
    "line ends": ("warning", "Use line feeds alone; --fix does."),
    "duplicate key": ("error", "Keep one of them; --fix leaves the row out."),
    # fields
    "wrong field": ("error", "Rename or fill the field; --fix leaves the row out."),
    "empty": ("warning", "Fill it in, or remove the row; --fix does."),
    "further field": ("note", "Look whether its name is a slip."),
    "roles": ("error", "Order the turns; --fix leaves the row out."),
    "no answer at the end": ("note", "Add the answer, or remove the last message."),
    "label": ("error", "Correct the label."),
    "contradiction": ("error", "Decide on one label; --fix leaves out all after the first."),
    "untranslated": ("warning", "Translate it, or remove the row."),
    "copied": ("warning", "Write a real one, or remove the row."),
    "length ratio": ("warning", "Look whether the two sides belong together."),
    # lengths
    "too long": ("warning", "Look whether documents were joined by mistake."),
    "too short": ("warning", "Look whether the text is missing."),
    "long line": ("warning", "Look whether line ends were lost."),
    "cut by context": ("warning", "Raise context_length, or shorten the rows."),
    # repetition
    "duplicate": ("warning", "Keep one of them; --fix does."),
    "near duplicate": ("warning", "Keep the better one."),
    "leak": ("error", "Remove it from the training text; --fix does."),
    "near leak": ("warning", "Look at both, and remove it from the training text."),
    "boilerplate": ("warning", "Remove the line; --fix keeps it once."),
    "repetition": ("warning", "Shorten or remove the document; --fix keeps a repeated line once."),
    # characters
    "control character": ("error", "Remove it; --fix does."),
    "invisible character": ("warning", "Remove it; --fix does."),
    "byte order mark": ("warning", "Remove it; --fix does."),
    "bidirectional control": ("warning", "Remove it; --fix does."),
    "private use character": ("warning", "Replace it by a character that others know."),
    "replacement character": ("warning", "Take the text from its source again: a character was lost."),
    "lost characters": ("warning", "Take the text from its source again: question marks stand for letters."),
    "mojibake": ("warning", "Decode the source again; --fix repairs what is certain."),
    "look-alike letters": ("warning", "Write the word in one script."),
    "not normalised": ("note", "Normalise it to NFC; --fix does."),
    # content
    "language": ("warning", "Look whether it belongs here."),
    "html": ("warning", "Remove the mark-up, if it is not meant."),
    "html mention": ("note", "Nothing, if the text is about it."),
    "entity": ("warning", "Replace it by its character, if it is not meant."),
    "entity mention": ("note", "Nothing, if the text is about it."),
    "escapes": ("warning", "Undo the escaping: the text was written as JSON twice."),
    "letters apart": ("warning", "Join the letters of each word: the text was recognised from a picture."),
    "no words": ("note", "Look whether it is a text."),
    "control token": ("warning", "Remove it: models read it as a command."),
    "encoded data": ("warning", "Remove it: it is no language."),
    "minified code": ("warning", "Remove it, or take the source before it was minified."),
    "placeholder": ("warning", "Replace it by real text, or remove it."),
    "tokens per byte": ("warning", "Train a tokenizer on this text, or take one that knows the script."),
    # privacy
    "personal data": ("warning", "Remove it, or mask it with --fix FOLDER --mask_personal_data true."),
    "IP address": ("note", "Remove it, if it belongs to somebody."),
    "possible secret": ("warning", "Look whether it is one; --fix FOLDER --mask_personal_data true masks it."),
    "secret": ("error", "Withdraw it, then remove it; --fix FOLDER --mask_personal_data true masks it."),
}


def excerpt(text: str, start: int, end: int = -1, around: int = 16) -> str:
    """A place in a text with a little of what is around it, on one line and quoted, for a sentence."""
    end = start + 1 if end < 0 else end
    left, right = max(0, start - around), min(len(text), end + around)
    piece = text[left : min(right, start + 60)]
    shown = " ".join(piece.split())
    return ascii_safe(f"'{'…' if left else ''}{shown}{'…' if right < len(text) or right > start + 60 else ''}'")


def ascii_safe(text: str) -> str:
    """The text with everything that a terminal would not show written as an escape."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
