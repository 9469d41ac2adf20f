"""The page of a run's model, with what was measured of its 8 bits."""

from zerotollm.components import dataset_of
from zerotollm.data.tokens.pretrained import PretrainedTokenizer
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import makes_tokenizer, translates
from zerotollm.programs.html_program import Facts, page
from zerotollm.programs.quantized import Agreement, compare
from zerotollm.programs.vocabulary import vocabulary
from zerotollm.run import Run

EMBEDDED = 10_000_000
"""Most parameters of a model that a report embeds: each is a byte of the file."""


def embedded_page(run: Run) -> str | None:
    """Return the page of a run's model for its report; None for a large model, and for one that a page cannot hold."""
    if run.num_parameters > EMBEDDED or run.model_config.encoder_layers:
        return None
    try:
        vocabulary(run.tokenizer)
    except UsageError:
        return None
    return page(run.params, run.model_config, run.tokenizer, page_facts(run))


def page_facts(run: Run) -> Facts:
    """Return what the page says of a run's model; compares 8 bits with float32 on the run's held-out text."""
    return Facts(
        title=run.experiment.name,
        corpus=run.experiment.data.corpus,
        step=run.step,
        bpb=run.validation_bpb,
        agreement=_agreement(run),
        sampling=run.experiment.sample,
        chats=run.trained_on_conversations,
        translates=translates(run.experiment),
    )


def _agreement(run: Run) -> Agreement | None:
    """Return how often 8 bits keep the likeliest token of held-out text; None where the text is not here."""
    made_here = makes_tokenizer(run.experiment) and not isinstance(run.tokenizer, PretrainedTokenizer)
    tokenizer = None if made_here else run.tokenizer
    try:
        feed = dataset_of(run.experiment, tokenizer=tokenizer)
        batches = feed.evaluation("validation")
    except (UsageError, RunError, OSError):
        return None
    vocab_size = run.tokenizer.vocab_size
    same_text = feed.tokenizer == run.tokenizer
    return compare(run.net, run.params, batches, vocab_size, run.tokenizer.pad_id) if same_text else None
