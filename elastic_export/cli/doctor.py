"""``elastic-export doctor``: what works on this machine, and what to install."""

from __future__ import annotations

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, StoreOption, VerboseOption

__all__ = ["doctor"]

_MARKS = {"ok": "ok", "absent": "-", "missing": "MISSING", "broken": "BROKEN"}


def doctor(
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check what works on this machine; exit code 1 when something needed does not."""
    with command(as_json, quiet, verbose) as output:
        from dataclasses import asdict

        import elastic_export
        from elastic_export.artifacts.store import Store
        from elastic_export.cli.probes import run_probes
        from elastic_export.cli.tables import table

        with output.task("Looking at this machine"):
            checks = run_probes(Store(store).root)
        wrong = [check for check in checks if check.status in ("missing", "broken")]
        data = {
            "version": elastic_export.__version__,
            "ok": not wrong,
            "checks": [asdict(check) for check in checks],
        }
        rows = [(check.name, _MARKS[check.status], check.detail, check.fix) for check in checks]
        output.result(
            data,
            table(("", "", "found", "to do"), rows),
            short="\n".join(f"{check.name}: {check.fix or check.detail}" for check in wrong),
        )
        if wrong:
            raise typer.Exit(1)
