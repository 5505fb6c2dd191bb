"""Latency on this machine: what runs what, whether it computes right, how long it takes."""
