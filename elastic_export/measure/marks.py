"""Marks that the board's script sets on a figure, and what they keep it from being used for."""

from __future__ import annotations

__all__ = ["DISTURBED", "NO_FIGURE", "SPOILT", "WRONG_LOGITS"]

WRONG_LOGITS = "wrong_logits"
NO_FIGURE = frozenset({WRONG_LOGITS, "other_runtime"})
"""What was timed computes something else, or ran in another runtime: no latency of the target."""
DISTURBED = {
    "throttled": "the GPU was held back meanwhile",
    "mode_changed": "the power mode changed meanwhile",
}
"""The board was not in its state all the time, and why: shown, and never called settled."""
SPOILT = NO_FIGURE | DISTURBED.keys()
"""Neither chosen by nor fitted to."""
