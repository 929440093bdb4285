"""Define the network family of OnlineRefer (Wu et al., ICCV 2023, arXiv 2307.09356)."""
