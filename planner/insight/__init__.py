"""Insight: plans side by side, and what binds one, what would help it, and how far it is from what no plan can beat."""
