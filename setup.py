"""Map the reviewed data folders into the package; everything else is in pyproject.toml."""

from __future__ import annotations

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SHIPPED = "elastic_export._shipped"
FOLDERS = ("targets", "calibrate", "benchmarks")
# Only what matches is installed: the data, and no script that lies beside it.
DATA = ["*.yaml", "*/*.yaml"]


class BuildPy(build_py):
    """Install no Python file from the data folders: they are data, not packages."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Return the modules of a package; none for shipped data."""
        if package.startswith(SHIPPED):
            return []
        return super().find_package_modules(package, package_dir)


setup(
    packages=[*find_packages(include=["elastic_export*"]), *(f"{SHIPPED}.{f}" for f in FOLDERS)],
    package_dir={f"{SHIPPED}.{folder}": folder for folder in FOLDERS},
    package_data={
        "": ["py.typed", "*.j2", "*.html", "*.css", "*.js", "*.svg", "*.yaml", "templates/*"],
        **{f"{SHIPPED}.{folder}": DATA for folder in FOLDERS},
    },
    cmdclass={"build_py": BuildPy},
)
