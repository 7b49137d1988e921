"""Small XML files as trees with line numbers; a document type, and so any entity, is refused."""

import dataclasses
import xml.parsers.expat

_MAX_DEPTH = 50


class XmlError(ValueError):
    """Text that is no XML that is read here.

    Attributes:
        line: where, from 1; 0: unknown.
        what: what is wrong there.
    """

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line, self.what = line, what


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
            node = next((child for child in node.children if child.tag == tag), None)
            if node is None:
                return None
        return node.text


def parse_xml(content: bytes) -> Node:
    """Parses a document and returns its outermost element.

    Raises:
        XmlError: it is not well formed, declares a document type, or is nested too deeply.
    """
    parser = xml.parsers.expat.ParserCreate()
    stack = [Node("", 0)]

    def start(tag: str, _attributes: dict[str, str]) -> None:
        if len(stack) > _MAX_DEPTH:
            raise XmlError(parser.CurrentLineNumber, f"nested more than {_MAX_DEPTH} deep")
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
        raise XmlError(parser.CurrentLineNumber, "it declares a document type (<!DOCTYPE ...>)")

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = document_type
    try:
        parser.Parse(content, True)
    except xml.parsers.expat.ExpatError as error:
        raise XmlError(error.lineno, xml.parsers.expat.ErrorString(error.code)) from None
    except (LookupError, ValueError) as error:  # an encoding that Python lacks, or expat cannot use
        if isinstance(error, XmlError):
            raise
        raise XmlError(1, str(error)) from None
    return stack[0].children[0]
