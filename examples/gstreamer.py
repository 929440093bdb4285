"""Segment between two pipelines of GStreamer, by appsink and appsrc.

    python examples/gstreamer.py SOURCE SINK "the dog on the left" ...

SOURCE ends in raw video, and SINK begins with it, for example "filesrc location=in.ogv ! decodebin"
and "theoraenc ! oggmux ! filesink location=out.ogv". It needs GStreamer's Python bindings (Debian:
python3-gi and gir1.2-gstreamer-1.0).
"""

import sys

import gi
import numpy as np

import rvos_deploy as rvos
from rvos_deploy.video import draw_overlay

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402

ENDS = Gst.MessageType.EOS | Gst.MessageType.ERROR


def main(source: str, sink: str, *expressions: str) -> None:
    """Segment what ``source`` gives, and send the overlay to ``sink``."""
    Gst.init(None)
    # Four bytes a pixel, because GStreamer pads rows of three.
    sink_caps = "video/x-raw,format=RGBx ! appsink name=app sync=false max-buffers=4"
    reader = Gst.parse_launch(f"{source} ! videoconvert ! {sink_caps}")
    writer = Gst.parse_launch(f"appsrc name=app format=time block=true ! videoconvert ! {sink}")
    frames, drawn = reader.get_by_name("app"), writer.get_by_name("app")
    for pipeline in (reader, writer):
        pipeline.set_state(Gst.State.PLAYING)
    with rvos.load("tiny") as segmenter, segmenter.stream(expressions) as stream:
        while (sample := frames.emit("pull-sample")) is not None:
            caps, buffer = sample.get_caps(), sample.get_buffer()
            height, width = (caps.get_structure(0).get_value(s) for s in ("height", "width"))
            data = np.frombuffer(buffer.extract_dup(0, buffer.get_size()), np.uint8)
            pixels = data.reshape(height, width, 4).copy()
            image = pixels[..., :3]
            (result,) = stream.push(image)
            pixels[..., :3] = draw_overlay(image, result.masks, result.texts, result.scores)
            out = Gst.Buffer.new_wrapped(pixels.tobytes())
            out.pts, out.duration = buffer.pts, buffer.duration
            drawn.set_property("caps", caps)
            drawn.emit("push-buffer", out)
    drawn.emit("end-of-stream")
    for pipeline in (reader, writer):
        message = pipeline.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, ENDS)
        pipeline.set_state(Gst.State.NULL)
        if message.type == Gst.MessageType.ERROR:
            sys.exit(message.parse_error()[0].message)


if __name__ == "__main__":
    main(*sys.argv[1:])
