"""Ray Data jobs: images to a Gallery, texts to a QuerySet, a Gallery to an Index, all of them to a table of results."""

import cluster.ray_env  # noqa: F401  # before any module here imports Ray, which reads it
