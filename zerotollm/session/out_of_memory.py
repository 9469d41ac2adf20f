"""The error when the device has no memory left: what takes most, and which option takes less."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jax.errors import JaxRuntimeError

from zerotollm.errors import RunError
from zerotollm.experiment import Experiment
from zerotollm.model.accelerator import this_accelerator
from zerotollm.planning.fit_memory import LIGHTER
from zerotollm.planning.memory import memory_by_kind
from zerotollm.session.job import job_for


@contextmanager
def out_of_memory_explained(experiment: Experiment, run_dir: Path) -> Iterator[None]:
    """Turn jax's error of many lines into a RunError of one. Other errors pass."""
    try:
        yield
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(_explanation(experiment, run_dir)) from None


def step_bytes_on_host(experiment: Experiment) -> int:
    """Return the bytes of host memory for the arrays of a train step: 0 on a device with memory of its own.

    The experiment's model is resolved.
    """
    accelerator = this_accelerator()
    if accelerator.platform != "cpu":
        return 0
    return sum(memory_by_kind(job_for(experiment, accelerator)).values())


def _explanation(experiment: Experiment, run_dir: Path) -> str:
    """Name the two largest kinds of memory and what helps; first what may change in the same run."""
    job = job_for(experiment, this_accelerator())
    kinds = memory_by_kind(job)
    largest = sorted(kinds, key=kinds.__getitem__, reverse=True)[:2]
    sizes = " and ".join(f"{kind} {kinds[kind] / 1e9:.2f} GB" for kind in largest)
    lighter, micro_batches = LIGHTER[job.compute.remat][1:], job.train.micro_batches
    if lighter and "activations" in largest:
        advice = f"the same command with --compute.remat {lighter[0]} resumes with less"
    elif job.compute.cross_entropy == "plain" and "logits" in largest:
        advice = "the same command with --compute.cross-entropy chunked resumes with less"
    elif job.batch_size > micro_batches:
        more = next(n for n in range(micro_batches + 1, job.batch_size + 1) if job.batch_size % n == 0)
        advice = f"start a new run with --train.micro-batches {more} and another --run-dir"
    else:
        advice = "take a smaller model, or optimizer.moments bfloat16, and another --run-dir"
    return (
        f"out of memory: about {sum(kinds.values()) / 1e9:.2f} GB are needed, {sizes} of them; {advice} "
        f"(see the action plan); checkpoints in {run_dir} are intact"
    )
