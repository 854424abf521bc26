"""The query memory: what was imagined once, and the stores that keep it."""
