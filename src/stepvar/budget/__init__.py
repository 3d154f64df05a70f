"""Budgets: a speed-up is asked for, and the settings of a method follow (see ``docs/budget.md``).

A generation is counted by the functions that reports count with, timed by a device's measured rates, and scaled to a
measured dense generation of the model.
"""

from __future__ import annotations

from stepvar.budget.calibration import Calibration, calibrate, plan_speedup
from stepvar.budget.costs import CostModel
from stepvar.budget.device import DeviceRates
from stepvar.budget.planner import Budget, fit
from stepvar.budget.profile import Profile

__all__ = ["Budget", "Calibration", "CostModel", "DeviceRates", "Profile", "calibrate", "fit", "plan_speedup"]
