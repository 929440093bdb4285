"""Segment in a loop of OpenCV: a file or a camera in, a file with tinted masks out.

    python examples/opencv_loop.py IN OUT.avi "the dog on the left" ...

IN is a file, or the number of a camera.
"""

import sys

import cv2
import numpy as np

import rvos_deploy as rvos

COLOURS = ((60, 60, 230), (230, 140, 40), (60, 200, 60), (200, 60, 200))  # BGR


def tint(frame: np.ndarray, masks: np.ndarray) -> None:
    """Draw the masks bool [E,H,W] into a frame in BGR."""
    for number, mask in enumerate(masks):
        colour = COLOURS[number % len(COLOURS)]
        frame[mask] = frame[mask] // 2 + np.uint8(colour) // 2
        outlines, _ = cv2.findContours(
            mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(frame, outlines, -1, colour, 1)


def main(source: str, target: str, *expressions: str) -> None:
    """Segment every frame of ``source``."""
    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not capture.isOpened():
        sys.exit(f"OpenCV cannot open {source}")
    sides = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    size, rate = [int(capture.get(side)) for side in sides], capture.get(cv2.CAP_PROP_FPS) or 25
    writer = cv2.VideoWriter(target, cv2.VideoWriter.fourcc(*"MJPG"), rate, size)
    with rvos.load("tiny") as segmenter, segmenter.stream(expressions) as stream:
        while True:
            more, frame = capture.read()
            if not more:
                break
            (result,) = stream.push(frame[..., ::-1])  # OpenCV's BGR becomes RGB
            tint(frame, result.masks)
            writer.write(frame)
            print(result.index, *(f"{score:.2f}" for score in result.scores))
    writer.release()


if __name__ == "__main__":
    main(*sys.argv[1:])
