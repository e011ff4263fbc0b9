"""Sweeps: many problems from one file, each solved once, stored whole, found again by query."""
