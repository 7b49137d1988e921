"""Parsers of JSON, XML and YAML that say at which line a file is wrong.

They are for files of strangers. A key that is there twice is refused everywhere. JSON of a million
entries is read entry by entry, and only one is held as Python objects at a time. XML must not
declare a document type, and so has no entities. YAML gives plain values only, without aliases.
"""

import collections
import dataclasses
import json
import re
import xml.parsers.expat
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

_MAX_DEPTH = 50  # of XML and YAML
_BLANK = re.compile(r"[ \t\n\r]*")
# The reader in C where PyYAML has it: the same grammar, ten times quicker.
_YamlBase: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class ParseError(ValueError):
    """Text that is not in the expected form.

    Attributes:
        line: where, counted from 1; 0: unknown.
        what, value: what is wrong there; value may be "".
    """

    def __init__(self, line: int, what: str, value: str = "") -> None:
        super().__init__(f"line {line}: {what}" + (f" ({value})" if value else ""))
        self.line, self.what, self.value = line, what, value


def stream_lists(text: str, names: tuple[str, ...]) -> Iterator[tuple[str, int, int, object]]:
    """Yields (name, position in the list, line, value) of the entries of some top-level lists.

    An empty list yields (name, -1, line, None) once.

    Raises:
        ParseError: if the text is no JSON or no object, a key is there twice, or a named member is
            no list.
    """
    return _Stream(text, names).entries()


class _Stream:
    """A JSON text, and how far it is read."""

    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        self._text, self._names = text, names
        self._decoder = json.JSONDecoder(object_pairs_hook=_without_repeats)
        self._at = 0  # characters read
        self._counted, self._line = 0, 1  # lines counted so far

    def entries(self) -> Iterator[tuple[str, int, int, object]]:
        """Yields the entries as `stream_lists`."""
        seen: set[str] = set()
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
        """Returns the next character that is no blank, "" at the end."""
        blank = _BLANK.match(self._text, self._at)
        self._at = blank.end() if blank else self._at
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

    def _error(self, what: str, value: str) -> ParseError:
        return ParseError(self._text.count("\n", 0, self._at) + 1, what, value)


class _RepeatedKey(Exception):
    """A key that an object has twice."""


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(next(key for key in keys if keys.count(key) > 1))
    return members


@dataclasses.dataclass
class Node:
    """An element: its tag, line, text (outer blanks removed) and the elements inside it."""

    tag: str
    line: int
    text: str = ""
    children: list["Node"] = dataclasses.field(default_factory=list)

    def all(self, tag: str) -> list["Node"]:
        """Returns the elements directly inside with that tag."""
        return [child for child in self.children if child.tag == tag]

    def value(self, *tags: str) -> str | None:
        """Returns the text at the end of a path of tags, None where there is none."""
        node = self
        for tag in tags:
            found = node.all(tag)
            if not found:
                return None
            node = found[0]
        return node.text


def parse_xml(content: bytes) -> Node:
    """Parses a document and returns its outermost element.

    Raises:
        ParseError: if it is not well formed, declares a document type, or is nested too deeply.
    """
    parser = xml.parsers.expat.ParserCreate()
    stack = [Node("", 0)]

    def start(tag: str, _attributes: dict[str, str]) -> None:
        if len(stack) > _MAX_DEPTH:
            raise ParseError(parser.CurrentLineNumber, f"nested more than {_MAX_DEPTH} deep")
        node = Node(tag, parser.CurrentLineNumber)
        stack[-1].children.append(node)
        stack.append(node)

    def end(_tag: str) -> None:
        node = stack.pop()
        node.text = node.text.strip()

    def text(data: str) -> None:
        # Elements that hold others have blanks only, line by line.
        if not stack[-1].children:
            stack[-1].text += data

    def document_type(*_arguments: object) -> None:
        raise ParseError(parser.CurrentLineNumber, "it declares a document type (<!DOCTYPE ...>)")

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = document_type
    try:
        parser.Parse(content, True)
    except xml.parsers.expat.ExpatError as error:
        raise ParseError(error.lineno, xml.parsers.expat.ErrorString(error.code)) from None
    except (LookupError, ValueError) as error:  # an encoding that Python lacks, or expat cannot use
        if isinstance(error, ParseError):
            raise
        raise ParseError(1, str(error)) from None
    return stack[0].children[0]


class _YamlLoader(_YamlBase):
    """PyYAML's safe loader, which refuses keys that are there twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Returns the mapping of a node."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice, _ = collections.Counter(keys).most_common(1)[0]
            raise ParseError(node.start_mark.line + 1, f"the key is there twice: {twice}")
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str) -> dict[Any, Any]:
    """Parses a document and returns its mapping.

    Raises:
        ParseError: if it is not well formed, no mapping, or more than plain values.
    """
    try:
        _check_yaml_events(text)
        data = yaml.load(text, Loader=_YamlLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ParseError(mark.line + 1 if mark else 0, what) from None
    except (ValueError, OverflowError) as error:  # such as a date that is none
        if isinstance(error, ParseError):
            raise
        raise ParseError(0, str(error)) from None
    if not isinstance(data, dict):
        raise ParseError(1, "it holds no mapping of keys to values")
    return data


def _check_yaml_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_YamlBase):
        if isinstance(event, yaml.AliasEvent):
            raise ParseError(event.start_mark.line + 1, "aliases (*name) are not read")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ParseError(event.start_mark.line + 1, f"nested more than {_MAX_DEPTH} deep")
