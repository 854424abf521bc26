"""Tiny models of real photographs, trained from nothing by ``python -m demo.photos.train``."""
