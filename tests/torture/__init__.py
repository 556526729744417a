"""Torture: every promise that a quiet test cannot break, under processes and threads that try to.

``python -m tests.torture`` runs all parts, ``python -m tests.torture NAME ...`` some, with the numbers that count;
``tests/house/test_torture.py`` runs each with small ones. Each part works in a network namespace of its own.
"""
