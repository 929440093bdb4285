"""Describe differences between a stream's frames and a viewer's picture, one line each."""

from __future__ import annotations

from av.video.stream import VideoStream

from rvos_deploy.video.sources.decoding import alpha_decoder, has_alpha_beside

# FFmpeg's AVCOL_TRC_SMPTE2084 and AVCOL_TRC_ARIB_STD_B67.
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}

# ITU-R BT.2408 puts white at 203 nits; mobius changes only highlights.
_TO_SDR = (
    "ffmpeg -i VIDEO -vf zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,"
    "tonemap=mobius:desat=0,zscale=t=bt709:m=bt709:r=tv,format=yuv420p SDR.mp4"
)


def notes_on(stream: VideoStream) -> tuple[str, ...]:
    """Return notes on a stream whose first frame was decoded; an ordinary stream has none."""
    notes = []
    if transfer := _HDR_TRANSFERS.get(stream.codec_context.color_trc):
        notes.append(
            f"is high dynamic range (transfer {transfer}) and is read without tone mapping, so "
            f"objects may be missed; convert it to SDR first: {_TO_SDR}"
        )
    if has_alpha_beside(stream) and not alpha_decoder(stream.codec_context.name):
        notes.append(
            "has transparency that this FFmpeg cannot decode: hidden pixels show; install PyAV's "
            "own wheel, which has libvpx"
        )
    return tuple(notes)
