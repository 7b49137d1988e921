"""Checks on the value of one key of a config, for the declarations in `keys`.

A check takes the value. It returns "" where the value fits, else what stands in a message after
the name of the key, such as "=-1: must be 0 or more".
"""

from collections.abc import Callable

Check = Callable[..., str]

SMALLEST_SIDE = 64  # pixels of the network input


def one_of(*choices: str) -> Check:
    """Returns a check that takes these values alone."""
    listed = ", ".join(map(repr, choices))
    return lambda value: "" if value in choices else f"={value!r}: give one of {listed}"


def positive(value: float) -> str:
    """Takes numbers above 0."""
    return f"={value}: must be above 0" if value <= 0 else ""


def not_negative(value: float) -> str:
    """Takes 0 and numbers above."""
    return f"={value}: must be 0 or more" if value < 0 else ""


def share(value: float) -> str:
    """Takes numbers from 0 to 1."""
    return f"={value}: must lie in 0..1" if value < 0 or value > 1 else ""


def share_below_1(value: float) -> str:
    """Takes numbers from 0 to 1, but not 1."""
    return "" if 0 <= value < 1 else f"={value}: must lie in 0..1, below 1"


def whole_range(least: int, most: int) -> Check:
    """Returns a check that takes whole numbers from least to most."""
    return lambda value: "" if least <= value <= most else f"={value}: give {least} to {most}"


def at_least_or_automatic(least: int) -> Check:
    """Returns a check that takes whole numbers from least on, and -1."""
    text = f"give {least} or more, or -1 for what fits the host"
    return lambda value: "" if value == -1 or value >= least else f"={value}: {text}"


def positives(values: tuple) -> str:
    """Takes tuples of numbers above 0."""
    sound = all(is_number(value) and value > 0 for value in values)
    return "" if sound else f"={values}: give numbers above 0"


def rising_positives(values: tuple) -> str:
    """Takes tuples of numbers above 0, each above the one before."""
    rising = f"={values}: must rise"
    return positives(values) or ("" if list(values) == sorted(set(values)) else rising)


def shares(values: tuple) -> str:
    """Takes tuples of numbers from 0 to 1."""
    sound = all(is_number(value) and 0 <= value <= 1 for value in values)
    return "" if sound else f"={values}: give numbers in 0..1"


def rgb(values: tuple) -> str:
    """Takes three numbers from 0 to 255."""
    if len(values) != 3 or not all(map(is_number, values)):
        return f"={values}: give three numbers, R, G and B, 0..255"
    return "" if 0 <= min(values) <= max(values) <= 255 else f"={values}: must lie in 0..255"


def rgb_divisor(values: tuple) -> str:
    """Takes three numbers above 0, up to 255."""
    if len(values) == 3 and all(map(is_number, values)) and not min(values) > 0:
        return f"={values}: the image is divided by it; give above 0"
    return rgb(values)


def input_size(size: tuple) -> str:
    """Takes (height, width) in pixels."""
    return "" if _is_size(size) else f"={size}: give (height, width), each {SMALLEST_SIDE} or more"


def input_sizes(sizes: tuple) -> str:
    """Takes tuples of (height, width) in pixels."""
    sound = all(map(_is_size, sizes))
    text = f"give ((height, width), ...), each {SMALLEST_SIDE} or more"
    return "" if sound else f"={sizes}: {text}"


def view_sizes(sizes: tuple) -> str:
    """Takes tuples of sides and of (height, width), in pixels."""
    for size in sizes:
        if not _is_size(size if isinstance(size, tuple) else (size, size)):
            return f" has {size!r}: give sides or (height, width), {SMALLEST_SIDE} or more"
    return ""


def texts(values: tuple) -> str:
    """Takes tuples of different texts, none of them empty."""
    if not all(isinstance(value, str) and value for value in values):
        return f"={values!r}: give texts, such as ('a','b')"
    return f"={values!r}: an entry is there twice" if len(set(values)) < len(values) else ""


def names_of(*choices: str) -> Check:
    """Returns a check that takes tuples of different ones of these names."""
    listed = ", ".join(map(repr, choices))

    def check(values: tuple) -> str:
        unknown = [value for value in values if value not in choices]
        return f"={values!r}: give names out of {listed}" if unknown else texts(values)

    return check


def pairs_of_texts(pairs: tuple) -> str:
    """Takes tuples of pairs of texts."""
    sound = all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs) and all(
        isinstance(text, str) for pair in pairs for text in pair
    )
    return "" if sound else f"={pairs!r}: give pairs, such as (('van','car'),)"


def one_of_or_module(*choices: str) -> Check:
    """Returns a check that takes these names, and the dotted name of any Python module."""
    text = f"give {', '.join(choices)}, or the dotted name of a Python module"

    def check(name: str) -> str:
        sound = name in choices or all(part.isidentifier() for part in name.split("."))
        return "" if sound else f"={name!r}: {text}"

    return check


def is_number(value: object) -> bool:
    """Tells whether a value is a whole or a real number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_size(size: object) -> bool:
    if not isinstance(size, tuple) or len(size) != 2:
        return False
    return all(isinstance(side, int) and side >= SMALLEST_SIDE for side in size)
