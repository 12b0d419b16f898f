"""Trace a network, plan, rewrite it with its weights, save and load the result."""
