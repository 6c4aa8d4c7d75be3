"""Search expressions over models: `psnr_db > 30 and decode_ms < 5`, `tag = small or not kind = baseline`, or just words.

    or    := and { "or" and }
    and   := not { ["and"] not }            words side by side must all fit
    not   := "not" not | "(" or ")" | test | word
    test  := name (> >= < <= = !=) value    a figure with a number (`3M`, `50%`, `1e-3`), or a text field with a word
    word  := looked for in name, id, kind, method, note, tags and aliases, whatever the case; "in quotes" with spaces

A figure that a model does not have fits no test of it. Nothing is evaluated as Python.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from core.errors import CoreError

TEXT_FIELDS = ("name", "id", "kind", "method", "note", "tag", "alias", "created")
_SCALES = {"%": 0.01, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "": 1.0}
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)([%kKMG]?)")
_TOKEN = re.compile(r'\s*(?:(?P<op>>=|<=|!=|==|=|>|<)|(?P<bracket>[()])|"(?P<quoted>[^"]*)"|(?P<word>[^\s()<>=!"]+))')
_EXAMPLE = "such as psnr_db > 30 and decode_ms < 5, tag = small, or just words"


@dataclass(frozen=True)
class Subject:
    """What an expression is asked about: the words of a model by field, and its figures by key."""

    words: Mapping[str, Sequence[str]]
    figures: Mapping[str, float]


Test = Callable[[Subject], bool]


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


def parse(text: str, figures: Sequence[str]) -> Test:
    """The test that an expression stands for; empty text fits all. Raises CoreError(bad_search) that names what is wrong, and where."""
    tokens = _tokens(text)
    if not tokens:
        return lambda _: True
    return _Parser(text, tokens, figures).whole()


def _tokens(text: str) -> list[_Token]:
    tokens, at = [], 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if found is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            what = "a quotation mark is not closed" if text[at] == '"' else f"{text[at]!r} is no sign of an expression"
            raise _wrong(text, at, what)
        kind = str(found.lastgroup)
        tokens.append(_Token(kind, found[kind], found.start(kind)))
        at = found.end()
    return tokens


def _wrong(text: str, at: int, what: str, *, legal: object = None, next: str | None = None) -> CoreError:
    return CoreError(
        f"The search cannot be read: {what} (at character {at + 1}).",
        code="bad_search",
        given=text,
        legal=legal if legal is not None else _EXAMPLE,
        next=next,
    )


class _Parser:
    def __init__(self, text: str, tokens: list[_Token], figures: Sequence[str]) -> None:
        self.text, self.tokens, self.figures, self.place = text, tokens, sorted(figures), 0

    def whole(self) -> Test:
        test = self._any()
        if self._here() is not None:
            token = self.tokens[self.place]
            raise _wrong(self.text, token.at, f"{token.text!r} is not expected here")
        return test

    def _here(self, ahead: int = 0) -> _Token | None:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else None

    def _is(self, word: str) -> bool:
        token = self._here()
        return token is not None and token.kind in ("word", "bracket") and token.text.lower() == word

    def _any(self) -> Test:
        tests = [self._all()]
        while self._is("or"):
            self.place += 1
            tests.append(self._all())
        return tests[0] if len(tests) == 1 else lambda s: any(test(s) for test in tests)

    def _all(self) -> Test:
        tests = [self._not()]
        while self._here() is not None and not self._is("or") and not self._is(")"):
            if self._is("and"):
                self.place += 1
            tests.append(self._not())
        return tests[0] if len(tests) == 1 else lambda s: all(test(s) for test in tests)

    def _not(self) -> Test:
        token = self._here()
        if token is None or (token.kind == "word" and token.text.lower() in ("and", "or")) or token.text == ")":
            at = token.at if token is not None else len(self.text)
            raise _wrong(self.text, at, "something is missing")
        if self._is("not"):
            self.place += 1
            inner = self._not()
            return lambda s: not inner(s)
        if token.kind == "bracket":
            self.place += 1
            inner = self._any()
            if not self._is(")"):
                raise _wrong(self.text, token.at, "a bracket is not closed")
            self.place += 1
            return inner
        if token.kind == "op":
            raise _wrong(self.text, token.at, f"{token.text!r} stands without a name before it")
        after = self._here(1)
        if token.kind == "word" and after is not None and after.kind == "op":
            return self._test(token, after)
        self.place += 1
        return _contains(token.text)

    def _test(self, name: _Token, sign: _Token) -> Test:
        value = self._here(2)
        if value is None or value.kind not in ("word", "quoted"):
            raise _wrong(self.text, sign.at, f"there is no value after {name.text} {sign.text}")
        self.place += 3
        if name.text in TEXT_FIELDS:
            return self._of_text(name.text, sign, value.text)
        if name.text not in self.figures:
            known = [*self.figures, *TEXT_FIELDS]
            near = difflib.get_close_matches(name.text, known, n=2, cutoff=0.5)
            raise _wrong(
                self.text, name.at, f"there is no figure {name.text!r}", legal=known,
                next=f"Did you mean {' or '.join(near)}?" if near else None,
            )  # fmt: skip
        number = _NUMBER.fullmatch(value.text)
        if number is None:
            raise _wrong(self.text, value.at, f"{value.text!r} is no number", legal="numbers such as 30, 1e-3, 3M or 50%")
        return _compares(name.text, sign.text, float(number[1]) * _SCALES[number[2]])

    def _of_text(self, field: str, sign: _Token, value: str) -> Test:
        wanted = value.lower()
        if sign.text in ("=", "=="):
            return lambda s: any(word.lower() == wanted for word in s.words.get(field, ()))
        if sign.text == "!=":
            return lambda s: all(word.lower() != wanted for word in s.words.get(field, ()))
        if field != "created":
            raise _wrong(self.text, sign.at, f"{field} is a text", legal=f"{field} = word, or {field} != word")
        later = sign.text[0] == ">"
        equal = len(sign.text) == 2
        # ISO times compare as text; a date stands for its beginning.
        return lambda s: any(
            (word[: len(value)] == value and equal) or (word > value and later and word[: len(value)] != value)
            or (word < value and not later)
            for word in s.words.get(field, ())
        )  # fmt: skip


def _contains(word: str) -> Test:
    wanted = word.lower()
    return lambda s: any(wanted in text.lower() for field, texts in s.words.items() if field != "created" for text in texts)


def _compares(name: str, sign: str, bound: float) -> Test:
    def close(value: float) -> bool:
        return abs(value - bound) <= 1e-9 * max(1.0, abs(bound))

    tests: dict[str, Callable[[float], bool]] = {
        ">": lambda v: v > bound,
        ">=": lambda v: v >= bound,
        "<": lambda v: v < bound,
        "<=": lambda v: v <= bound,
        "=": close,
        "==": close,
        "!=": lambda v: not close(v),
    }
    test = tests[sign]

    def fits(subject: Subject) -> bool:
        value = subject.figures.get(name)
        return value is not None and test(value)

    return fits
