"""Take the sound of a file into a written video: copied where MP4 players know it, else as AAC."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from fractions import Fraction

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from rvos_deploy.video.ffmpeg import READ_ERRORS
from rvos_deploy.video.sources.address import ffmpeg_path
from rvos_deploy.video.sources.demuxers import input_options

# Every player of MP4 knows these. Others (PCM, Vorbis, Opus) are encoded.
_COPIED = {"aac", "mp3", "ac3", "eac3", "alac"}
_AAC_RATES = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000}
_BIT_RATE = 128_000
# Seconds before the first frame from which sound is read: enough for a decoder to start.
_AHEAD = 1.0

_DAMAGE = (*READ_ERRORS, ValueError)
_REFUSED = (av.ArgumentError, av.InvalidDataError)
"""Errors of a muxer about a packet itself, for example its times."""


class SoundTrack:
    """Read the best sound track of a file a second time, beside its pictures.

    Damaged sound ends the sound, never the video. Sound before the video's origin, and after its
    last frame, is left out.

    Attributes:
        described: ``aac, copied``, or ``pcm_s16le, encoded as aac``; with ``, damaged`` if the
            sound ended early.
    """

    def __init__(self, container: InputContainer, stream: AudioStream) -> None:
        self._input, self._stream = container, stream
        self._output: OutputContainer | None = None
        self._packets: Iterator[Packet[AudioStream]] | None = None
        self._waiting: Packet[AudioStream] | None = None
        name = stream.codec_context.name
        # AAC of a transport stream has no header of its own, which MP4 needs.
        self._copies = name in _COPIED and (name != "aac" or bool(stream.codec_context.extradata))
        self.described = f"{name}, " + ("copied" if self._copies else "encoded as aac")

    @classmethod
    def open(cls, file: str, *, allow_playlists: bool = False) -> SoundTrack | None:
        """Open the sound of a local file; None if it has none that can be read."""
        container = None
        try:
            options = input_options("local", allow_playlists=allow_playlists)
            container = av.open(ffmpeg_path(file), "r", options=options, metadata_errors="replace")
            stream = container.streams.best("audio")
            if isinstance(stream, AudioStream) and stream.codec_context.sample_rate:
                return cls(container, stream)
        except (*_DAMAGE, AttributeError):  # AttributeError: FFmpeg has no decoder
            pass
        if container is not None:
            container.close()
        return None

    def attach(self, output: OutputContainer, origin: float) -> None:
        """Add the stream to a container. ``origin``: the time in the input that becomes 0."""
        self._output = output
        if self._copies:
            added = output.add_stream_from_template(self._stream)
            self._packets = self._copied(added, origin)
        else:
            rate = self._stream.codec_context.sample_rate
            rate = rate if rate in _AAC_RATES else 48_000
            added = output.add_stream("aac", rate=rate)
            added.bit_rate = _BIT_RATE
            layout = "mono" if self._stream.codec_context.channels == 1 else "stereo"
            added.codec_context.layout = layout
            added.time_base = Fraction(1, rate)
            self._packets = self._encoded(added, AudioResampler("fltp", layout, rate), origin)

    def mux_until(self, seconds: float, *, last: bool = False) -> None:
        """Write the sound that begins before a time in the file. ``last``: nothing follows.

        Raises FFmpegError, OSError: the file cannot be written.
        """
        while self._packets is not None:
            packet = self._waiting or next(self._packets, None)
            self._waiting = None
            if packet is None:
                self._packets = None
                return
            if packet.pts is not None and float(packet.pts * packet.time_base) >= seconds:
                self._waiting = packet
                break
            assert self._output is not None
            try:
                self._output.mux(packet)
            except _REFUSED:
                self._end_early()
        if last:
            self._packets = None

    def close(self) -> None:
        """Close the input. Safe to call twice."""
        self._packets = self._waiting = None
        self._input.close()

    def _end_early(self) -> None:
        self._packets = None
        self.described += ", damaged"

    def _demuxed(self, origin: float) -> Generator[Packet[AudioStream], None, None]:
        """Yield the packets that end at ``origin`` or later; note damage."""
        try:
            if origin > _AHEAD:
                with suppress(*_DAMAGE):
                    self._input.seek(int((origin - _AHEAD) * 1_000_000))
            for packet in self._input.demux(self._stream):
                if packet.pts is None or packet.time_base is None:
                    continue
                if float((packet.pts + (packet.duration or 0)) * packet.time_base) >= origin:
                    yield packet
        except _DAMAGE:
            self._end_early()

    def _copied(
        self, added: AudioStream, origin: float
    ) -> Generator[Packet[AudioStream], None, None]:
        last: int | None = None
        for packet in self._demuxed(origin):
            assert packet.pts is not None
            shift = round(Fraction(origin) / packet.time_base)
            packet.pts -= shift
            packet.dts = packet.pts if packet.dts is None else packet.dts - shift
            if last is not None and packet.dts <= last:
                continue  # no container takes times that go back
            last = packet.dts
            packet.stream = added
            yield packet

    def _encoded(
        self, added: AudioStream, resampler: AudioResampler, origin: float
    ) -> Generator[Packet[AudioStream], None, None]:
        base, end = Fraction(1, added.codec_context.sample_rate), 0
        try:
            for frame in self._decoded(origin):
                for piece in resampler.resample(frame):
                    at = Fraction(piece.pts or 0) * Fraction(piece.time_base or base)
                    # Where streams were joined, times go back; the sound goes on.
                    piece.pts = max(end, round((at - Fraction(origin)) / base))
                    piece.time_base = base
                    end = piece.pts + piece.samples
                    yield from added.encode(piece)
            yield from added.encode(None)
        except _DAMAGE:
            self._end_early()

    def _decoded(self, origin: float) -> Generator[AudioFrame | None, None, None]:
        for packet in self._demuxed(origin):
            try:
                yield from packet.decode()
            except _DAMAGE:
                continue  # a packet that cannot be decoded is silent
        yield None  # the resampler holds samples
