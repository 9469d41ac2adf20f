"""Training: optimizers, objectives, the train step, adapters, checkpoints and metrics.

Sessions, actions, studies, planning and `zerotollm.components` import it; it imports model, sharding and host.
"""
