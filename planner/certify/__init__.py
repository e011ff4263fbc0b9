"""Certificates of searches, and their verification by code that shares nothing with the search but the price of an operator."""
