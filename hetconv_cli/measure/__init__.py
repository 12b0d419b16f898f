"""Counts: by the equations, by other people's counters while a forward pass runs, and of what really runs."""
