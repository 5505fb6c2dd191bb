"""Run the command line as ``python -m elastic_export``."""

from elastic_export.cli.app import main

if __name__ == "__main__":
    main()
