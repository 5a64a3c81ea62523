"""Jobs have no API access: their task is in the environment, their result in the termination
message.
"""
