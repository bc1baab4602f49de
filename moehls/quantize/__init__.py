"""Float network to integer network: calibration, ranges, folding and rounding."""

from moehls.quantize.calibrate import random_calibration
from moehls.quantize.quantizer import quantize

__all__ = ["quantize", "random_calibration"]
