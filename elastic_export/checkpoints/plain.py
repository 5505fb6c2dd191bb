"""Plain networks with timm's parameter names."""

from __future__ import annotations

from collections.abc import Mapping

from elastic_export.checkpoints.reader import Imported, Source
from elastic_export.checkpoints.readers import register_reader
from elastic_export.checkpoints.safe import state_dict_of
from elastic_export.elastic import Supernet
from elastic_export.errors import UserError
from elastic_export.families import families, get_family
from elastic_export.families.registry import family_config

__all__ = ["TimmReader"]


@register_reader
class TimmReader:
    """Names and shapes as ``timm.create_model(...).state_dict()`` has them."""

    name = "timm"
    system = "a plain network with timm's names"

    def claims(self, source: Source) -> bool:
        """Anything that is a file; what it is not, :meth:`read` says."""
        return not source.path.is_dir()

    def read(self, source: Source) -> Imported:
        """Find the family by its marks, its config by shapes and the settings given."""
        found = state_dict_of(source.loaded)
        shapes = {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}
        name = source.family or _guess(source, shapes)
        family = get_family(name)
        try:
            recognised = family.recognise(shapes, source.config)
        except UserError as error:
            others = [n for n in _matching(shapes) if n != name]
            if others:
                raise UserError(
                    f"{source.path} is not a checkpoint of family {name}: its names are those of "
                    f"{others[0]}.",
                    f"Set model.family to {others[0]}.",
                ) from error
            raise
        config = family_config(family, recognised.model_dump(mode="json"))
        supernet = Supernet.of_state(family, config, found.tensors)
        return Imported(supernet, self.name, stored=found.collections, used=found.name)


def _matching(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [name for name, family in families().items() if all(m in shapes for m in family.marks)]


def _guess(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> str:
    names = _matching(shapes)
    if not names:
        examples = ", ".join(list(shapes)[:3])
        raise UserError(
            f"{source.path} holds {len(shapes)} tensors ({examples}, ...), which are of no known "
            "family.",
            f"Known families with timm's names: {', '.join(families())}.",
        )
    return names[0]
