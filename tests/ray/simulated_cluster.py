"""A process that is a cluster of four nodes with a dashboard, and has a job that is at something; ends with its input.

python simulated_cluster.py DASHBOARD_PORT
"""

from __future__ import annotations

import sys

import ray
from ray.cluster_utils import Cluster

from cluster.nodes import POOL
from cluster.ports import free_port
from cluster.progress import progress

STORE = 100 * 2**20
head = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": STORE, "labels": {POOL: "head"}}
head |= {"include_dashboard": True, "dashboard_port": int(sys.argv[1])}
# Another Ray of this machine may have the port that an agent listens on, to which jobs are handed.
head |= {"dashboard_agent_listen_port": free_port()}
simulated = Cluster(initialize_head=True, head_node_args=head)
for pool, gpus in (("cpu", 0), ("cpu", 0), ("gpu", 7)):
    simulated.add_node(num_cpus=1, num_gpus=gpus, labels={POOL: pool}, object_store_memory=STORE)
ray.init(address=simulated.address, log_to_driver=False)
with progress("counting", 10) as counter:
    counter.add(4)
    print(simulated.address, flush=True)
    sys.stdin.read()
ray.shutdown()
simulated.shutdown()
