"""Checkpoint folders that cannot be used: one line each, which says the file, the field or the tensor."""

import json
import pickle
import re
import shutil
from dataclasses import fields
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.errors import RunError, UsageError
from zerotollm.interop.folder import FAMILIES, read_model, read_params, read_tokenizer
from zerotollm.interop.huggingface import family_of, write_folder
from zerotollm.interop.weights import parameter_shapes
from zerotollm.model.config import TransformerConfig, resolve

MODEL = TransformerConfig(num_layers=1, width=16, num_heads=2, tie_embeddings=True)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    tokenizer = train_tokenizer(TokenizerConfig("char", 20, byte_fallback=False), ["abc abc\n"])
    model = resolve(MODEL, vocab_size=tokenizer.vocab_size, context=16)
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), parameter_shapes(model))
    folder = tmp_path_factory.mktemp("good") / "model"
    write_folder(folder, params, model, tokenizer, "")
    return folder


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return shutil.copytree(good, tmp_path / "model")


def read(folder):
    family, file, model = read_model(folder)
    return read_params(folder, family, model), read_tokenizer(folder, family, file, model)


def refused(folder, kind=UsageError) -> str:
    with pytest.raises(kind) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **changes) -> None:
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value != "absent"}))


def tensors(folder, change) -> None:
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors")


def test_the_good_folder_is_read(folder):
    params, tokenizer = read(folder)
    assert params["embedding"].shape == (64, 16)
    assert tokenizer.decode(tokenizer.encode("ab c")) == "ab c"


def test_a_tensor_of_another_shape(folder):
    tensors(folder, lambda found: found.update({QUERY: np.ones((16, 8), np.float32)}))
    assert re.search(rf"{QUERY} in .* has shape 16 x 8, and config.json asks for 16 x 16", refused(folder))


def test_a_vocabulary_of_another_size(folder):
    tensors(folder, lambda found: found.update({"model.embed_tokens.weight": np.ones((70, 16), np.float32)}))
    assert "model.embed_tokens.weight" in refused(folder)
    assert "70 x 16, and config.json asks for 64 x 16" in refused(folder)


def test_a_tensor_too_few_and_one_too_many(folder):
    tensors(folder, lambda found: found.update({"model.layers.1.mlp.up_proj.weight": found.pop(QUERY)}))
    message = refused(folder)
    assert f"1 missing: {QUERY}" in message
    assert "1 surplus: model.layers.1.mlp.up_proj.weight" in message


def test_numbers_that_are_none_of_ours(folder):
    tensors(folder, lambda found: found.update({QUERY: np.ones((16, 16), np.int8)}))
    assert f"{QUERY} in" in refused(folder)
    assert "holds I8" in refused(folder)


def test_a_head_that_should_be_the_embedding(folder):
    tensors(folder, lambda found: found.update({"lm_head.weight": np.zeros((64, 16), np.float32)}))
    assert "lm_head.weight" in refused(folder)
    tensors(folder, lambda found: found.update({"lm_head.weight": np.ones((64, 16), np.float32)}))
    read(folder)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_never_opened(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    message = refused(folder, UsageError if name.endswith("bin") else RunError)
    assert ("is a pickle" if name.endswith("bin") else "no safetensors file") in message
    assert name in message
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_file_cut_short(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert re.search(r"model.safetensors is damaged .*get it again", refused(folder, RunError))


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refused(folder)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {"a": "../x.safetensors"}}, "names the file '../x.safetensors', which is not in"),
        ({"weight_map": {"a": "absent.safetensors"}}, "cannot read .*absent.safetensors"),
        ({"weight_map": {"a": "model.safetensors"}}, "says that a is in model.safetensors, and it is not"),
    ],
)
def test_an_index_that_lies(folder, index, says):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert re.search(says, refused(folder))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba', and only qwen3, llama"),
        ({"hidden_size": "absent"}, "hidden_size is None, and must be a whole number above 0"),
        ({"hidden_size": 16.5}, "hidden_size is 16.5, and must be a whole number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', and must be a number"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', and only 'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is 'sliding_attention'"),
        (
            {"rope_parameters": {"rope_type": "linear"}},
            "rope_parameters.factor is None, and must be a number",
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "model.rope_factor is 0.5"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": "8"}},
            "rope_parameters.factor is '8', and must",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}},
            "rope_parameters.original_max_position_embeddings is None",
        ),
        (
            {"rope_parameters": LLAMA3 | {"low_freq_factor": 2.0}},
            "rope_parameters.low_freq_factor is 2.0, and only 1.0 is supported",
        ),
        ({"rope_parameters": LLAMA3 | {"attention_factor": 2.0}}, "rope_parameters.attention_factor is 2.0"),
        ({"rope_scaling": LLAMA3}, "rope_parameters and rope_scaling differ"),
        ({"rope_type": "linear", "factor": 2.0}, "rope_type is 'linear'"),
        ({"rope_scaling": {"rope_type": None, "type": "yarn", "factor": 4.0}}, "rope_scaling.type is 'yarn'"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_parameters.rope_type is ['yarn']"),
        ({"rope_parameters": {"rope_theta": 10000.0, "factor": 2.0}}, "rope_parameters.factor is 2.0"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor is 2.0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type is 'dynamic'"),
        (
            {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1]}},
            "rope_scaling.mrope_section is [1, 1]",
        ),
        (
            {"rope_scaling": {"rope_type": "default", "type": "linear"}},
            "rope_type and rope_scaling.type differ",
        ),
        ({"rope_scaling": {"rope_theta": 500.0}}, "rope_theta is both 500.0 and 10000.0"),
        ({"rope_theta": 500.0}, "rope_theta is both 500.0 and 10000.0"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_parameters.full_attention is {",
        ),
        ({"rope_parameters": "yarn"}, "rope_parameters is 'yarn', and must be an object"),
        ({"rope_type": "yarn"}, "rope_type is 'yarn'"),
        ({"rope_ratio": 2.0}, "rope_ratio is 2.0"),
        ({"rope_interleaved": True}, "rope_interleaved is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta is 'big', and must be a number"),
        ({"model_type": "mistral", "sliding_window": -1}, "sliding_window is -1"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0], and must hold"),
        ({"model_type": "smollm3", "no_rope_layers": "none"}, "no_rope_layers is 'none', and must hold"),
        ({"model_type": "smollm3", "no_rope_layer_interval": "x"}, "no_rope_layer_interval is 'x'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"num_key_value_heads": 3}, "describes no valid model: model.num_kv_heads 3 does not divide"),
        ({"eos_token_id": "absent"}, "eos_token_id is missing"),
        ({"eos_token_id": 99}, "need 100 rows of the embedding, and vocab_size is 64"),
        ({"bos_token_id": "x"}, "bos_token_id is 'x'"),
    ],
    ids=str,
)
def test_a_config_that_we_cannot_follow(folder, changes, says):
    edit(folder / "config.json", **changes)
    message = refused(folder)
    assert says in message
    assert "config.json" in message


def test_every_stop_id_and_the_chat_template_are_read(folder):
    edit(folder / "config.json", eos_token_id=[1, 3])
    edit(folder / "generation_config.json", eos_token_id=[5, 1])
    edit(folder / "tokenizer_config.json", chat_template="{{ eos_token }}", eos_token={"content": "</s>"})
    _, tokenizer = read(folder)
    assert (tokenizer.stop_id, tokenizer.stop_ids) == (1, (1, 3, 5))
    assert tokenizer.chat_template.source == "{{ eos_token }}"
    assert tokenizer.chat_template.special_tokens["eos_token"] == "</s>"
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    assert read(folder)[1].chat_template.source == "{{ 1 }}"
    _, tokenizer = read(folder)
    model = resolve(MODEL, vocab_size=tokenizer.vocab_size, context=16)
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), parameter_shapes(model))
    again = folder.with_name("again")
    write_folder(again, params, model, tokenizer, "", chat_template="{{ 1 }}")
    assert read(again)[1] == tokenizer
    edit(folder / "generation_config.json", eos_token_id=["x"])
    assert "generation_config.json: eos_token_id is ['x']" in refused(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_of_ten_megabytes(folder, name):
    long = "x" * 10_000_000
    (folder / name).write_text(long if name.endswith("jinja") else json.dumps({"chat_template": long}))
    assert f"{name} must be a text of at most 500,000 characters" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_parameters": None, "rope_theta": "absent"}, 10000.0),
        (
            {
                "rope_parameters": "absent",
                "rope_theta": 500.0,
                "rope_scaling": None,
                "rope_interleaved": False,
            },
            500.0,
        ),
        ({"rope_scaling": {"type": "default", "rope_type": "default", "factor": 1.0}}, 10000.0),
        (
            {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 1.0}, "rope_theta": "absent"},
            500.0,
        ),
    ],
    ids=str,
)
def test_plain_rotary_positions_in_every_spelling(folder, changes, theta):
    edit(folder / "config.json", **changes)
    assert read_model(folder)[2].rope_theta == theta


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_null_is_as_many_key_value_heads_as_heads(folder, kind):
    """As transformers takes it; where the field is absent, that is the family's default."""
    edit(folder / "config.json", model_type=kind, num_key_value_heads=None, head_dim=None)
    model = read_model(folder)[2]
    assert (model.num_kv_heads, model.head_width) == (2, 8)
    transformers = pytest.importorskip("transformers", reason="optional: requirements-torch.txt")
    fields = {"num_attention_heads": 2, "hidden_size": 16, "num_key_value_heads": None}
    assert transformers.AutoConfig.for_model(kind, **fields).num_key_value_heads == 2


@pytest.mark.parametrize(("window", "context"), [("absent", 4096), (None, 8192), (8192, 8192), (512, 512)])
def test_a_mistral_has_the_context_of_its_window(folder, window, context):
    """As transformers takes an absent window; in a context no longer than the window, attention is plain."""
    changes = {"model_type": "mistral", "sliding_window": window, "max_position_embeddings": 8192}
    edit(folder / "config.json", **changes)
    assert read_model(folder)[2].max_length == context


def test_files_that_are_not_there_or_no_json(folder, tmp_path):
    (folder / "tokenizer.json").write_text('{"model": 3}')
    assert "tokenizer.json is not a supported tokenizer" in refused(folder)
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refused(folder)
    (folder / "config.json").write_text("[1")
    assert "config.json is not JSON" in refused(folder)
    (folder / "config.json").unlink()
    assert re.search("cannot read .*config.json", refused(folder))
    assert "is no folder" in refused(tmp_path / "absent")


def test_a_sliding_window_of_mistrals_kind_is_refused_in_llama(folder):
    edit(folder / "config.json", model_type="llama", sliding_window=4096)
    assert "sliding_window is 4096" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({}, "Qwen3"),
        ({"biases": "attention"}, "Qwen3"),
        ({"qk_norm": False}, "Llama"),
        ({"qk_norm": False, "biases": "all"}, "Llama"),
        ({"qk_norm": False, "biases": "qkv"}, "Qwen2"),
        ({"qk_norm": False, "nope_every": 4}, "SmolLM3"),
        (
            {
                "qk_norm": False,
                "biases": "all",
                "norm": "layer",
                "position": "learned",
                "feed_forward": "gelu",
            },
            "GPT-2",
        ),
    ],
    ids=str,
)
def test_each_model_goes_to_the_family_that_it_is(changes, family):
    model = resolve(
        TransformerConfig(num_layers=1, width=16, num_heads=2, **changes), vocab_size=64, context=16
    )
    assert family_of(model).name == family


@pytest.mark.parametrize(
    "changes",
    [
        {"token_shift": 2},
        {"logit_soft_cap": 30.0},
        {"feed_forward": "relu2", "norm_position": "post"},
        {"position": "none"},
        {"key_width": 4},
        {"architecture": "encoder-decoder"},
    ],
    ids=str,
)
def test_a_model_that_no_family_knows_is_refused_with_its_fields(changes):
    model = resolve(
        TransformerConfig(num_layers=1, width=16, num_heads=2, **changes), vocab_size=64, context=16
    )
    with pytest.raises(UsageError) as caught:
        family_of(model)
    for name in changes:
        assert f"model.{name} is " in str(caught.value) or name == "architecture"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_field_of_a_model_is_lost_in_an_export(family):
    """A family writes a field, checks it, or does not need it. Add a new field of TransformerConfig to one of these."""
    model = resolve(MODEL, vocab_size=64, context=16)
    checked = {"num_classes", *family.fixed, *family.widths(model)}.union(
        *(f.expressible for f in family.fields)
    )
    written = {"vocab_size", "max_length", "num_layers", "width", "num_heads", "ff_width", "norm_epsilon"}
    rope = {"rope_theta", "rope_factor", "rope_original_length"}
    written |= {"encoder_layers"} if family.encoder_decoder else {"num_kv_heads", "head_width"}
    needless = {"previous_token_heads", "previous_token_layers", "initialization", "dropout", "cross_rope"}
    needless |= set() if family.encoder_decoder else {"encoder_layers", "sinusoid_layout"}
    if family.fixed.get("position") == "rope":
        written |= rope | ({"nope_every"} - checked)
        assert ("nope_every" in checked) == (family.name != "SmolLM3")
    else:
        needless |= rope | {"nope_every"}
    assert checked | written | needless == {field.name for field in fields(TransformerConfig)}


def test_a_model_that_tells_labels_is_refused():
    with pytest.raises(UsageError, match="a classification head"):
        family_of(
            resolve(
                TransformerConfig(num_layers=1, width=16, num_heads=2, num_classes=3),
                vocab_size=64,
                context=16,
            )
        )


def test_a_folder_with_something_in_it_is_left_alone(folder):
    before = sorted(path.name for path in folder.iterdir())
    family, file, model = read_model(folder)
    tokenizer = read_tokenizer(folder, family, file, model)
    with pytest.raises(UsageError, match="exists already and is not empty"):
        write_folder(folder, read_params(folder, family, model), model, tokenizer, "")
    assert sorted(path.name for path in folder.iterdir()) == before
