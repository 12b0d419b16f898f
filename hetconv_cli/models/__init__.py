"""Where a MODEL argument comes from, how it is built, and its example input.

`catalog`, `source` and `example` are plain data and import no torch; `build` makes the module.
"""
