"""Lengths of texts in tokens: distributions, and the mean that is left of them under a limit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Lengths", "LogNormal", "Uniform", "text_tokens", "written_words"]

_CONTROL = re.compile(r"<\|\w+\|>")


class Lengths(Protocol):
    """How long the texts of one kind are."""

    @property
    def longest(self) -> float:
        """Tokens that no text has more of; infinite where there is no such number."""
        ...

    def capped(self, limit: float) -> float:
        """Mean length of texts that lose what is beyond `limit` tokens."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Any length between two alike; one length where they are equal."""

    low: float
    high: float

    @property
    def longest(self) -> float:
        """The upper end."""
        return self.high

    def capped(self, limit: float) -> float:
        """Mean length of texts that lose what is beyond `limit` tokens."""
        if limit >= self.high:
            return (self.low + self.high) / 2
        if limit <= self.low:
            return limit
        below = (limit**2 - self.low**2) / 2
        return (below + limit * (self.high - limit)) / (self.high - self.low)


@dataclass(frozen=True)
class LogNormal:
    """Lengths whose logarithms are normal, around `median` with the standard deviation `spread`."""

    median: float
    spread: float

    @property
    def longest(self) -> float:
        """There is none."""
        return math.inf

    @classmethod
    def of_mean(cls, mean: float, spread: float) -> LogNormal:
        """The one with this mean."""
        return cls(mean / math.exp(spread**2 / 2), spread)

    def capped(self, limit: float) -> float:
        """Mean length of texts that lose what is beyond `limit` tokens."""
        if limit <= 0:
            return 0.0
        place = math.log(limit / self.median)
        mean = self.median * math.exp(self.spread**2 / 2)
        shorter = mean * _normal((place - self.spread**2) / self.spread)
        return shorter + limit * (1 - _normal(place / self.spread))


def _normal(x: float) -> float:
    """The cumulative distribution of the standard normal."""
    return (1 + math.erf(x / math.sqrt(2))) / 2


def text_tokens(text: str, characters_per_token: float) -> float:
    """About how many tokens an English text has; a control token is one."""
    plain = _CONTROL.sub("", text)
    return len(_CONTROL.findall(text)) + len(plain) / characters_per_token


def written_words(words: dict[str, float]) -> float:
    """Mean words of written queries: the upper ends of the ranges that are asked for, where generators write."""
    total = sum(words.values())
    return sum(weight * float(key.rpartition("-")[2]) for key, weight in words.items()) / total
