"""The space: canonical specs, short names, whole populations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_export.errors import UserError
from elastic_export.space import Axis, Space, Spec, density, hardware_density

SPACE = Space(
    [
        Axis("width", (32, 48, 64)),
        Axis("depth", (1, 2, 3)),
        *(Axis(f"blocks.{i}.heads", (2, 4), ("depth", i)) for i in range(3)),
        *(Axis(f"blocks.{i}.nm", ("1:4", "2:4", "dense"), ("depth", i)) for i in range(3)),
    ]
)
rows = st.tuples(*(st.integers(0, len(axis.choices) - 1) for axis in SPACE.axes))


@given(rows)
def test_decoding_is_canonical_and_round_trips(row: tuple[int, ...]) -> None:
    genes = np.array(row)
    spec = SPACE.decode(genes)
    assert SPACE.canonical(spec) == spec
    assert SPACE.decode(SPACE.encode(spec)) == spec
    again = Spec.from_json(spec.to_json())
    assert (again, again.id, hash(again)) == (spec, spec.id, hash(spec))


@given(rows)
def test_canonical_genes_are_idempotent_and_silence_inactive_parts(row: tuple[int, ...]) -> None:
    once = SPACE.canonical_genes(np.array(row))
    assert (SPACE.canonical_genes(once) == once).all()
    depth = SPACE.axes[1].choices[row[1]]
    assert all(f"blocks.{i}.heads" not in SPACE.decode(once[0]) for i in range(depth, 3))


def test_networks_that_differ_only_in_inactive_genes_are_one_spec() -> None:
    a = SPACE.canonical({"depth": 1, "blocks.2.heads": 2})
    b = SPACE.canonical({"depth": 1, "blocks.2.heads": 4})
    assert a == b
    assert a.id == b.id


def test_the_ends() -> None:
    assert SPACE.min() == SPACE.canonical({"width": 32, "depth": 1, "heads": 2, "nm": "1:4"})
    assert SPACE.max()["blocks.2.nm"] == "dense"


def test_short_names_set_all_axes_of_a_kind() -> None:
    spec = SPACE.canonical({"heads": [4, 2], "nm": "2:4"})
    assert (spec["blocks.0.heads"], spec["blocks.1.heads"], spec["blocks.2.heads"]) == (4, 2, 4)
    assert {spec[f"blocks.{i}.nm"] for i in range(3)} == {"2:4"}


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"widht": 32}, 'Did you mean "width"?'),
        ({"width": 40}, "Choose one of 32, 48, 64"),
        ({"width": "32"}, "cannot be '32'"),
        ({"heads": [2, 2, 2, 2]}, "only 3 places"),
    ],
)
def test_impossible_choices_are_refused(choices: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        SPACE.canonical(choices)


def test_populations_are_seeded_canonical_and_cover_every_choice() -> None:
    genes = SPACE.sample_genes(np.random.default_rng(3), 500)
    assert (genes == SPACE.sample_genes(np.random.default_rng(3), 500)).all()
    assert (SPACE.canonical_genes(genes) == genes).all()
    assert ((genes.max(axis=0) + 1) == SPACE.counts).all()


def test_an_axis_may_only_depend_on_an_earlier_one() -> None:
    with pytest.raises(ValueError, match="not before it"):
        Space([Axis("a", (1, 2), ("b", 1)), Axis("b", (1, 2))])


def test_a_spec_of_another_space_has_another_id() -> None:
    other = Space([Axis("width", (32, 48, 64, 96)), *SPACE.axes[1:]])
    genes = dict(SPACE.min())
    assert SPACE.canonical(genes).id != other.canonical(genes).id


def test_densities() -> None:
    assert [density(p) for p in ("dense", "2:4", "1:4", "4:8")] == [1.0, 0.5, 0.25, 0.5]
    assert [hardware_density(p) for p in ("dense", "2:4", "1:4", "4:8")] == [1.0, 0.5, 0.5, 1.0]
    with pytest.raises(UserError, match="not a sparsity pattern"):
        density("5:4")
