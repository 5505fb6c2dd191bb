"""Finding good descendants: evolution over gene matrices; what is good is passed in.

Needs NumPy alone, so a search can run where the networks are not.
"""

from elastic_export.search.bands import bands
from elastic_export.search.evolution import Candidate, SearchResult, evolve
from elastic_export.search.pareto import pareto_front

__all__ = ["Candidate", "SearchResult", "bands", "evolve", "pareto_front"]
