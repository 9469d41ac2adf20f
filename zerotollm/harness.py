"""EleutherAI's evaluation harness (`pip install lm_eval`) on a run: its tasks, its metrics, our model.

>>> import lm_eval, zerotollm
>>> from zerotollm.harness import harness_model
>>> lm_eval.simple_evaluate(harness_model(zerotollm.load("runs/base")), tasks=["my_task"], ...)["results"]
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from zerotollm.errors import RunError, UsageError
from zerotollm.evaluation.likelihood import log_likelihoods
from zerotollm.run import Run
from zerotollm.serving.batch import compile_programs, write_all
from zerotollm.serving.writing import Wanted, Writing

NEW_TOKENS = 256
"""Most tokens of an answer where a task does not say; the context may hold fewer."""


def harness_model(run: Run, rows: int = 16) -> Any:
    """The run as an `lm_eval.api.model.LM`, which scores and writes `rows` texts at once.

    What the context does not hold is cut off on the left. Raises UsageError for a model that does not write texts on,
    RunError where the harness is not installed.
    """
    if run.model_config.architecture == "encoder-decoder" or run.model_config.num_classes:
        raise UsageError(f"{run.path} holds no model that writes a text on, and the harness asks for one")
    try:
        from lm_eval import utils
        from lm_eval.api.model import LM
    except ImportError:
        raise RunError("EleutherAI's harness is not installed: pip install lm_eval") from None
    model, tokenizer = run.model_config, run.tokenizer
    context = model.max_length

    class RunModel(LM):
        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return self._score([_encode_pair(tokenizer, *request.args[:2]) for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            windows, owners = [], []
            for number, request in enumerate(requests):
                rolling = utils.get_rolling_token_windows(
                    token_list=tokenizer.encode(request.args[0]).tolist(),
                    prefix_token=tokenizer.bos_id,
                    max_seq_len=context,
                    context_len=1,
                )
                for before, after in map(utils.make_disjoint_window, rolling):
                    windows.append((np.array([*before, *after], np.int32), len(after)))
                    owners.append(number)
            totals = [0.0] * len(requests)
            for number, (log_p, _) in zip(owners, self._score(windows), strict=True):
                totals[number] += log_p
            return totals

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            told: list[list[str]] = [[] for _ in requests]
            writings = []
            for request, pieces in zip(requests, told, strict=True):
                wanted = _wanted(run, *request.args[:2])
                writings.append(
                    Writing(
                        wanted, tokenizer, context, lambda piece, pieces=pieces: pieces.append(piece.text)
                    )
                )
            write_all(self._programs, writings)
            return ["".join(pieces) for pieces in told]

        def _score(self, texts: Sequence[tuple[np.ndarray, int]]) -> list[tuple[float, bool]]:
            cut = [(ids_N[-context - 1 :], min(scored, context)) for ids_N, scored in texts]
            scores = log_likelihoods(run.params, model, cut, num_tokens=tokenizer.vocab_size, rows=rows)
            return [tuple(score) for score in scores]

        @cached_property
        def _programs(self) -> Any:
            return compile_programs(run.params, model, tokenizer, rows, context)

    return RunModel()


def _encode_pair(tokenizer: Any, before: str, after: str) -> tuple[np.ndarray, int]:
    """(bos and the ids of both, how many are of the second). Space between them is the second's, as in training."""
    kept = before.rstrip()
    after = before[len(kept) :] + after
    known = 1 + len(tokenizer.encode(kept))
    ids_N = np.append(tokenizer.bos_id, tokenizer.encode(kept + after)).astype(np.int32)
    return ids_N, len(ids_N) - min(known, len(ids_N))


def _wanted(run: Run, before: str, options: dict[str, Any]) -> Wanted:
    """The text that a task asks for: greedy, unless it says otherwise."""
    until = options.get("until") or []
    context = run.model_config.max_length
    asked = options.get("max_gen_toks") or options.get("max_tokens")
    most = min(asked, context - 1) if asked else max(1, min(NEW_TOKENS, context // 2))
    draws = options.get("do_sample", options.get("temperature", 0.0) > 0)
    sampling = replace(
        run.experiment.sample,
        max_tokens=most,
        temperature=options.get("temperature", 1.0) if draws else 0.0,
        top_k=options.get("top_k", 0),
        top_p=options.get("top_p", 1.0),
        min_p=options.get("min_p", 0.0),
    )
    ids_N = np.append(run.tokenizer.bos_id, run.tokenizer.encode(before)).astype(np.int32)
    stop = (until,) if isinstance(until, str) else tuple(s for s in until if s)
    return Wanted(ids_N[-(context - most + 1) :], sampling, stop=stop)
