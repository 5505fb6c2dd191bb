from __future__ import annotations

from io import StringIO

from rich.console import Console, Group

from elastic_export.cli.inspected import readable
from elastic_export.cli.output import Output
from elastic_export.cli.tables import facts


def _shown(told: dict[str, object]) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(facts(readable(told)))
    return console.export_text()


def test_many_axes_become_a_line_for_each_kind() -> None:
    axes = {"width": [32, 64], **{f"blocks.{i}.heads": [2, 4] for i in range(300)}}
    axes |= {f"blocks.{i}.mlp_ratio": [2.3958333, 4.0] for i in range(299)}
    axes["blocks.299.mlp_ratio"] = [4.0]
    text = _shown({"kind": "supernet", "axes": axes})
    assert "300 x 2, 4" in text
    assert "299 x 2.396, 4; 1 x 4" in text
    assert "up to 10^" in text
    assert len(text.splitlines()) < 10
    assert readable({"axes": {"a": [1, 2], "b": [1, 2, 3]}})["descendants"] == "6"


def test_ignored_keys_are_counted_by_reason() -> None:
    told = {"ignored": {"belongs to the optimizer": ["a", "b", "c", "d"], "unused": ["x"]}}
    assert readable(told)["ignored"].splitlines() == [
        "4 keys (a, b, c, ...): belongs to the optimizer",
        "1 key (x): unused",
    ]


def test_zeros_are_listed_by_layer_up_to_a_screen() -> None:
    text = _shown({"zeros": {f"blocks.{i}.w": 0.5 + i / 1000 for i in range(60)}})
    assert "60 tensors, 50.0% to 55.9%" in text
    assert "blocks.0.w" in text
    assert "36 more; --json lists all" in text
    assert "none" in _shown({"zeros": {}})


def test_costs_settings_and_what_is_missing() -> None:
    told = {
        "macs": [62_900_000, 1_250_000_000],
        "params": 123,
        "config": {"nm_of": {"a": [1]}, "heads": [3], "table": [[1, 2]] * 400, "none": None},
        "official_costs": {"min": {"flops_m": 62.9}},
        "notes": ["One.", "Two."],
        "unusable": {"what": "The number of heads is not stored.", "fix": "Give --set heads=[3]."},
    }
    text = _shown(told)
    for part in ("62.9 M to 1.25 G", "123", "1 entries", "flops_m 62.9", "Two.", "heads=[3]"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 200


def test_what_a_file_says_does_not_reach_the_terminal_as_it_is() -> None:
    assert "\x1b" not in _shown({"others": ["\x1b[2Jgone", "[bold]x"], "\x1bname": 1})
    assert "[bold]x" in _shown({"others": ["[bold]x"]})


def test_what_a_person_reads_is_no_markup() -> None:
    shown = StringIO()
    output = Output(shown, as_json=False, quiet=False, verbose=False)
    output.result({}, Group("Note: pip install 'elastic-export[rtx]'", facts({"at": ":cat:"})))
    assert "'elastic-export[rtx]'" in shown.getvalue()
    assert ":cat:" in shown.getvalue()


def test_other_kinds_stay_as_they_are() -> None:
    told = {"kind": "onnx", "nodes": {"Conv": 3}, "bytes": 10}
    assert readable(told) == told
