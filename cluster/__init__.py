"""Machines: what runs where (profiles), and how to reach Ray (session)."""

import cluster.ray_env  # noqa: F401  # before any module here imports Ray, which reads it
