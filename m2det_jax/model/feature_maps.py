"""Feature map sizes, which also lay out the anchors."""


def feature_map_sizes(image_size: tuple[int, int], num_scales: int) -> tuple[tuple[int, int], ...]:
    """Returns the (height, width) of each scale's map, the largest first.

    The first map has ceil(size / 8) cells along each axis. Each following map has half as many as
    the one before, rounded up. With three or more scales the last map is different: an unpadded
    3x3 convolution makes it, and it is 2 cells smaller than the one before.

    Args:
        image_size: (height, width) of the network's input in pixels.
        num_scales: number of scales, at least 2.

    Raises:
        ValueError: if a side of the image is not positive, or too small for num_scales.
    """
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"image size (height, width) must be positive, got {height} x {width}")
    largest = _largest_num_scales(min(height, width))
    if not 2 <= num_scales <= largest:
        raise ValueError(
            f"an image of {height} x {width} pixels (height x width) cannot have {num_scales} "
            f"scales: legal are 2 to {largest}; use fewer scales or larger images"
        )
    sizes = [(-(-height // 8), -(-width // 8))]
    for scale in range(2, num_scales + 1):
        h, w = sizes[-1]
        last = scale == num_scales and num_scales > 2
        sizes.append((h - 2, w - 2) if last else (-(-h // 2), -(-w // 2)))
    return tuple(sizes)


def _largest_num_scales(short_side: int) -> int:
    """Returns the largest S for which scale S - 1 has the 3 cells of an unpadded convolution."""
    cells, num_scales = -(-short_side // 8), 2
    while -(-cells // 2) >= 3:
        cells, num_scales = -(-cells // 2), num_scales + 1
    return num_scales
