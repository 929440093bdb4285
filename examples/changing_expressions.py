"""Change what is followed while the stream runs.

    python examples/changing_expressions.py IN.mp4 < COMMANDS

A line of COMMANDS says when and what: ``0 + the dog``, ``12 + the ball``, ``20 - the dog``.
"""

import sys

import rvos_deploy as rvos


def read_commands() -> dict[int, list[tuple[str, str]]]:
    """Return the sign and the sentence of every command, by the frame before which it counts."""
    commands: dict[int, list[tuple[str, str]]] = {}
    for line in sys.stdin:
        frame, sign, text = line.split(maxsplit=2)
        commands.setdefault(int(frame), []).append((sign, text.strip()))
    return commands


def main(source: str) -> None:
    """Print the score and the area of every expression that is present in a frame."""
    commands = read_commands()
    numbers: dict[str, int] = {}
    with rvos.load("tiny") as segmenter, segmenter.stream() as stream:
        for frame in rvos.read_video(source):
            for sign, text in commands.get(frame.index, []):
                if sign == "+":
                    numbers[text] = stream.add_expression(text)
                else:
                    stream.remove_expression(numbers.pop(text))
            for result in stream.push(frame):
                # Rows are the expressions that are present now, in the order in which they joined.
                rows = zip(result.texts, result.scores, result.masks, strict=True)
                found = [f"{text}: {score:.2f}, {mask.sum()} px" for text, score, mask in rows]
                print(f"frame {result.index}:", "; ".join(found) or "nothing is followed")


if __name__ == "__main__":
    main(*sys.argv[1:])
