"""Ask a server of ``rvos-deploy serve`` for the masks of a video, and print a line for each frame.

    rvos-deploy serve tiny
    python examples/serve_client.py http://127.0.0.1:8000 IN.mp4 "the dog on the left" ...

The token of a server that has one is in the variable RVOS_SERVE_TOKEN.
"""

import json
import os
import sys
from pathlib import Path

import httpx


def main(address: str, video: str, *expressions: str) -> None:
    """Send ``video``, and print the score and area of every expression as lines come."""
    headers = {}
    if token := os.environ.get("RVOS_SERVE_TOKEN"):
        headers["authorization"] = f"Bearer {token}"
    with (
        Path(video).open("rb") as file,
        httpx.stream(
            "POST",
            f"{address}/v1/segment",
            data={"expression": list(expressions)},
            files={"video": (video, file)},
            headers=headers,
            timeout=60,
        ) as response,
    ):
        if response.is_error:
            response.read()
            sys.exit(response.json()["message"])
        for line in response.iter_lines():
            frame = json.loads(line)
            if "code" in frame:
                sys.exit(frame["message"])
            for found in frame.get("expressions", []) if "index" in frame else []:
                print(frame["index"], f"{found['score']:.2f}", found["area"], found["text"])


if __name__ == "__main__":
    main(*sys.argv[1:])
