"""Run a bundle in NVIDIA's Triton Inference Server.

``repository.py`` writes a model repository, ``config_text.py`` its configurations. In the server,
``stream_model.py`` is the sequence model of Triton's Python back end, and ``graph_requests.py``
runs graphs that are models of the same server. ``check.py`` compares a running server with a
bundle.
"""
