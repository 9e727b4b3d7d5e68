"""Models for programs without JAX: ONNX, StableHLO, a page for a browser."""
