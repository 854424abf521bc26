"""Environment variables that Ray, Serve and Train read, in one place. Each is a default: what is set already stays.

Ray reads most of them as it is imported or started, and its processes inherit them, so they are set when this module is
imported, which each of the packages that use Ray does first. On a cluster they belong into the environment of its
nodes.
"""

from __future__ import annotations

import os

DEFAULTS = {
    # No usage report, which would also ask the cloud's metadata service.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Keeps harmless notes of Ray's core about restarting actors off the terminal.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # A second by default, after which the next stage waits for new workers to start and to import.
    "RAY_idle_worker_killing_time_threshold_ms": "30000",
    # By default Serve is set for latency of single requests on many cores.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # The setting above means it for all calls between replicas, but Ray has read by then how the proxy makes its own.
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    # Comes with the setting above, is of use with HAProxy alone, and lets every replica drain for half a minute.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    # A proxy that is not up after it is killed, and Serve's start fails with it: 5 s are too few on a busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # A replica that no longer answers has no requests to finish.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # Otherwise a replica buffers a thousand log records until one of them is an error.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    # Between replicas, 4 MiB by default: a thousand rows with metadata may be more.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),
    # Reports of workers, and with them the end of a short training run, are otherwise polled every 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
