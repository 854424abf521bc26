"""Models of real size on one GPU, each figure against a plain loop and the device's own limit in one run.

    python -m benchmarks.gpu [--size tiny] [--parts encoders generator training search compiled] [--json FILE]

It needs neither a network nor Ray: weights are random, in the shapes of the production models, and written in the
hub's own formats to a temporary folder. `--size tiny` is for trying it out on a CPU; its figures say nothing.
docs/gpu.md says what to install on a machine with a GPU.
"""
