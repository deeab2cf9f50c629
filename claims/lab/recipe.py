"""How a model is pretrained for the claims."""

import dataclasses

import jax

from toyllm.lm.transformer import Config, Params


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sizes and training; the defaults are those of nearly all claims.

    rows: of a batch; 0: as many as its documents need. lr: peak rate of Muon, for the matrices in
    the blocks; 0: Adam trains them too. adam_lr: peak rate of Adam, for all else. embed, out: what
    the initial embeddings and the initial matrices that write to the residual stream are multiplied
    by. decay: weight decay. prompt_weight: of the tokens of prompts in the loss.
    gains: of the initial model, see `rescaled`.
    """

    width: int = 48
    layers: int = 2
    heads: int = 2
    mlp: int = 48
    context: int = 64
    steps: int = 1800
    documents: int = 32
    rows: int = 20
    lr: float = 1e-2
    adam_lr: float = 1.5e-2
    embed: float = 1.0
    out: float = 1.0
    decay: float = 0.0
    prompt_weight: float = 1.0
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def config(self, vocabulary: int) -> Config:
        """The sizes of a model of a vocabulary."""
        return Config(vocabulary, self.context, self.width, self.layers, self.heads, self.mlp)

    def sized(self, width=0, layers=0, documents=0, steps=0) -> "Recipe":
        """The same with other sizes, the MLP as wide as the stream; 0: as they are."""
        sizes = {"width": width, "mlp": width, "layers": layers}
        sizes |= {"documents": documents, "steps": steps}
        return dataclasses.replace(self, **{key: value for key, value in sizes.items() if value})

    @property
    def unusual(self) -> dict:
        """The fields that are not as usual, which identify it."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v != getattr(USUAL, k)}


USUAL = Recipe()


def rescaled(params: Params, attention: float, mlp: float, last: float) -> Params:
    """The same function in other coordinates: the gains of norms times these factors.

    attention, mlp: of the norms before them, in all blocks. last: of the norm before the
    unembedding. The matrices that read a norm are divided by its factor, so that a step of Adam,
    which is as large in all coordinates, has so many times the effect on what they compute.
    """
    factors = {"attention_norm": attention, "mlp_norm": mlp, "norm": last}
    factors |= dict.fromkeys(("query", "key", "value"), 1 / attention)
    factors |= {"gate": 1 / mlp, "up": 1 / mlp, "unembed": 1 / last}

    def scale(path, x):
        names = [str(getattr(key, "key", key)) for key in path]
        return x * factors.get(names[-2], 1.0) if len(names) > 1 else x

    return jax.tree.map_with_path(scale, params)
