"""How many CPUs this machine lets us use, which a container may have fewer of than its host."""

from __future__ import annotations

from ray._private import utils


def usable_cores() -> int:
    """Return the CPUs that a Ray started here would count: those of the container's limit, if there is one."""
    # No public function says so; without Ray started, ray.cluster_resources() cannot.
    return max(1, int(utils.get_num_cpus(override_docker_cpu_warning=True)))
