"""Ray Train: the aggregator is trained here."""

import cluster.ray_env  # noqa: F401  # before any module here imports Ray, which reads it
