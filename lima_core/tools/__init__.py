"""Commands beside the verbs: `python -m lima_core.tools.<name> --help`."""
