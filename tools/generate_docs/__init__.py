"""Generate the pages of docs/ that follow from the code; run it with `make docs`.

Files:
    __main__.py       write all pages
    error_page.py     docs/errors.md, from the docstrings of the error classes
    cli_page.py       docs/cli.md, from `--help` of both command lines
    state_diagram.py  docs/state-machine.md, from the tables of the update state machine
"""
