"""The steps of the pipeline."""

import os

# ONNX Runtime (1.29 and later, on Linux too) sends usage data to Microsoft and keeps a database of it in the home
# directory unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
