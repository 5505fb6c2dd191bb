"""Timing on this machine: the protocol, its verdicts, and what the machine is.

Nothing here knows what it times: candidates are plain callables.
"""
