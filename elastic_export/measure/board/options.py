"""What the script on the board can be told."""

import argparse

__all__ = ["option_parser"]


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("it must be a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return value


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of ``probe`` and ``run``; ``own`` of what it parses is the subparser."""
    defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="on_device.py", description="Measures the models of a bundle on this machine."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True
    probe = commands.add_parser("probe", help="print what this machine is, as JSON")
    probe.set_defaults(own=probe)
    run = commands.add_parser("run", help="build, check and measure", formatter_class=defaults)
    run.set_defaults(own=run)
    nothing = argparse.SUPPRESS
    run.set_defaults(bundle=None, out=None, precision=None, trtexec=None, engine_dir=None)
    run.add_argument(
        "bundle", nargs="?", default=nothing, help="bundle folder (default: where the script lies)"
    )
    run.add_argument(
        "--with",
        dest="also",
        action="append",
        default=[],
        metavar="BUNDLE",
        help="another bundle, measured in turn with the first; may be repeated",
    )
    run.add_argument(
        "--out",
        default=nothing,
        help="the result, JSON (default: beside the bundle, as BUNDLE.result.json)",
    )
    run.add_argument(
        "--precision",
        action="append",
        default=nothing,
        help="measure only this one; may be repeated (default: all)",
    )
    run.add_argument("--seconds", type=_positive, default=15.0, help="measured time of each model")
    run.add_argument("--rounds", type=_count, default=10, help="samples of each model")
    run.add_argument("--warmup-ms", type=_count, default=1000, help="before each sample")
    run.add_argument("--idle-seconds", type=_positive, default=5.0, help="to see the idle power")
    run.add_argument("--threads", type=_count, default=1, help="of ONNX Runtime")
    run.add_argument(
        "--runtime",
        default="auto",
        choices=["auto", "trtexec", "tensorrt", "onnxruntime"],
        help="what executes the models; auto takes what the bundle is made for",
    )
    run.add_argument("--trtexec", default=nothing, help="path of trtexec (default: JetPack's)")
    run.add_argument(
        "--engine-dir",
        default=nothing,
        help="where engines go (default: beside the bundle, in BUNDLE.engine)",
    )
    run.add_argument("--no-clocks", action="store_true", help="leave the clocks alone")
    run.add_argument("--no-power", action="store_true", help="read no power")
    run.add_argument("--no-profile", action="store_true", help="no second run for layer times")
    run.add_argument("--fresh", action="store_true", help="measure finished models again")
    run.add_argument("--progress", default="plain", choices=["plain", "json"], help="on stderr")
    run.add_argument("--detached", action="store_true", help="go on when the connection is lost")
    parser.set_defaults(detached=False, progress="plain", out=None)
    return parser
