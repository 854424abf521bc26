"""The embedded default: a rendered world of categories, and the tiny models trained on it. See ``docs/demo.md``."""
