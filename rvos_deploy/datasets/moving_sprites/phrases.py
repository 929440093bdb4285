"""The words for every claim: verbs, phrases, places, superlatives. Lower case, no punctuation.

In a phrase the first word is a verb, and so is each word after an asterisk. Opposite claims mostly
have as many phrases, in the same order, so that one draw words both alike.
"""

from __future__ import annotations

# Verbs whose forms are not "-ing" and "-s".
VERBS: dict[str, tuple[str, str]] = {
    "come": ("coming", "comes"), "move": ("moving", "moves"), "slide": ("sliding", "slides"),
    "bounce": ("bouncing", "bounces"), "rise": ("rising", "rises"), "go": ("going", "goes"),
    "stop": ("stopping", "stops"), "hop": ("hopping", "hops"), "drop": ("dropping", "drops"),
    "shake": ("shaking", "shakes"), "race": ("racing", "races"), "leave": ("leaving", "leaves"),
    "zigzag": ("zigzagging", "zigzags"), "circle": ("circling", "circles"),
    "reverse": ("reversing", "reverses"), "pass": ("passing", "passes"), "get": ("getting", "gets"),
    "travel": ("travelling", "travels"), "approach": ("approaching", "approaches"),
    "overtake": ("overtaking", "overtakes"), "weave": ("weaving", "weaves"),
    "become": ("becoming", "becomes"), "catch": ("catching", "catches"),
}  # fmt: skip


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))


def _ahead(*rests: str) -> tuple[str, ...]:
    verbs = ("move", "go", "head", "travel", "slide")
    return tuple(f"{verb} {rest}" for verb in verbs for rest in rests)


def _sideways(word: str) -> tuple[str, ...]:
    return (*_ahead(f"to the {word}", word, f"towards the {word}"), f"drift {word}")


def _upright(word: str, border: str, verbs: str) -> tuple[str, ...]:
    return (*_ahead(word, f"{word}wards", f"towards the {border}"), *_list(verbs))


def _diagonal(vertical: str, side: str) -> tuple[str, ...]:
    return _ahead(
        f"{vertical} and to the {side}",
        f"{vertical} and {side}",
        f"diagonally {vertical} to the {side}",
    )


def _entry(side: str) -> tuple[str, ...]:
    verbs = ("come in", "enter", "come into view", "slide in", "appear")
    return tuple(f"{verb} from the {side}" for verb in verbs)


def _exit(place: str, rest: str) -> tuple[str, ...]:
    verbs = ("leave", "go out", "exit", "move out of view")
    return (*(f"{verb} {place}" for verb in verbs), f"disappear {rest}")


PHRASES: dict[str, tuple[str, ...]] = {
    "still": _list(
        "stay still | stand still | remain still | stay in place | rest in one place | do not move"
    ),
    "moving": _list("move | move around | move across the frame"),
    "left": _sideways("left"),
    "right": _sideways("right"),
    "up": _upright("up", "top", "rise | climb up"),
    "down": _upright("down", "bottom", "fall down | sink down"),
    "up_left": _diagonal("up", "left"),
    "up_right": _diagonal("up", "right"),
    "down_left": _diagonal("down", "left"),
    "down_right": _diagonal("down", "right"),
    "fast": _list(
        "move fast | move quickly | go fast | move at high speed | race across the frame"
    ),
    "slow": _list("move slowly | creep along | go slowly | move at low speed | drift slowly"),
    "circling": _list(
        "go in circles | move in a circle | go around in a circle | circle around "
        "| travel in circles"
    ),
    "clockwise": _list(
        "move clockwise | go around clockwise | circle clockwise | move in a clockwise circle"
    ),
    "counterclockwise": _list(
        "move counterclockwise | go around counterclockwise | circle counterclockwise "
        "| move in a counterclockwise circle"
    ),
    "zigzag": _list(
        "move in a zigzag | zigzag | zigzag across the frame | weave along | go in a zigzag"
    ),
    "bounce": _list(
        "jump up and down | bounce up and down | hop in place | bounce | hop up and down"
    ),
    "shake": _list(
        "move from side to side | swing from side to side | swing left and right "
        "| shake left and right | go back and forth"
    ),
    "stop": _list(
        "move and then *stop | come to a stop | stop halfway | come to a halt "
        "| move first and then *stand still"
    ),
    "start": _list(
        "wait and then *move | start to move later | start late | wait before moving "
        "| stand still first and then *move"
    ),
    "turn_back": _list(
        "turn back | go and *come back | reverse direction | move away and *return "
        "| return to where it started"
    ),
    "grow": _list("grow | get bigger | become larger | grow larger | get larger"),
    "shrink": _list("shrink | get smaller | become smaller | shrink down | get tinier"),
    "enter": _list(
        "enter the frame | come into view | move into the frame | enter the scene "
        "| come into the frame"
    ),
    "leave": _list(
        "leave the frame | go out of view | move out of the frame | leave the scene "
        "| exit the frame"
    ),
    "enter_left": _entry("left"),
    "enter_right": _entry("right"),
    "enter_top": _entry("top"),
    "enter_bottom": _entry("bottom"),
    "leave_left": _exit("on the left", "to the left"),
    "leave_right": _exit("on the right", "to the right"),
    "leave_top": _exit("at the top", "over the top"),
    "leave_bottom": _exit("at the bottom", "below the frame"),
    "overtake": _list(
        "overtake another one | overtake another object | pass another moving object "
        "| catch up with and *pass another one"
    ),
    "toward": _list(
        "move towards | come closer to | head for | get closer to | go towards | approach"
    ),
    "away": _list("move away from | go further from | head away from | get further from"),
}
"""Phrases of each claim of motion. ``toward`` and ``away`` go on with what they lead to."""

PLACES: dict[str, tuple[str, ...]] = {
    "left_of": ("left of", "to the left of", "on the left side of"),
    "right_of": ("right of", "to the right of", "on the right side of"),
    "above": ("above", "higher than", "over"),
    "below": ("below", "lower than", "under"),
}
"""Phrases of each relation, the same number for each."""

SUPERLATIVES: dict[str, tuple[str, ...]] = {
    "leftmost": ("leftmost {}", "{} on the far left", "{} furthest to the left"),
    "rightmost": ("rightmost {}", "{} on the far right", "{} furthest to the right"),
    "highest": ("highest {}", "topmost {}", "{} at the very top"),
    "lowest": ("lowest {}", "bottommost {}", "{} at the very bottom"),
}
"""Phrases of each superlative, with a place for the noun."""

COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
"""The words for numbers of objects."""
