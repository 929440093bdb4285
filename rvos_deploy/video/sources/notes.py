"""Describe differences between a stream's frames and a viewer's picture, one line each."""

from __future__ import annotations

from av.video.stream import VideoStream

from rvos_deploy.video.sources.decoding import alpha_decoder, has_alpha_beside
from rvos_deploy.video.sources.tone_mapping import HDR_TRANSFERS


def notes_on(stream: VideoStream) -> tuple[str, ...]:
    """Return notes on a stream whose first frame was decoded; an ordinary stream has none."""
    notes = []
    if transfer := HDR_TRANSFERS.get(stream.codec_context.color_trc):
        notes.append(
            f"is high dynamic range (transfer {transfer}): its frames are tone-mapped to BT.709"
        )
    if has_alpha_beside(stream) and not alpha_decoder(stream.codec_context.name):
        notes.append(
            "has transparency that this FFmpeg cannot decode: hidden pixels show; install PyAV's "
            "own wheel, which has libvpx"
        )
    return tuple(notes)
