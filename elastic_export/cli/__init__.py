"""The command line: thin commands around the pipeline, one file each.

Heavy imports sit inside the command bodies, so that ``--help`` answers at once.
"""
