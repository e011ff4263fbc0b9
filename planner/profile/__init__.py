"""Measuring Get_Time on this machine with PyTorch: products, fused attention and collectives, as a table for the planner."""
