"""When the device has no memory left: what takes it, and which option takes less."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zerotollm.errors import RunError
from zerotollm.experiment import Experiment

LIGHTER = {"none": "dots", "dots": "full"}


@contextmanager
def out_of_memory_explained(experiment: Experiment, run_dir: Path) -> Iterator[None]:
    """Turns jax's error of many lines into a RunError of one. Other errors pass."""
    try:
        yield
    except RuntimeError as error:
        from jax.errors import JaxRuntimeError

        if not isinstance(error, JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(explanation(experiment, run_dir)) from None


def step_bytes_on_host(experiment: Experiment) -> int:
    """Bytes of host memory that the arrays of a train step take: none where the device has memory of its own.
    The experiment's model is resolved."""
    from zerotollm.model.accelerator import this_accelerator
    from zerotollm.planning.memory import memory_by_kind
    from zerotollm.session.job import job_for

    accelerator = this_accelerator()
    if accelerator.platform != "cpu":
        return 0
    return sum(memory_by_kind(job_for(experiment, accelerator)).values())


def explanation(experiment: Experiment, run_dir: Path) -> str:
    """What to say: the two largest kinds of memory, and what helps, best what may change in the same run."""
    from zerotollm.model.accelerator import this_accelerator
    from zerotollm.planning.memory import memory_by_kind
    from zerotollm.session.job import job_for

    job = job_for(experiment, this_accelerator())
    kinds = memory_by_kind(job)
    largest = sorted(kinds, key=kinds.get, reverse=True)[:2]
    takes = " and ".join(f"{kind} {kinds[kind] / 1e9:.2f} GB" for kind in largest)
    remat, parts = job.compute.remat, job.train.micro_batches
    if remat in LIGHTER and "activations" in largest:
        advice = f"the same command with --compute.remat {LIGHTER[remat]} goes on with less"
    elif job.compute.cross_entropy == "plain" and "logits" in largest:
        advice = "the same command with --compute.cross-entropy chunked goes on with less"
    elif job.batch_size > parts:
        more = next(n for n in range(parts + 1, job.batch_size + 1) if job.batch_size % n == 0)
        advice = f"start anew with --train.micro-batches {more} and another --run-dir"
    else:
        advice = "take a smaller model, or optimizer.moments bfloat16, and another --run-dir"
    return (
        f"out of memory: of about {sum(kinds.values()) / 1e9:.2f} GB, {takes}; {advice} "
        f"(see the action plan); checkpoints in {run_dir} are intact"
    )
