"""What can be chosen in a supernet, and what each choice costs; NumPy only."""

from elastic_export.space.axes import Axis, Value
from elastic_export.space.cost import Costs, density, hardware_density, reduction_block
from elastic_export.space.space import Space
from elastic_export.space.spec import Spec

__all__ = [
    "Axis",
    "Costs",
    "Space",
    "Spec",
    "Value",
    "density",
    "hardware_density",
    "reduction_block",
]
