"""Float network to integer network: calibration, ranges, folding and rounding."""

from moehls.quantize.calibrate import random_calibration, random_given
from moehls.quantize.given import left_to_calibration
from moehls.quantize.quantizer import quantize
from moehls.quantize.structure import unmapped

__all__ = ["left_to_calibration", "quantize", "random_calibration", "random_given", "unmapped"]
