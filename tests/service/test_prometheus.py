"""What Prometheus sees of the service's metrics, on real Ray Serve."""

from __future__ import annotations

import re

from prometheus import scraped

from serving.metrics import METRICS


def test_prometheus_sees_them_under_these_names(ray_session: None) -> None:
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Measuring:
        def __call__(self) -> None:
            from serving import metrics  # a replica can not import this test

            metrics.answers.count(stage="text")
            metrics.degraded.count(reason="busy")
            metrics.memory.count(outcome="hit")
            metrics.refused.count(code="key-missing")
            metrics.stage_seconds.observe(0.3, stage="text")
            metrics.generation_seconds.observe(2)
            metrics.shard_seconds.observe(0.01, shard="0")
            metrics.batch_size.observe(3, part="text")
            with metrics.waiting.one(part="text"):
                pass

    serve.start(proxy_location="Disabled")
    try:
        serve.run(Measuring.bind(), name="measuring", route_prefix=None).remote().result(timeout_s=60)
        wanted = {name for metric in METRICS for name in metric.exported}
        seen = scraped(lambda page: all(f"\n{name}{{" in page for name in wanted))
        assert re.search(r'ray_mindseye_answers_total\{.*application="measuring".*stage="text"', seen)
    finally:
        serve.shutdown()
