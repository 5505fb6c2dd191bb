"""The errors a user can meet: each says what happened and what to do about it."""

from __future__ import annotations

__all__ = ["CheckFailed", "ElasticExportError", "UserError", "did_you_mean"]


class ElasticExportError(Exception):
    """Carry one sentence of what happened and one of what to do.

    Args:
        what: What happened, as a full sentence.
        fix: What the reader can do, as a full sentence.
    """

    exit_code = 70

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what} {fix}")
        self.what = what
        self.fix = fix

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Keep both sentences when the error crosses a process boundary."""
        return type(self), (self.what, self.fix)


class UserError(ElasticExportError):
    """The input, the recipe or the machine cannot do what was asked (exit code 1)."""

    exit_code = 1


class CheckFailed(ElasticExportError):  # noqa: N818 - the name users see in the documentation
    """A stage ran, but its post-condition does not hold (exit code 3)."""

    exit_code = 3


def did_you_mean(word: str, known: list[str]) -> str:
    """Suggest the nearest known word, or list the known ones.

    Returns:
        ``did_you_mean("quantise", ["quantize", "train"])`` is ``'Did you mean "quantize"?'``.
    """
    import difflib

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f'Did you mean "{near[0]}"?'
    return f"Known: {', '.join(sorted(known))}."
