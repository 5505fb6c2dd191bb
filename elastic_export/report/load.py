"""Read a result file back, or say in two sentences why not."""

from __future__ import annotations

import json
from pathlib import Path

from elastic_export.config.problems import validated
from elastic_export.config.result import BuildResult
from elastic_export.errors import UserError

__all__ = ["RESULT_FILE", "load_result"]

RESULT_FILE = "report.json"
FIX = "Run elastic-export build again to write it anew."


def load_result(path: Path) -> BuildResult:
    """Read ``report.json``, or the one inside a folder.

    Raises:
        UserError: The file is missing, unreadable or truncated, of another schema version, or has
            keys or values that the schema does not know.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"There is no result file at {file}.",
            "Give the folder or the report.json that elastic-export build wrote.",
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"The result file {file} is not whole JSON: {error.msg} at line {error.lineno}.", FIX
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"The result file {file} cannot be read: {error}.", FIX) from error
    if not isinstance(data, dict) or "schema_version" not in data:
        raise UserError(f"The file {file} is not the result of a build.", FIX)
    return validated(BuildResult, data, f"the result file {file}", FIX)
