"""Decode by PyAV, segment, encode by PyAV: sound and the times of frames are kept.

python examples/pyav_to_pyav.py IN.mp4 OUT.mp4 "the dog on the left" ...
"""

import sys

import av

import rvos_deploy as rvos
from rvos_deploy.video import draw_overlay


def main(source: str, target: str, *expressions: str) -> None:
    """Write ``source`` with its masks drawn."""
    with (
        av.open(source) as reader,
        av.open(target, "w") as writer,
        rvos.load("tiny") as segmenter,
        segmenter.stream(expressions) as stream,
    ):
        pictures = reader.streams.video[0]
        sounds = {s: writer.add_stream_from_template(s) for s in reader.streams.audio}
        encoder = writer.add_stream("libx264", rate=pictures.average_rate)
        encoder.width, encoder.height = pictures.width // 2 * 2, pictures.height // 2 * 2  # even
        encoder.pix_fmt = "yuv420p"
        encoder.codec_context.time_base = pictures.time_base
        index = 0
        for packet in reader.demux(pictures, *sounds):
            if packet.stream in sounds:
                if packet.dts is not None:  # the last packet is empty
                    packet.stream = sounds[packet.stream]
                    writer.mux(packet)
                continue
            for picture in packet.decode():
                image = picture.to_ndarray(format="rgb24")
                (result,) = stream.push(rvos.Frame(index, picture.time, image))
                drawn = draw_overlay(image, result.masks, result.texts, result.scores)
                drawn = drawn[: encoder.height, : encoder.width]
                encoded = av.VideoFrame.from_ndarray(drawn, format="rgb24")
                encoded.pts, encoded.time_base = picture.pts, picture.time_base
                writer.mux(encoder.encode(encoded))
                index += 1
        writer.mux(encoder.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
