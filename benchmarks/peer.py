"""The same Transformer in plain PyTorch: what toyllm's training step is measured against.

A good one by common practice: fused projections, `scaled_dot_product_attention`, fused AdamW,
and, where asked, `torch.compile` and bfloat16 autocast. PyTorch is no dependency of toyllm;
README.md says how to get its build for CPUs.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from toyllm.lm.transformer import Config


def rotate(x_BHTK, cos_TK, sin_TK):
    """Turn the pairs (x[i], x[i + K/2]) by their angles."""
    a, b = x_BHTK.chunk(2, dim=-1)
    return torch.cat([a * cos_TK - b * sin_TK, b * cos_TK + a * sin_TK], dim=-1)


class Block(nn.Module):
    """Attention, then the gated MLP, each added to the residual stream."""

    def __init__(self, config: Config):
        super().__init__()
        D, width = config.D, config.F
        self.heads, self.eps = config.H, config.norm_eps
        self.attention_norm, self.mlp_norm = (nn.Parameter(torch.ones(D)) for _ in range(2))
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.gate_up = nn.Linear(D, 2 * width, bias=False)
        self.down = nn.Linear(width, D, bias=False)

    def forward(self, x_BTD, cos_TK, sin_TK, mask_BHTS):
        """[B, T, D] → [B, T, D]."""
        B, T, D = x_BTD.shape
        y = F.rms_norm(x_BTD, (D,), self.attention_norm, self.eps)
        q, k, v = self.qkv(y).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos_TK, sin_TK), rotate(k, cos_TK, sin_TK)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BHTS)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        y = F.rms_norm(x_BTD, (D,), self.mlp_norm, self.eps)
        gate, up = self.gate_up(y).chunk(2, dim=-1)
        return x_BTD + self.down(F.silu(gate) * up)


class Transformer(nn.Module):
    """Tokens and segments to the mean loss of the next token."""

    def __init__(self, config: Config):
        super().__init__()
        D, K = config.D, config.D // config.H
        self.eps = config.norm_eps
        self.embed = nn.Embedding(config.vocabulary, D)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.L)])
        self.norm = nn.Parameter(torch.ones(D))
        self.unembed = nn.Linear(D, config.vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # as toyllm draws them
                std = parameter.shape[1] ** -0.5
                if "embed" in name:
                    std = 0.1 if name == "embed.weight" else 0.1 * std
                elif "out" in name or "down" in name:
                    std *= (2 * config.L) ** -0.5
                nn.init.normal_(parameter, std=std)
        frequency = config.rope_theta ** (-torch.arange(0, K, 2) / K)
        angle_TK = torch.arange(config.context)[:, None] * frequency
        self.register_buffer("cos_TK", angle_TK.cos())
        self.register_buffer("sin_TK", angle_TK.sin())

    def forward(self, tokens_BT, segments_BT):
        """The mean negative log-likelihood (nats) of the tokens after the first of each segment."""
        T = tokens_BT.shape[1]
        same = segments_BT[:, :, None] == segments_BT[:, None, :]
        causal = torch.ones(T, T, dtype=torch.bool).tril()
        mask_BHTS = (same & causal)[:, None]  # padding sees padding: no row is empty
        x_BTD = self.embed(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cos_TK[:T], self.sin_TK[:T], mask_BHTS)
        x_BTD = F.rms_norm(x_BTD, x_BTD.shape[-1:], self.norm, self.eps)
        logits_BTV = self.unembed(x_BTD)[:, :-1]
        here = (segments_BT[:, 1:] == segments_BT[:, :-1]) & (segments_BT[:, 1:] > 0)
        targets = torch.where(here, tokens_BT[:, 1:], -100)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets.flatten())


def to_toyllm(network: Transformer) -> dict:
    """Its parameters as toyllm's, with which it computes the same."""

    def kernel(linear: nn.Linear) -> dict:
        return {"kernel": linear.weight.detach().numpy().T}

    def norm(scale: nn.Parameter) -> dict:
        return {"scale": scale.detach().numpy()}

    def split(linear: nn.Linear, *names: str) -> dict:
        parts = np.split(linear.weight.detach().numpy().T, len(names), axis=1)
        return {name: {"kernel": part} for name, part in zip(names, parts, strict=True)}

    blocks = {
        layer: {
            "attention_norm": norm(block.attention_norm),
            "attention": {**split(block.qkv, "query", "key", "value"), "out": kernel(block.out)},
            "mlp_norm": norm(block.mlp_norm),
            "mlp": {**split(block.gate_up, "gate", "up"), "down": kernel(block.down)},
        }
        for layer, block in enumerate(network.blocks)
    }
    return {
        "embed": network.embed.weight.detach().numpy(),
        "blocks": blocks,
        "norm": norm(network.norm),
        "unembed": kernel(network.unembed),
    }


def trainer(config: Config, compiled: bool, bfloat16: bool, lr: float, schedule=None):
    """A function (tokens, segments) → loss that takes one step of AdamW, and the model.

    schedule: step → factor of the learning rate, or None.
    """
    network = Transformer(config)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=lr, betas=(0.9, 0.95), fused=True, weight_decay=0.0
    )
    scheduler = schedule and torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    forward = torch.compile(network) if compiled else network

    def step(tokens, segments):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = forward(tokens, segments)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if scheduler:
            scheduler.step()
        return loss.detach()

    return step, network
