"""EleutherAI's evaluation harness (`pip install lm_eval`) on a run: its tasks, its metrics, our model.

>>> import lm_eval, zerotollm
>>> from zerotollm.lm_eval_adapter import harness_model
>>> lm_eval.simple_evaluate(harness_model(zerotollm.load("runs/base")), tasks=["my_task"], ...)["results"]
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.errors import RunError, UsageError
from zerotollm.evaluation.likelihood import log_likelihoods
from zerotollm.run import Run
from zerotollm.serving.generation import Generation, Request
from zerotollm.serving.scheduler import compile_programs, write_all

NEW_TOKENS = 256
"""Most tokens of an answer where a task does not say; the context may hold fewer."""


def harness_model(run: Run, rows: int = 16) -> Any:
    """The run as an `lm_eval.api.model.LM`, which scores and writes `rows` texts at once.

    What the context does not hold is cut off on the left; all of what is scored counts, in several windows where it is
    longer than the context. Raises UsageError for a model that does not write texts on,
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
            ids = [tokenizer.encode(request.args[0]) for request in requests]
            return [log_p for log_p, _ in self._score([_after_bos(tokenizer, ids_N) for ids_N in ids])]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            told: list[list[str]] = [[] for _ in requests]
            writings = []
            for request, pieces in zip(requests, told, strict=True):
                wanted = _wanted(run, *request.args[:2])
                writings.append(
                    Generation(
                        wanted, tokenizer, context, lambda piece, pieces=pieces: pieces.append(piece.text)
                    )
                )
            write_all(self._programs, writings)
            return ["".join(pieces) for pieces in told]

        def _score(self, texts: Sequence[tuple[np.ndarray, int]]) -> list[tuple[float, bool]]:
            """Of each text, (ids, how many of the last are scored): where those are more than the context holds, in
            windows, so that every one counts."""
            windows, owners = [], []
            for number, (ids_N, scored) in enumerate(texts):
                rolling = [(ids_N[:-scored], ids_N[-scored:])]
                if scored > context:
                    rolling = map(
                        utils.make_disjoint_window,
                        utils.get_rolling_token_windows(
                            token_list=ids_N[-scored:].tolist(),
                            prefix_token=int(ids_N[-scored - 1]),
                            max_seq_len=context,
                            context_len=1,
                        ),
                    )
                elif not scored:
                    continue
                for before, after in rolling:
                    window_N = np.array([*before, *after], np.int32)[-context - 1 :]
                    windows.append((window_N, len(after)))
                    owners.append(number)
            found = [(0.0, True)] * len(texts)
            scores = log_likelihoods(run.params, model, windows, num_tokens=tokenizer.vocab_size, rows=rows)
            for number, score in zip(owners, scores, strict=True):
                log_p, greedy = found[number]
                found[number] = (log_p + score.log_p, greedy and score.greedy)
            return found

        @cached_property
        def _programs(self) -> Any:
            return compile_programs(run.params, run.net, tokenizer, rows, context)

    return RunModel()


def _after_bos(tokenizer: AnyTokenizer, ids_N: np.ndarray) -> tuple[np.ndarray, int]:
    """(bos and the ids, how many these are)."""
    return np.append(tokenizer.bos_id, ids_N).astype(np.int32), len(ids_N)


def _encode_pair(tokenizer: AnyTokenizer, before: str, after: str) -> tuple[np.ndarray, int]:
    """(bos and the ids of both, how many are scored). Space between them is the second's, as in training.

    Scored is all from where the ids of both part from those of the first alone: a token that spans both is the
    second's. Where they never part, the second is encoded alone.
    """
    kept = before.rstrip()
    after = before[len(kept) :] + after
    known_N, whole_N = tokenizer.encode(kept), tokenizer.encode(kept + after)
    shorter = min(len(known_N), len(whole_N))
    parts = np.append(known_N[:shorter] != whole_N[:shorter], True)
    scored = len(whole_N) - int(np.argmax(parts))
    if not scored:
        alone_N = tokenizer.encode(after)
        whole_N, scored = np.append(known_N, alone_N), len(alone_N)
    return _after_bos(tokenizer, whole_N)[0], scored


def _wanted(run: Run, before: str, options: dict[str, Any]) -> Request:
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
    return Request(ids_N[-(context - most + 1) :], sampling, stop=stop)
