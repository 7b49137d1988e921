"""Names of files that are written: distinct on every file system, also without their suffix."""

import os
import unicodedata
from collections.abc import Iterable, Sequence


def same_file_key(name: str) -> str:
    """Returns the same text for two names that some file system takes for one (case, accents)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def distinct_names(names: Iterable[str]) -> list[str]:
    """Returns the names, numbered where one is that of an earlier file on some file system."""
    taken: set[str] = set()
    last: dict[str, int] = {}  # number given to a name
    distinct = []
    for own in names:
        name, key = own, same_file_key(own)
        while same_file_key(name) in taken:
            last[key] = last.get(key, 1) + 1
            name = f"{own}_{last[key]}"
        taken.add(same_file_key(name))
        distinct.append(name)
    return distinct


def unique_stems(paths: Sequence[str]) -> list[str]:
    """Returns a name without suffix for each path: its own without blanks, numbered if taken."""
    own = (os.path.splitext(os.path.basename(path))[0].split() for path in paths)
    return distinct_names("_".join(words) or "image" for words in own)
