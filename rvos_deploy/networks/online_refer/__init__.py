"""The network family OnlineRefer (Wu et al., ICCV 2023)."""
