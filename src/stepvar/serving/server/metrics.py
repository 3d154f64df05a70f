"""What Prometheus reads: requests, queue, images, seconds by stage, tokens computed and spared, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from stepvar.core.report import Report

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)


class _DeviceMemory(Collector):
    """Bytes of the allocator on the GPU, asked for when they are read."""

    def __init__(self, device: Callable[[], torch.device | None]) -> None:
        self._device = device

    def collect(self) -> Iterable[Metric]:
        device = self._device()
        if device is None or device.type != "cuda":
            return
        family = GaugeMetricFamily("stepvar_device_memory_bytes", "Memory of PyTorch on the GPU.", labels=["kind"])
        family.add_metric(["allocated"], torch.cuda.memory_allocated(device))
        family.add_metric(["reserved"], torch.cuda.memory_reserved(device))
        yield family


class Metrics:
    """The figures of one server, in a registry of their own.

    Args:
        device: where the model is, once it is loaded.
    """

    def __init__(self, device: Callable[[], torch.device | None]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        registry.register(_DeviceMemory(device))
        self.requests = Counter(
            "stepvar_requests", "Answered requests.", ["path", "method", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "stepvar_request_seconds",
            "From a request to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.queue = Gauge("stepvar_queue_images", "Images and videos that wait.", registry=registry)
        self.queue_seconds = Histogram(
            "stepvar_queue_seconds", "How long images and videos waited.", buckets=SECONDS, registry=registry
        )
        self.batch = Histogram("stepvar_batch_images", "Images of a batch.", buckets=BATCHES, registry=registry)
        self.images = Counter("stepvar_images", "Generated images.", registry=registry)
        self.videos = Counter("stepvar_videos", "Generated videos.", registry=registry)
        self.abandoned = Counter(
            "stepvar_abandoned_images", "Images and videos whose clients left while they ran.", registry=registry
        )
        self.stages = Counter("stepvar_stage_seconds", "Seconds of generations by stage.", ["stage"], registry=registry)
        self.tokens = Counter(
            "stepvar_tokens", "Tokens of the scales, by whether they were computed.", ["kind"], registry=registry
        )
        for kind in ("computed", "spared"):
            self.tokens.labels(kind)

    def add_generation(self, report: Report, waited: Sequence[float], video: bool) -> None:
        """Counts a batch.

        Args:
            waited: seconds of each in the queue.
        """
        (self.videos if video else self.images).inc(report.samples)
        self.batch.observe(report.samples)
        for seconds in waited:
            self.queue_seconds.observe(seconds)
        for stage, seconds in {**report.stages, "scales": report.scale_seconds}.items():
            self.stages.labels(stage).inc(seconds)
        self.tokens.labels("computed").inc(report.kept * report.samples)
        self.tokens.labels("spared").inc((report.tokens - report.kept) * report.samples)

    def text(self) -> bytes:
        return generate_latest(self.registry)
