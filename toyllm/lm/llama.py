"""Parameters as a Llama checkpoint in Hugging Face's layout, and back.

The model is a Llama: RMSNorm, rotary positions that turn (x[i], x[i + K/2]), a gated MLP, no
biases. Only the matrices differ, [out, in] there and [in, out] here, so logits agree to the last
bits of float32. A word is a token, so the tokenizer is a list of words.

    config.json, model.safetensors       the model
    tokenizer.json, tokenizer_config.json    words, split at blanks
"""

import dataclasses
from pathlib import Path

import numpy as np

from toyllm.base import files
from toyllm.base.errors import InputError, warn
from toyllm.lm.tokenizer import BEGIN, END, PAD, SPECIAL, Tokenizer
from toyllm.lm.transformer import Config, Params

INSIDE = {  # a block's matrices: Llama's names, and the keys of our parameters
    "self_attn.q_proj": ("attention", "query"),
    "self_attn.k_proj": ("attention", "key"),
    "self_attn.v_proj": ("attention", "value"),
    "self_attn.o_proj": ("attention", "out"),
    "mlp.gate_proj": ("mlp", "gate"),
    "mlp.up_proj": ("mlp", "up"),
    "mlp.down_proj": ("mlp", "down"),
}
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}


def tensors(params: Params) -> dict[str, np.ndarray]:
    """Parameters under their names in a Llama checkpoint, float32."""
    named = {
        "model.embed_tokens.weight": params["embed"],
        "model.norm.weight": params["norm"]["scale"],
        "lm_head.weight": params["unembed"]["kernel"].T,
    }
    for layer, block in params["blocks"].items():
        for theirs, (part, matrix) in INSIDE.items():
            named[f"model.layers.{layer}.{theirs}.weight"] = block[part][matrix]["kernel"].T
        for theirs, ours in NORMS.items():
            named[f"model.layers.{layer}.{theirs}.weight"] = block[ours]["scale"]
    return {name: np.ascontiguousarray(x, np.float32) for name, x in named.items()}


def params_of(named: dict[str, np.ndarray], config: Config, order: np.ndarray) -> Params:
    """The inverse of `tensors`; order[v] is the checkpoint's row of word v of the vocabulary here.

    Keys and values that several heads share are repeated for each of them, and an unembedding that
    is tied to the embedding is copied from it.
    """

    def matrix(name: str) -> np.ndarray:
        weight = named[f"{name}.weight"]
        if name.endswith(("k_proj", "v_proj")):
            per_head = weight.reshape(-1, config.D // config.H, config.D)
            weight = np.repeat(per_head, config.H // len(per_head), 0).reshape(config.D, config.D)
        return np.ascontiguousarray(weight.T)

    blocks = {}
    for layer in range(config.L):
        prefix = f"model.layers.{layer}"
        block: dict = {"attention": {}, "mlp": {}}
        for theirs, (part, ours) in INSIDE.items():
            block[part][ours] = {"kernel": matrix(f"{prefix}.{theirs}")}
        for theirs, ours in NORMS.items():
            block[ours] = {"scale": named[f"{prefix}.{theirs}.weight"]}
        blocks[layer] = block
    embed = named["model.embed_tokens.weight"]
    head = named.get("lm_head.weight", embed)
    return {
        "embed": embed[order],
        "blocks": blocks,
        "norm": {"scale": named["model.norm.weight"]},
        "unembed": {"kernel": np.ascontiguousarray(head[order].T)},
    }


def config_json(config: Config) -> dict:
    """The `config.json` of a Llama checkpoint."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocabulary,
        "hidden_size": config.D,
        "intermediate_size": config.F,
        "num_hidden_layers": config.L,
        "num_attention_heads": config.H,
        "num_key_value_heads": config.H,
        "head_dim": config.D // config.H,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "pad_token_id": PAD,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def tokenizer_json(tokenizer: Tokenizer) -> dict:
    """The `tokenizer.json` of the `tokenizers` library, for which an unknown word is an error."""
    # but the text "a" alone, by which TransformerLens learns whether a tokenizer adds tokens
    alone = {"type": "Replace", "pattern": {"Regex": r"\Aa\z"}, "content": SPECIAL[0]}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": k, "content": word, "special": True, **special} for k, word in enumerate(SPECIAL)
        ],
        "normalizer": None if "a" in tokenizer.index else alone,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": tokenizer.index, "unk_token": "<unk>"},
    }


def save(folder: Path, tokenizer: Tokenizer, config: Config, params: Params, card: str) -> None:
    """Write a checkpoint with its tokenizer; card: the text of its README.md.

    The weights come last, so that a folder without them is no checkpoint. Raises OSError.
    """
    from safetensors.numpy import save

    pad, begin, end = SPECIAL[:3]
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "bos_token": begin,
        "eos_token": end,
        "padding_side": "left",
        "model_max_length": config.context,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    files.write_json(folder / "config.json", config_json(config))
    files.write_json(folder / "tokenizer.json", tokenizer_json(tokenizer))
    files.write_json(folder / "tokenizer_config.json", tokenizer_config)
    files.write_text(folder / "README.md", card)
    files.write_bytes(folder / "model.safetensors", save(tensors(params), {"format": "pt"}))


def load(folder: Path, tokenizer: Tokenizer, context: int) -> tuple[Config, Params]:
    """Read a Llama checkpoint whose vocabulary is the words of a world.

    context: the largest number of tokens in a row. It may exceed that of training, since rotary
    positions have no parameters. Rows of the vocabulary without a word, such as padding to a
    multiple of 64, are dropped. Raises InputError, one line, for another vocabulary and for an
    architecture that this model does not have.
    """
    path = folder / "config.json"
    facts = files.read_json(path)

    def expect(key: str, default, *allowed) -> None:
        if (value := facts.get(key, default)) not in allowed:
            options = " or ".join(map(repr, allowed))
            raise InputError(f"{path}: {key}: found {value!r}, expected {options}")

    expect("model_type", None, "llama")
    expect("hidden_act", "silu", "silu")
    expect("attention_bias", False, False)
    expect("mlp_bias", False, False)
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    rope_type = isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise InputError(f"{path}: rope: found {rope!r}, expected rope_type 'default'")
    try:
        config = Config(
            vocabulary=facts["vocab_size"],
            context=context,
            D=facts["hidden_size"],
            L=facts["num_hidden_layers"],
            H=facts["num_attention_heads"],
            F=facts["intermediate_size"],
            rope_theta=float(rope.get("rope_theta", facts.get("rope_theta", 10_000.0))),
            norm_eps=float(facts.get("rms_norm_eps", 1e-6)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error!r}, expected the sizes of a Llama model") from error
    shared = facts.get("num_key_value_heads") or config.H
    if type(shared) is not int or shared < 1 or config.H % shared:
        raise InputError(f"{path}: num_key_value_heads: found {shared!r}, {config.H} heads")
    expect("head_dim", config.D // config.H, config.D // config.H, None)
    order = _order(folder, tokenizer, config.vocabulary)
    named = _read(folder, config, shared, bool(facts.get("tie_word_embeddings", False)))
    config = dataclasses.replace(config, vocabulary=len(order))
    return config, params_of(named, config, order)


def _order(folder: Path, tokenizer: Tokenizer, size: int) -> np.ndarray:
    """The row of each of our words in the checkpoint's embedding, which has `size` rows."""
    path, words = folder / "tokenizer.json", len(tokenizer.words)
    if size < words or (size > words and not path.exists()):
        padded = " (or more, with the tokenizer.json that says which rows have no word)"
        raise InputError(
            f"{folder / 'config.json'}: vocab_size: found {size}, expected the {words} words of "
            f"world '{tokenizer.world.name}'{padded * (size > words)}"
        )
    if not path.exists():
        return np.arange(size)  # without a tokenizer, rows must be in the world's own order
    vocabulary = files.read_json(path)
    try:
        rows = dict(vocabulary["model"]["vocab"])
        rows |= {token["content"]: token["id"] for token in vocabulary.get("added_tokens", [])}
        missing = [word for word in tokenizer.words if word not in rows]
        order = np.array([rows[word] for word in tokenizer.words if word in rows])
        unused = set(range(size)) - set(order.tolist())
        foreign = sorted(word for word, row in rows.items() if row in unused)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error!r}, expected a WordLevel tokenizer") from error
    if missing or order.dtype.kind != "i" or len(unused) != size - len(order):
        fault = f"no word '{missing[0]}'" if missing else "two words for one row, or none"
        raise InputError(
            f"{path}: found {fault}, expected the words of world '{tokenizer.world.name}', "
            "one in each row"
        )
    if foreign:
        raise InputError(
            f"{path}: found {len(foreign)} words that world '{tokenizer.world.name}' does not have,"
            f" such as '{foreign[0]}', expected only its words: give their --world, or take them "
            "out of tokenizer.json (their rows are then dropped)"
        )
    return order


def _read(folder: Path, config: Config, shared: int, tied: bool) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint in float32, finite, each of the shape that it must have."""
    from safetensors import SafetensorError, safe_open

    D, F, V, K = config.D, config.F, config.vocabulary, config.D // config.H
    shapes = {"model.embed_tokens": (V, D), "model.norm": (D,)}
    shapes |= {} if tied else {"lm_head": (V, D)}
    inside = dict.fromkeys(INSIDE, (D, D)) | dict.fromkeys(NORMS, (D,))
    inside |= dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (shared * K, D))
    inside |= {"mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F)}
    for layer in range(config.L):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in inside.items()}
    wanted = {f"{name}.weight": shape for name, shape in shapes.items()}
    weights: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if files.is_stray(path):
            warn(f"{path}: left by a file manager or file system, ignored")
            continue
        try:
            with safe_open(path, framework="numpy") as file:
                for name in wanted.keys() & set(file.keys()):
                    part = file.get_slice(name)
                    shape, dtype = tuple(part.get_shape()), part.get_dtype()
                    if shape != wanted[name] or dtype not in ("F32", "F16", "BF16", "F64"):
                        raise InputError(
                            f"{path}: {name}: found {dtype} {list(shape)}, expected F32, F16, BF16 "
                            f"or F64 {list(wanted[name])}"
                        )
                    with np.errstate(over="ignore"):  # overflow gives infinity, refused next
                        weights[name] = file.get_tensor(name).astype(np.float32)
                    if not np.isfinite(weights[name]).all():
                        raise InputError(
                            f"{path}: {name}: found NaN or infinity, expected finite weights"
                        )
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: {error}, expected a safetensors file") from error
    if missing := [name for name in wanted if name not in weights]:
        raise InputError(f"{folder}: found no tensor {missing[0]}, expected *.safetensors with it")
    return weights
