"""A run as a model of EleutherAI's evaluation harness (`pip install lm_eval`).

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
from zerotollm.errors import RunError
from zerotollm.evaluation.likelihood import log_likelihoods, require_language_model
from zerotollm.run import Run
from zerotollm.serving.generation import Generation, GenerationRequest, Piece
from zerotollm.serving.scheduler import Programs, compile_programs, write_all

NEW_TOKENS = 256  # default limit on the tokens of an answer; the context may hold fewer


def harness_model(run: Run, rows: int = 16) -> Any:
    """Return the run as an `lm_eval.api.model.LM`, which scores and generates `rows` texts at once.

    Prompts longer than the context are truncated on the left. Scored texts never are: they are scored in several
    windows. Raises UsageError for a model that does not continue texts, RunError where the harness is not installed.
    """
    require_language_model(run.experiment, run.path)
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
            texts: list[list[Piece]] = [[] for _ in requests]
            generations = [
                Generation(_generation_request(run, *request.args[:2]), tokenizer, context, pieces.append)
                for request, pieces in zip(requests, texts, strict=True)
            ]
            write_all(self._programs, generations)
            return ["".join(piece.text for piece in pieces) for pieces in texts]

        def _score(self, texts: Sequence[tuple[np.ndarray, int]]) -> list[tuple[float, bool]]:
            """Score texts of (ids, number of tokens at the end to score), in windows where the context is shorter."""
            windows, owners = [], []
            for number, (ids_N, scored) in enumerate(texts):
                rolling = [(ids_N[:-scored], ids_N[-scored:])]
                if scored > context:
                    tokens, prefix = ids_N[-scored:].tolist(), int(ids_N[-scored - 1])
                    overlapping = utils.get_rolling_token_windows(tokens, prefix, context, context_len=1)
                    rolling = map(utils.make_disjoint_window, overlapping)
                elif not scored:
                    continue
                for before, after in rolling:
                    window_N = np.array([*before, *after], np.int32)[-context - 1 :]
                    windows.append((window_N, len(after)))
                    owners.append(number)
            results = [(0.0, True)] * len(texts)
            scores = log_likelihoods(run.params, model, windows, num_tokens=tokenizer.vocab_size, rows=rows)
            for number, score in zip(owners, scores, strict=True):
                log_p, greedy = results[number]
                results[number] = (log_p + score.log_p, greedy and score.greedy)
            return results

        @cached_property
        def _programs(self) -> Programs:
            return compile_programs(run.params, run.net, tokenizer, rows, context)

    return RunModel()


def _after_bos(tokenizer: AnyTokenizer, ids_N: np.ndarray) -> tuple[np.ndarray, int]:
    """Return (bos and the ids, number of the ids)."""
    return np.append(tokenizer.bos_id, ids_N).astype(np.int32), len(ids_N)


def _encode_pair(tokenizer: AnyTokenizer, before: str, after: str) -> tuple[np.ndarray, int]:
    """Return (bos and the ids of both, number of ids to score). Space between them belongs to the second.

    Scoring starts where the ids of both together differ from those of the first alone: a token that spans both belongs
    to the second. Where they never differ, the second is encoded alone.
    """
    first = before.rstrip()
    after = before[len(first) :] + after
    known_N, joined_N = tokenizer.encode(first), tokenizer.encode(first + after)
    shorter = min(len(known_N), len(joined_N))
    differs = np.append(known_N[:shorter] != joined_N[:shorter], True)
    scored = len(joined_N) - int(np.argmax(differs))
    if not scored:
        alone_N = tokenizer.encode(after)
        joined_N, scored = np.append(known_N, alone_N), len(alone_N)
    return _after_bos(tokenizer, joined_N)[0], scored


def _generation_request(run: Run, before: str, options: dict[str, Any]) -> GenerationRequest:
    until = options.get("until") or []
    context = run.model_config.max_length
    limit = options.get("max_gen_toks") or options.get("max_tokens")
    most = min(limit, context - 1) if limit else max(1, min(NEW_TOKENS, context // 2))
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
    return GenerationRequest(ids_N[-(context - most + 1) :], sampling, stop=stop)
