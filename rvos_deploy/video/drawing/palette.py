"""Choose colours of expressions that colour-blind people can distinguish."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]

# Okabe and Ito (2008), "Color Universal Design", without black, the most different colours first.
_OKABE_ITO: tuple[Colour, ...] = (
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
    (230, 159, 0),
)
_GOLDEN = 0.61803398875


def colour_of(index: int) -> Colour:
    """Return the RGB colour of expression ``index``: seven safe colours, then spread hues."""
    if index < len(_OKABE_ITO):
        return _OKABE_ITO[index]
    extra = index - len(_OKABE_ITO)
    # Steps of the golden ratio stay away from earlier hues; lightness alternates for people who
    # cannot use hue.
    red, green, blue = colorsys.hsv_to_rgb(extra * _GOLDEN % 1, 0.75, (0.95, 0.65)[extra % 2])
    return round(255 * red), round(255 * green), round(255 * blue)
