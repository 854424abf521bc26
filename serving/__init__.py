"""Ray Serve: the retrieval graph is served from here."""

import cluster.ray_env  # noqa: F401  # before any module here imports Ray, which reads it
