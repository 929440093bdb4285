"""Draw masks over frames: overlays with a legend, and montages of a clip."""
