"""What a fleet of ModelDeployments costs: a real API server, the real operator, and a small world
of asyncio that plays everything else.

kwok was considered for the world. It would need the controller manager and the scheduler beside it
on the same two cores, its Go templates cannot read the salt out of a Job's task, which the result
has to name, and gateway and Prometheus would be our own all the same.
"""


class FleetError(RuntimeError):
    """A run that cannot go on; the text says what to do."""
