"""Find the base array for each target array, and the base file for each target file.

Words: a match is a pair of a target array and a base array; a fingerprint is a number computed from a row; an anchor is
a pair of rows that fingerprints identify; a run is a series of consecutive row pairs.

Reading order:
    match_files     the counterpart of a file
    match_arrays    pairs of arrays: by name, content, nearest sample
    align_rows      pairs of rows in arrays that gained or lost rows
"""
