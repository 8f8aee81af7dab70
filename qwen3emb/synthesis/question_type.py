"""Whether a written query is of the type that was asked for, as far as its form tells.

English is looked at closely. Elsewhere only what is certain counts: a question mark, a first word.
"""

from __future__ import annotations

import re

__all__ = ["wrong_type"]

_QUESTION_MARKS = "?？؟\u037e"
_CLOSING = " \"'’”»)]}"
_AUXILIARIES = {
    *("am", "is", "are", "was", "were"),
    *("do", "does", "did", "have", "has", "had", "will", "would", "shall", "should", "can", "could", "may", "might"),
    *("must", "cannot", "isn't", "aren't", "wasn't", "weren't", "don't", "doesn't", "didn't", "haven't", "hasn't"),
    *("hadn't", "won't", "wouldn't", "shouldn't", "can't", "couldn't", "mightn't", "mustn't"),
}
_ASKING = {"how", "what", "why", "when", "where", "who", "whom", "whose", "which"}
_NEVER_CLAUSES = _ASKING - {"when", "where"}
_CONTRACTED = re.compile(r"(how|what|why|when|where|who)('s|'re|'d|'ll)")
_SUBJECTS = {
    *("i", "you", "he", "she", "it", "we", "they", "one", "there", "anyone", "someone"),
    *("the", "a", "an", "this", "that", "these", "those", "my", "your", "his", "her", "its", "our", "their"),
}
_OPENINGS = {*("so", "and", "but", "or", "then", "also", "well", "ok", "okay", "hi", "hello", "hey", "please")}
_PREPOSITIONS = {"in", "on", "at", "for", "to", "from", "by", "with", "of", "about", "under", "since", "until"}
_AFTER_HOW = {"to", "much", "many", "long", "often", "far"}
_ELLIPTIC = re.compile(r"(whether|possible to|any way to|ok to|okay to|safe to|worth|true that)\b")
_INDIRECT = re.compile(r"\b(if|whether)\b")
_TELLING = re.compile(r"(i|we|you) (am|are|was|were|want|need|have|would|like|wonder)\b|i'm |i'd |tell me |give me ")
_REQUESTS = re.compile(
    r"\b(explain|explanation|describe|tell|show|teach|learn|understand|know|guide|tutorial|introduction|steps?|ways?"
    r"|methods?|meaning|definition|difference|instructions?|example|help|need|want|looking)\b"
)
_WORD = re.compile(r"[\w'.-]*\w")
_CLAUSE_ENDS = re.compile(r"[,;:–—?!]| - |\. ")
_LAST_WORD = re.compile(r"[^\W\d_]{4,}[.!]$")  # not "v1.", "z.B." or "etc."

# First words of a question that yes or no does not answer; words that also begin a clause ("quand") are not among them.
_ASKING_ELSEWHERE = {
    "de": r"(wie|was|warum|wieso|weshalb|wo|wer|wen|wem|wessen|wann|woher|wohin|wofür|wodurch|welche[rsmn]?)\b",
    "fr": r"(pourquoi|comment|combien|quel(le)?s?|qu'est-ce|qui est-ce|où)\b",
    "es": r"(cómo|qué|por qué|cuándo|dónde|cuál(es)?|quién(es)?|cuánt[oa]s?)\b",
    "zh": r"(为什么|什么|怎么|怎样|如何|谁|多少)",
}
_CHINESE_YES_NO = re.compile("[吗否]|(.)不\\1|有没有")


def wrong_type(query: str, question_type: str, language: str) -> str | None:
    """Why a query is not of a type, in a few words; None where it is, or where its form does not tell.

    `keywords` must be no question and no sentence, `yes_or_no` a question that yes or no can answer (known for English,
    German, French, Spanish and Chinese), `acquire_knowledge` must ask or request something (English only). Nothing is
    said about the other types: no form of words belongs to them.

    Args:
        query: as written.
        question_type: one of `tasks.retrieval.QUESTION_TYPES`.
        language: code of the language that was asked for.
    """
    text = query.replace("’", "'").strip(_CLOSING + "¿“«([{").lower()
    english = language.partition("-")[0] == "en"
    if question_type == "keywords":
        return _no_keywords(text, english)
    if question_type == "yes_or_no":
        return _no_yes_or_no(text, english, language.partition("-")[0])
    if question_type == "acquire_knowledge" and english:
        words = set(_WORD.findall(text))
        asks = _is_question(text) or words & _ASKING or _CONTRACTED.search(text) or _REQUESTS.search(text)
        return None if asks else "it asks nothing"
    return None


def _is_question(text: str) -> bool:
    return text.endswith(tuple(_QUESTION_MARKS))


def _no_keywords(text: str, english: bool) -> str | None:
    if _is_question(text):
        return "keywords do not end in a question mark"
    if text.endswith("。") or (len(text.split()) >= 5 and _LAST_WORD.search(text)):
        return "keywords are no sentence"
    if not english:
        return None
    first = _clauses(text)[0]
    if _is_asking(first) or (first[0] in _AUXILIARIES and first[1:2] and first[1] in _SUBJECTS):
        return "keywords are no question"
    return "keywords are no sentence" if _TELLING.match(text) else None


def _no_yes_or_no(text: str, english: bool, language: str) -> str | None:
    if not english:
        found = re.match(_ASKING_ELSEWHERE.get(language, "(?!)"), text)
        answerable = language == "zh" and _CHINESE_YES_NO.search(text)
        return f"{found[0]!r} is not answered by yes or no" if found and not answerable else None
    clauses = _clauses(text)
    if any(clause[0] in _AUXILIARIES for clause in clauses) or _ELLIPTIC.match(text):
        return None
    asking = next((c for c in clauses if _is_asking(c) or (c[0] in _NEVER_CLAUSES and _is_question(text))), None)
    if asking:
        return f"{' '.join(asking[:3])!r} is not answered by yes or no"
    return None if _is_question(text) or _INDIRECT.search(text) else "it is no question"


def _clauses(text: str) -> list[list[str]]:
    """The words of each clause, without what only opens it; at least one clause with a word."""
    found = []
    for part in _CLAUSE_ENDS.split(text):
        words = _WORD.findall(part)
        while len(words) > 1 and words[0] in _OPENINGS:
            words = words[1:]
        if words:
            found.append(words)
    return found or [[""]]


def _is_asking(words: list[str]) -> bool:
    """Whether a clause begins as a question of its own, "how do I", "in which year"; not "where clause"."""
    start = words[1:] if words[0] in _PREPOSITIONS and words[1:2] and words[1] in _ASKING else words
    if _CONTRACTED.fullmatch(start[0]):
        return True
    if start[0] not in _ASKING:
        return False
    after = start[1] if len(start) > 1 else ""
    return len(start) < len(words) or after in _AUXILIARIES | _SUBJECTS | _AFTER_HOW
