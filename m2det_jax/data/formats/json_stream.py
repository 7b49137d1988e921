"""JSON files of a million entries, entry by entry: only one is held as Python objects at a time."""

import json
import re
from collections.abc import Iterator

_BLANK = re.compile(r"[ \t\n\r]*")


class JsonError(ValueError):
    """Text that is no JSON object of the expected form.

    Attributes:
        line: where, from 1.
        what, value: what is wrong there.
    """

    def __init__(self, line: int, what: str, value: str = "") -> None:
        super().__init__(f"line {line}: {what} ({value})")
        self.line, self.what, self.value = line, what, value


def stream_lists(text: str, names: tuple[str, ...]) -> Iterator[tuple[str, int, int, object]]:
    """Yields (name, position in the list, line, value) of the entries of some top-level lists.

    An empty list yields (name, -1, line, None) once.

    Raises:
        JsonError: the text is no JSON, no object, has a key twice, or a named member is no list.
    """
    return _Stream(text, names).entries()


class _Stream:
    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        self._text, self._names = text, names
        self._decoder = json.JSONDecoder(object_pairs_hook=_without_repeats)
        self._at = 0  # characters read
        self._counted, self._line = 0, 1  # lines counted so far

    def entries(self) -> Iterator[tuple[str, int, int, object]]:
        seen = set()
        if self._peek() != "{":
            kind = {"[": "a list", "": "nothing"}.get(self._peek(), "a single value")
            raise self._error("the file holds no JSON object", kind)
        self._at += 1
        while self._peek() != "}" or not seen:
            if self._peek() == "}":
                break
            if seen:
                self._expect(",")
            key = self._value()
            if not isinstance(key, str):
                raise self._error("a key is not text", str(key)[:50])
            if key in seen:
                raise self._error("the key is there twice", key)
            seen.add(key)
            self._expect(":")
            if key in self._names:
                yield from self._list(key)
            else:
                self._value()
        self._at += 1
        if self._peek():
            raise self._error("something follows the end of the JSON object", self._peek())

    def _list(self, name: str) -> Iterator[tuple[str, int, int, object]]:
        if self._peek() != "[":
            raise self._error(f'"{name}" is not a list', str(self._value())[:50])
        self._at += 1
        if self._peek() == "]":
            yield name, -1, self._line_here(), None
        position = 0
        while self._peek() != "]":
            if position:
                self._expect(",")
            self._peek()
            line = self._line_here()
            yield name, position, line, self._value()
            position += 1
        self._at += 1

    def _peek(self) -> str:
        """Skips blanks; returns the character that follows, "" at the end."""
        self._at = _BLANK.match(self._text, self._at).end()
        return self._text[self._at : self._at + 1]

    def _expect(self, character: str) -> None:
        found = self._peek()
        if found != character:
            raise self._error(f"not valid JSON, {character!r} expected", found or "the end")
        self._at += 1

    def _value(self) -> object:
        self._peek()
        try:
            value, self._at = self._decoder.raw_decode(self._text, self._at)
        except _RepeatedKey as error:
            raise self._error("the key is there twice", str(error)) from None
        except json.JSONDecodeError as error:
            self._at = min(error.pos, len(self._text))
            raise self._error("not valid JSON", error.msg) from None
        except RecursionError:
            raise self._error("not usable JSON", "nested too deeply") from None
        except ValueError:
            raise self._error("not usable JSON", "a number of thousands of digits") from None
        return value

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _error(self, what: str, value: str) -> JsonError:
        return JsonError(self._text.count("\n", 0, self._at) + 1, what, value)


class _RepeatedKey(Exception):
    pass


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(next(key for key in keys if keys.count(key) > 1))
    return members
