"""Fuzzing: `python -m torture.fuzz`. Each target is one parser of untrusted bytes; `make test` runs a small count.

Words: a target is a parser with its seeds and the errors that it may raise, a case is one changed seed.

Reading order:
    mutations.py   changes of bytes, JSON documents and lines of text
    targets.py     the targets, except for patches
    patch.py       patches of every codec, with corrected checksums
    run.py         `fuzz`: run a target for a fixed count, within limits of time and memory
    __main__.py    the command; `--coverage` lets atheris choose the changes by coverage, if it is installed

Rules:
1. A run is determined by its target, its count and its seed.
2. A case ends in a result or in an error of the target's list. Any other exception is a failure, as is a case that
   takes more than MAX_CASE_S of processor time, and a run that takes more memory than its target allows.
3. The bytes of a failure are written to build/fuzz/TARGET. After the mend they become a vector: torture/corpus/TARGET
   (tests/torture replays it).
"""
