"""How a model is pretrained for the claims."""

import dataclasses

from toyllm.lm.transformer import Config


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sizes and training; the defaults are those of nearly all claims.

    rows: of a batch; 0: as many as its documents need. lr: peak rate of Muon, for the matrices in
    the blocks; 0: Adam trains them too. adam_lr: peak rate of Adam, for all else. embed, out: what
    the initial embeddings and the initial matrices that write to the residual stream are multiplied
    by. decay: weight decay. prompt_weight: of the tokens of prompts in the loss.
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

    def config(self, vocabulary: int) -> Config:
        """The sizes of a model of a vocabulary."""
        return Config(vocabulary, self.context, self.width, self.layers, self.heads, self.mlp)


USUAL = Recipe()
