"""Names of languages, as instructions say them."""

from __future__ import annotations

from bimo.core.errors import UserError, nearest

LANGUAGES = {
    **{"ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish"},
    **{"de": "German", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian"},
    **{"fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian"},
    **{"id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian"},
    **{"ms": "Malay", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian"},
    **{"ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "ta": "Tamil"},
    **{"th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese"},
}


def language_code(text: str) -> str:
    """The code of a language that was given by its code or its English name.

    Raises:
        UserError: It is neither.
    """
    word = text.strip().lower().replace("_", "-").partition("-")[0]
    by_name = {name.lower(): code for code, name in LANGUAGES.items()}
    code = word if word in LANGUAGES else by_name.get(text.strip().lower())
    if code is None:
        known = [*LANGUAGES, *LANGUAGES.values()]
        raise UserError(f"{text!r} is no language that is known{nearest(text, known)}", mend="Give a code such as de.")
    return code
