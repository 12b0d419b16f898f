"""The clock: standard and rewritten networks side by side, in several runtimes, checked before they are timed."""
