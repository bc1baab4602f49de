"""The plan: from the integer network to a machine shape, a step program, its bytes and their cost.

`plan` finds the shape, `build_program` the steps, `moehls.plan.layout` the bytes.
"""

from moehls.plan.planner import Plan, load_plan, plan, save_plan, weights_bytes
from moehls.plan.program import build_program

__all__ = ["Plan", "build_program", "load_plan", "plan", "save_plan", "weights_bytes"]
