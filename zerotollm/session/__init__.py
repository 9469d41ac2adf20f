"""What several actions share: devices, the compiled training, resuming, the run log, progress and benchmarks.

Studies and actions may import it; it imports everything below: run, evaluation, planning and components.
"""
