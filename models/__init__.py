"""The model zoo: PyTorch definitions, exporters to ONNX, training scripts and small trained models.

`config` and `presets` need no torch; everything else does (`pip install moehls[models]`). `moehls zoo` is its front.
"""
