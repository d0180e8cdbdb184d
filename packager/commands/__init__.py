"""Commands of `packager`: each parses its arguments, calls the library and prints the result.

Reading order: `root` (the command line and its errors), `options` (shared options and the keys that they name), then
one module per noun: `release`, `bundle`, `patch`, `quantize`, `repo` and `signing`, `rollout`, `device`,
`attestation`, `keys`, `demo`.
"""
