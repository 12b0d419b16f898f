"""Operators: one folder each."""
