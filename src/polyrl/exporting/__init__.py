"""Trained policies as files that act without polyrl and torch: arrays for NumPy, or a graph for ONNX."""
