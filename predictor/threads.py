"""How many threads native libraries may start."""

import os


def bound() -> None:
    """Hold pools of native threads to one thread each. Call before NumPy or ONNX Runtime is imported: each
    would start a pool as wide as the machine, whatever the container may use of it."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
