"""How far whole plans are from published measurements: rows to plans, their prices, and the score."""
