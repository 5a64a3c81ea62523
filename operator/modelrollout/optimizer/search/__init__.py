"""What the step ``auto`` decides: which candidate comes next, and which one is taken. Pure:
outcomes in, decision out.
"""
