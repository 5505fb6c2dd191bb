"""Reader of SViTE and S²ViTE."""

from elastic_export.checkpoints.svite.reader import SviteReader

__all__ = ["SviteReader"]
