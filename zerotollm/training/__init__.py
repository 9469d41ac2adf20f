"""Pure functions of training (objective, optimizer, train step, adapters) and the files that a run writes.

Components, run, sessions, studies and actions may import it; it imports model and sharding, but no experiment.
"""
