"""Language codes: ISO 639-1, three-letter ISO 639-3, with optional script and region (BCP 47)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from qwen3emb.core.errors import UserError

__all__ = ["LANGUAGES", "UNDETERMINED", "check_language", "identified", "language_identifier"]

UNDETERMINED = "und"

_TABLE = """
aa Afar|ab Abkhazian|ae Avestan|af Afrikaans|ak Akan|am Amharic|an Aragonese|ar Arabic|as Assamese|av Avaric
ay Aymara|az Azerbaijani|ba Bashkir|be Belarusian|bg Bulgarian|bi Bislama|bm Bambara|bn Bengali|bo Tibetan
br Breton|bs Bosnian|ca Catalan|ce Chechen|ch Chamorro|co Corsican|cr Cree|cs Czech|cu Church Slavic
cv Chuvash|cy Welsh|da Danish|de German|dv Divehi|dz Dzongkha|ee Ewe|el Greek|en English|eo Esperanto
es Spanish|et Estonian|eu Basque|fa Persian|ff Fulah|fi Finnish|fj Fijian|fo Faroese|fr French
fy Western Frisian|ga Irish|gd Gaelic|gl Galician|gn Guarani|gu Gujarati|gv Manx|ha Hausa|he Hebrew|hi Hindi
ho Hiri Motu|hr Croatian|ht Haitian|hu Hungarian|hy Armenian|hz Herero|ia Interlingua|id Indonesian
ie Interlingue|ig Igbo|ii Sichuan Yi|ik Inupiaq|io Ido|is Icelandic|it Italian|iu Inuktitut|ja Japanese
jv Javanese|ka Georgian|kg Kongo|ki Kikuyu|kj Kuanyama|kk Kazakh|kl Kalaallisut|km Khmer|kn Kannada|ko Korean
kr Kanuri|ks Kashmiri|ku Kurdish|kv Komi|kw Cornish|ky Kyrgyz|la Latin|lb Luxembourgish|lg Ganda|li Limburgish
ln Lingala|lo Lao|lt Lithuanian|lu Luba-Katanga|lv Latvian|mg Malagasy|mh Marshallese|mi Maori|mk Macedonian
ml Malayalam|mn Mongolian|mr Marathi|ms Malay|mt Maltese|my Burmese|na Nauru|nb Norwegian Bokmal
nd North Ndebele|ne Nepali|ng Ndonga|nl Dutch|nn Norwegian Nynorsk|no Norwegian|nr South Ndebele|nv Navajo
ny Chichewa|oc Occitan|oj Ojibwa|om Oromo|or Oriya|os Ossetian|pa Punjabi|pi Pali|pl Polish|ps Pashto
pt Portuguese|qu Quechua|rm Romansh|rn Rundi|ro Romanian|ru Russian|rw Kinyarwanda|sa Sanskrit|sc Sardinian
sd Sindhi|se Northern Sami|sg Sango|sh Serbo-Croatian|si Sinhala|sk Slovak|sl Slovenian|sm Samoan|sn Shona
so Somali|sq Albanian|sr Serbian|ss Swati|st Southern Sotho|su Sundanese|sv Swedish|sw Swahili|ta Tamil
te Telugu|tg Tajik|th Thai|ti Tigrinya|tk Turkmen|tl Tagalog|tn Tswana|to Tonga|tr Turkish|ts Tsonga|tt Tatar
tw Twi|ty Tahitian|ug Uighur|uk Ukrainian|ur Urdu|uz Uzbek|ve Venda|vi Vietnamese|vo Volapuk|wa Walloon
wo Wolof|xh Xhosa|yi Yiddish|yo Yoruba|za Zhuang|zh Chinese|zu Zulu|yue Cantonese|fil Filipino|ceb Cebuano
"""


def _parse_table(table: str) -> dict[str, str]:
    entries = table.strip().replace("\n", "|").split("|")
    return dict(entry.split(" ", 1) for entry in entries)


LANGUAGES: dict[str, str] = _parse_table(_TABLE)
"""Code to English name: all of ISO 639-1 and three frequent codes without a two-letter form."""

_CODE = re.compile(
    r"(?P<language>[a-z]{2,3})(?:-(?P<script>[a-z]{4}))?(?:-(?P<region>[a-z]{2}|[0-9]{3}))?", re.IGNORECASE
)


def check_language(code: str | None) -> str:
    """The canonical spelling of a language code ("en", "zh-Hans", "pt-BR"); None becomes "und".

    Two-letter codes must be in ISO 639-1; three-letter ones (ISO 639-3) are taken by their form.
    Raises UserError for anything else, with the nearest known code.
    """
    if code is None:
        return UNDETERMINED
    match = _CODE.fullmatch(code)
    language = match["language"].lower() if match else ""
    if match is None or (len(language) == 2 and language not in LANGUAGES):
        raise UserError(
            f"unknown language {code!r}; use {_nearest(code)}, another code such as "
            f'"en" or "zh-Hans", or "{UNDETERMINED}" where it is not known.'
        )
    script, region = match["script"], match["region"]
    parts = (language, script.title() if script else None, region.upper() if region else None)
    return "-".join(part for part in parts if part)


def _nearest(code: str) -> str:
    """The known code, or the language of that name, closest to what was written, quoted with its name."""
    head, *rest = re.split(r"[-_]", code.strip())
    spelled = "-".join([head.lower(), *rest])
    match = _CODE.fullmatch(spelled)
    if match is not None and match["language"] in LANGUAGES:
        return f'"{check_language(spelled)}"'
    by_name = {name.lower(): known for known, name in LANGUAGES.items()}
    names = difflib.get_close_matches(code.lower(), by_name, n=1, cutoff=0.75)
    codes = difflib.get_close_matches(head.lower(), LANGUAGES, n=1, cutoff=0.0)
    nearest = by_name[names[0]] if names else codes[0]
    return f'"{nearest}" ({LANGUAGES[nearest]})'


@lru_cache(maxsize=1)
def language_identifier() -> Any:
    """`.classify(text)` gives (code, probability), `.labels` the codes that it knows; loaded once in a process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identified(texts: Sequence[str], sure: float) -> list[str]:
    """The code of each text's language, `und` where the probability is below `sure`."""
    guesses = (language_identifier().classify(text) for text in texts)
    return [code if float(probability) >= sure else UNDETERMINED for code, probability in guesses]
