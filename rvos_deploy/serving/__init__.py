"""Serve a bundle over HTTP and WebSocket on Ray Serve.

A request's way: ``app.py`` (routes) -> ``uploads.py`` or ``downloads.py`` (a file on disk) ->
``segmentation.py`` (a thread runs the file through a stream) -> ``lines.py`` (lines to the client).
Live frames go through ``live.py``. ``server.py`` starts and ends Ray Serve.
"""
