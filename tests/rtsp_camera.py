"""A real RTSP server, GStreamer's, as a program: ``rtsp_camera.py PORT``, 0 for a free port.

It runs on Debian's Python, which has the bindings (python3-gi, gir1.2-gst-rtsp-server-1.0,
gstreamer1.0-plugins-good). It prints its port, and serves /live: 64x48 at 25 fps, a moving ball.
"""

from __future__ import annotations

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

Gst.init(None)
if Gst.ElementFactory.find("rtpjpegpay") is None:
    sys.exit("gstreamer1.0-plugins-good is missing")
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
media = GstRtspServer.RTSPMediaFactory()
media.set_launch(
    "( videotestsrc is-live=true pattern=ball "
    "! video/x-raw,format=I420,width=64,height=48,framerate=25/1 "
    "! jpegenc ! rtpjpegpay name=pay0 pt=26 )"
)
media.set_shared(True)
server.get_mount_points().add_factory("/live", media)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
