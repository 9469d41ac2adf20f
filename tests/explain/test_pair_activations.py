"""Encoder-decoders: activations are those of the model, planted heads of all kinds are named, chance names none."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.functions import forward
from zerotollm.data.tokens.suffix_array import suffix_array
from zerotollm.explain.ablation import ablated_losses, mean_outputs, with_output_biases
from zerotollm.explain.activations import LanguageModel
from zerotollm.explain.alignment import align
from zerotollm.explain.attention import punctuation_marks
from zerotollm.explain.explanation import ReferenceText, explain_text
from zerotollm.explain.generation import explain_translations
from zerotollm.explain.pair_activations import (
    Pair,
    even_pairs,
    pad_rows,
    record_pair,
    score_pair,
    text_pair,
)
from zerotollm.explain.pair_answers import ROLES, learning, pair_heads, role_masks, role_scores
from zerotollm.explain.words import token_counts
from zerotollm.model import layers
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.encoder_decoder import EncoderDecoder

CONTEXT = 24
SIDES = ("encoder", "decoder", "cross")


@pytest.fixture(scope="module")
def translator(tokenizer):
    """An untrained model with norms after sub-layers, sinusoids and biases, as in the paper."""
    model = TransformerConfig(
        architecture="encoder-decoder", num_layers=1, encoder_layers=2, width=16, num_heads=2, position="sinusoidal",
        biases="everywhere", tie_embeddings=True,
    )  # fmt: skip
    model = resolve(model, vocab_size=tokenizer.vocab_size, context=CONTEXT)
    row = np.zeros((1, 4), np.int32)
    return model, jax.jit(
        lambda: EncoderDecoder(model).init(
            jax.random.key(0), {"sources": row, "source_mask": row > -1, "inputs": row}
        )
    )()["params"]


@pytest.fixture(scope="module")
def pairs(tokenizer, text):
    sentences = [sentence for sentence in text.split(". ") if sentence][:12]
    return [text_pair(tokenizer, s, s.replace("And", "Then"), CONTEXT) for s in sentences]


def test_activations_are_those_of_the_model(translator, tokenizer, pairs):
    model, params = translator
    pair = Pair(pairs[0].source_S[:-3], pairs[0].target_T)
    recording = record_pair(LanguageModel(params, model, tokenizer), pair)
    T = len(pair.target_T)
    mask_BS = (np.arange(CONTEXT) < len(pair.source_S))[None]
    rows = recording.row.source_1S, mask_BS, recording.row.tokens_1S
    logits_BTV = np.asarray(forward(model)(params, *rows))
    np.testing.assert_allclose(recording.decoder_activations(T).logits_TV, logits_BTV[0, :T], atol=2e-5)
    log_p = np.log(np.exp(logits_BTV[0, :T]) / np.exp(logits_BTV[0, :T]).sum(-1, keepdims=True))
    np.testing.assert_allclose(recording.scores().nats_BT[0], -log_p[np.arange(T), pair.target_T], atol=1e-4)
    for side, shape in (("encoder", (2, 2)), ("decoder", (1, 2)), ("cross", (1, 2))):
        weights = recording.weights(side)
        assert weights.shape[:2] == shape
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)  # nothing goes to padding
    assert not np.triu(recording.weights("decoder"), 1).any()
    assert np.triu(recording.weights("encoder"), 1).any()
    assert recording.residual("encoder").shape == (3, len(pair.source_S), 16)


@pytest.fixture(scope="module")
def explanation(translator, tokenizer, tokens, pairs):
    model, params = translator
    reference = ReferenceText(tokens, np.concatenate([pair.target_T for pair in pairs]), pairs=tuple(pairs))
    return explain_text(
        params,
        model,
        tokenizer,
        "And Abia went",
        reference=reference,
        translate=lambda texts: ["Then Abia went"],
        fresh=lambda: iter([params, params]),
    )


def test_every_question_is_answered_and_chance_is_not_taken_for_a_role(explanation):
    said = explanation.sentences()
    assert not explanation.left_out
    assert set(said) == {
        "tokens", "embedding", "prediction", "calibration", "positions", "alignment",
        "layers", "attention", "heads", "ablation", "encoder_layers", "encoder_attention", "encoder_heads",
        "encoder_ablation", "cross_heads", "cross_ablation", "sources",
    }  # fmt: skip
    for name in ("heads", "encoder_heads", "cross_heads"):
        assert getattr(explanation, name).named() == {}
        assert getattr(explanation, name).score_PLH.value.shape[0] == len(
            ROLES[getattr(explanation, name).where]
        )
    for name in ("ablation", "encoder_ablation", "cross_ablation"):
        assert getattr(explanation, name).rise_LH.value.shape[1] == 2
    assert said["encoder_layers"].startswith("The encoder: in the embedding a token is one vector")
    for side in (explanation.encoder_layers, explanation.layers):
        assert side.fresh == 2
        assert side.learned == side.learned_context == (0, 0, 0)  # fresh models are the same model
        assert "that training made context tell them apart is not shown" in side.sentence()
    assert "of the encoder" in said["encoder_heads"]
    assert "of cross attention" in said["cross_ablation"]
    assert explanation.heads.repetition_gain is None
    assert "repeat" not in said["heads"]


def test_every_answer_has_a_picture_and_a_place(explanation):
    from zerotollm.explain.render.page_answers import answer_sections
    from zerotollm.explain.render.terminal import question_tables

    for name in explanation.sentences():
        assert getattr(explanation, name).show().panels
    shown = [item for _, items in question_tables(explanation) for item in items]
    written = [sentence for section in answer_sections(explanation, None) for sentence in section.sentences]
    for sentence in explanation.sentences().values():
        assert sentence in shown
        assert sentence in written


@pytest.mark.parametrize("side", SIDES)
def test_a_planted_role_is_named_and_even_attention_has_none(side, tokenizer, translator, pairs):
    """A head gives 0.8 of its attention to the tokens of a role, if there are any, and the rest evenly."""
    model, _ = translator
    mark_V = punctuation_marks(tokenizer, model)
    for role in ROLES[side]:
        seen = []
        for pair in pairs:
            queries_T = pair.target_T if side == "cross" else pair.source_S
            at = role_masks(side, queries_T, pair.source_S, mark_V)
            T, S = at[role].shape
            even_TS = np.tril(np.ones((T, S))) if side == "decoder" else np.ones((T, S))
            even_TS /= even_TS.sum(-1, keepdims=True)
            place_TS = at[role] * (even_TS > 0)
            any_T1 = place_TS.any(-1, keepdims=True)
            planted_TS = np.where(
                any_T1,
                0.2 * even_TS + 0.8 * place_TS / np.maximum(place_TS.sum(-1, keepdims=True), 1),
                even_TS,
            )
            weights = np.stack([planted_TS, even_TS])[None]
            seen.append((role_scores(weights, at), role_scores(even_TS[None, None], at)))
        named = pair_heads(side, seen).named()
        assert (0, 1) not in named
        if role not in ("same token", "punctuation", "first token"):  # those exist only for some queries
            assert named[0, 0] == role


def test_a_head_that_matters_is_found(translator, tokenizer, pairs):
    """Zero ablation of a head of cross attention is the same model without that head's output."""
    model, params = translator

    def losses(params):
        """Return the loss, and the losses without each head, (L, H) by kind of attention."""
        recording = record_pair(LanguageModel(params, model, tokenizer), pairs[0])
        means = mean_outputs([recording])
        ablated = {kind: ablated_losses(recording, kind, means[kind])[0, 0] for kind in means}
        return recording.scores().nats_BT.mean(), ablated

    whole, without = losses(params)
    assert {side: losses.shape for side, losses in without.items()} == {
        "encoder": (2, 2), "decoder": (1, 2), "cross": (1, 2),
    }  # fmt: skip
    silent = jax.tree.map(lambda x: x, params)
    output = np.array(silent["decoder"]["layer_0"]["cross_attention"]["output"])
    output[: model.head_width] = 0  # the first head writes nothing
    silent["decoder"]["layer_0"]["cross_attention"]["output"] = output
    silent_whole, silent_without = losses(silent)
    assert silent_without["cross"][0, 0] == pytest.approx(silent_whole, abs=1e-6)
    assert silent_whole == pytest.approx(without["cross"][0, 0], abs=1e-6)
    # Without the other head as well, the encoder has no effect.
    output[:] = 0
    deaf_whole, deaf_without = losses(silent)
    np.testing.assert_allclose(deaf_without["encoder"], deaf_whole, atol=1e-6)
    assert abs(without["encoder"] - whole).max() > 1e-7


@pytest.mark.parametrize("biases", ["everywhere", "none"])
def test_a_mean_ablation_of_pairs_is_the_models_own(translator, tokenizer, pairs, monkeypatch, biases):
    """Checked independently: a head's mixed values are replaced inside the model's own module, pair by pair."""
    model = replace(translator[0], biases=biases)
    row, draw = np.zeros((1, 4), np.int32), np.random.default_rng(0)
    params = EncoderDecoder(model).init(
        jax.random.key(1), {"sources": row, "source_mask": row > -1, "inputs": row}
    )["params"]
    params = jax.tree.map(lambda x: x + 0.1 * draw.standard_normal(x.shape, np.float32), params)
    places = {
        "encoder": (0, 1),
        "decoder": (2,),
        "cross": (3,),
    }  # in the order in which attention is computed

    def run(pair, change) -> tuple[float, list]:
        """Return the loss of one pair without padding, and the mixed values of each attention after `change`."""
        mixes = []

        def mixed(weights_BHTS, v_BKSC):
            mixes.append(change(len(mixes), mix_values(weights_BHTS, v_BKSC)))
            return mixes[-1]

        monkeypatch.setattr(layers, "mix_values", mixed)
        inputs_T = np.append(tokenizer.bos_id, pair.target_T[:-1])
        source_BS = pair.source_S[None]
        batch = {"sources": source_BS, "source_mask": source_BS > -1, "inputs": inputs_T[None]}
        readout = EncoderDecoder(model).apply({"params": params}, batch)  # not compiled: calls `mixed`
        log_p_BTV = jax.nn.log_softmax(readout.logits())
        return -np.take_along_axis(np.asarray(log_p_BTV)[0], pair.target_T[:, None], -1).mean(), mixes

    mix_values = layers.mix_values
    two = pairs[:2]
    whole = [run(pair, lambda place, x: x) for pair in two]
    assert [len(mixes) for _, mixes in whole] == [4, 4]
    biased, biased_model = with_output_biases(params, model)
    monkeypatch.setattr(layers, "mix_values", mix_values)
    recordings = [record_pair(LanguageModel(biased, biased_model, tokenizer), pair) for pair in two]
    means = mean_outputs(recordings)
    for recording, (loss, _) in zip(recordings, whole, strict=True):
        assert recording.scores().nats_BT.mean() == pytest.approx(loss, abs=2e-5)
    for side, at in places.items():
        losses = [ablated_losses(recording, side, means[side])[0, 1] for recording in recordings]
        for i, h in np.ndindex(len(at), 2):
            together = np.concatenate([np.asarray(mixes[at[i]])[0, h] for _, mixes in whole])
            value, place = together.mean(0), at[i]
            for pair, losses_LH in zip(two, losses, strict=True):
                expected, _ = run(pair, lambda n, x: x.at[:, h].set(value) if n == place else x)  # noqa: B023
                assert losses_LH[i, h] == pytest.approx(expected, abs=2e-5)


def test_rows_are_padded_and_pairs_spread(pairs):
    np.testing.assert_array_equal(
        pad_rows([np.array([1.0, 2]), np.array([3.0])], np.nan), [[1, 2], [3, np.nan]]
    )
    assert even_pairs(pairs, 3) == [pairs[0], pairs[5], pairs[11]]
    assert len(even_pairs(pairs, 99)) == len(pairs)


def test_alignment_ends_with_the_sentences(translator, tokenizer):
    model, params = translator
    pair = text_pair(tokenizer, "And Abia went to the sea", "who said the king", CONTEXT)
    answer = align(record_pair(LanguageModel(params, model, tokenizer), pair), pair, tokenizer)
    assert answer.weights_LHTS.shape == (1, 2, len(answer.target), len(answer.source))
    assert answer.source[-1] == answer.target[-1] == "</s>"


def test_a_model_without_cross_attention_is_not_said_to_heed_the_source(translator, tokenizer, pairs, tokens):
    model, params = translator
    deaf = jax.tree.map(lambda x: x, params)
    attention = deaf["decoder"]["layer_0"]["cross_attention"]
    for name in ("output", "output_bias"):
        attention[name] = np.zeros_like(attention[name])
    written = ["The king of Abia is in the sea."] * len(pairs)
    answer = explain_translations(LanguageModel(deaf, model, tokenizer), pairs, written, suffix_array(tokens))
    assert answer.real.coherence.value == answer.own.coherence.value == 0
    assert "not shown to heed the source" in answer.sentence()
    assert answer.sources[0] in tokenizer.decode(pairs[0].source_S)
    assert answer.own.longest_copy.value > 1
    assert answer.show().panels


def test_learning_of_pairs_has_no_induction(translator, tokenizer, pairs, tokens):
    model, params = translator
    counts_V = token_counts(tokens, tokenizer.vocab_size)
    answer = learning(
        [(step, LanguageModel(params, model, tokenizer)) for step in (0, 5)], tokenizer, pairs, counts_V
    )
    assert answer.loss_Y.value[0] == answer.loss_Y.value[1]
    assert answer.induction_Y is None
    assert answer.sentence().count("were learned is not shown") == 2
    assert "repeat" not in answer.sentence()
    every = [score_pair(LanguageModel(params, model, tokenizer), pair).nats_BT.mean() for pair in pairs]
    assert answer.loss_Y.value[0] == pytest.approx(np.mean(every), rel=1e-5)
    assert len(answer.show().panels) == 2
