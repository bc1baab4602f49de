"""Compile Mixture-of-Experts Vision Transformers from ONNX to bit-exact FPGA accelerators."""

__version__ = "0.1.0"
