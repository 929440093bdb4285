"""Draw masks, labels and paths by the annotators of supervision.

pip install 'rvos-deploy[cpu,supervision]'
python examples/supervision_annotators.py IN OUT.mp4 "the dog on the left" ...
"""

import sys

import av
import numpy as np
import supervision as sv

import rvos_deploy as rvos


def main(source: str, target: str, *expressions: str) -> None:
    """Write ``source`` with what each expression refers to."""
    by_expression = sv.ColorLookup.TRACK
    annotators = (
        sv.MaskAnnotator(color_lookup=by_expression),
        sv.TraceAnnotator(color_lookup=by_expression, trace_length=15),
    )
    labels = sv.LabelAnnotator(color_lookup=by_expression, text_scale=0.3, text_padding=2)
    with (
        av.open(target, "w") as writer,
        rvos.load("tiny") as segmenter,
        segmenter.stream(expressions) as stream,
        rvos.open_video(source) as reader,
    ):
        encoder = writer.add_stream("libx264", rate=round(reader.info.average_fps or 25))
        encoder.width, encoder.height = reader.info.width // 2 * 2, reader.info.height // 2 * 2
        encoder.pix_fmt = "yuv420p"
        for frame in reader:
            (result,) = stream.push(frame)
            found = result.to_supervision()  # one row for each expression that has a mask
            scene = np.ascontiguousarray(frame.image[..., ::-1])  # supervision's BGR
            for annotator in annotators:
                scene = annotator.annotate(scene, found)
            texts = [
                f"{text} {score:.2f}"
                for text, score in zip(found["class_name"], found.confidence, strict=True)
            ]
            scene = labels.annotate(scene, found, texts)
            drawn = scene[: encoder.height, : encoder.width, ::-1]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(drawn), format="rgb24")
            writer.mux(encoder.encode(picture))
            print(result.index, len(found))
        writer.mux(encoder.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
