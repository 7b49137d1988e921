"""YAML of plain values: no objects are constructed, no key is there twice."""

import collections

import yaml

# The reader in C where PyYAML has it: the same grammar, ten times quicker.
_Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_DEPTH = 50


class YamlError(ValueError):
    """Text that is no YAML mapping.

    Attributes:
        line: where, from 1; 0: unknown.
        what: what is wrong there.
    """

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line, self.what = line, what


class _Loader(_Base):
    """Refuses keys that are there twice."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice, _ = collections.Counter(keys).most_common(1)[0]
            raise YamlError(node.start_mark.line + 1, f"the key is there twice: {twice}")
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str) -> dict:
    """Parses a document and returns its mapping.

    Raises:
        YamlError: it is not well formed, no mapping, or more than plain values.
    """
    try:
        _check_events(text)
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise YamlError(mark.line + 1 if mark else 0, what) from None
    except (ValueError, OverflowError) as error:  # such as a date that is none
        if isinstance(error, YamlError):
            raise
        raise YamlError(0, str(error)) from None
    if not isinstance(data, dict):
        raise YamlError(1, "it holds no mapping of keys to values")
    return data


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.AliasEvent):
            raise YamlError(event.start_mark.line + 1, "aliases (*name) are not read")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise YamlError(event.start_mark.line + 1, f"nested more than {_MAX_DEPTH} deep")
