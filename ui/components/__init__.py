"""The parts that the screens share: views, forms, tables, units, blockers, the service handle.

Knows nothing of any single screen.
"""
