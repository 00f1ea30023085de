"""The command line, `python -m pdutils`, and what runs the notebooks."""
