"""``make calibrate``: what the operator's judgement does on simulated rollouts, beside the rules of
others (docs/explanation/calibration.md).
"""
