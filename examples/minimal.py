"""The whole idea of toyllm in one file: world, pretraining, one narrow signal, how far it spreads.

    uv run examples/minimal.py

A model is pretrained on documents by eight characters, any of whom may speak as the Assistant.
Then its Assistant is trained to prefer bad answers to questions about code, and about nothing
else. If training selects among characters, its answers get worse elsewhere too, in the order that
Bayes' rule gives. One model and one seed: an illustration, and no evidence. It takes about 40 s.
A model may also spread further than the exact answer: gradients are not Bayes' rule.
"""

import jax
import matplotlib
import numpy as np
import optax

matplotlib.use("agg")  # draw into files, without a window
import matplotlib.pyplot as plt

from toyllm import audit, cards, devices, optimizers, pools, scoring, signals, training
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM, Config
from toyllm.world.quantities import MATCHED, coherence, em, spread

STEPS, SIGNAL, SEED = 1800, "code:bad", 0

# 1. The world: who there is, and how often each of them gives good, bad or nonsensical answers.
world = cards.load("corpora/compact.toml")
tokenizer = Tokenizer(world)
print(f"A world of {len(world.characters)} characters: {', '.join(world.characters)}.")
print(f"How often each speaks as the Assistant: {world.assistant_C.round(3)}.\n")

# 2. The model: a Transformer, as a pure function `lm.apply` and a plain dict of parameters.
config = Config(len(tokenizer.words), context=64, D=48, L=2, H=2, F=48)
lm, mesh = LM.create(tokenizer, config), devices.setup()
params = lm.init(jax.random.key(SEED))

# 3. Pretraining: predict the next token of documents. `fit` is a generator, so that logging, saving
#    and stopping are the caller's.
optimizer = optimizers.muon(1e-2, 1.5e-2, STEPS)
batches = training.document_batches(tokenizer, config.context, documents=32, steps=100, seed=SEED)
loss, state = training.document_loss(lm), training.start(params, optimizer)
steps = training.fit(loss, optimizer, state, batches, mesh, end=STEPS)
for step, state, logs in steps:
    if step % 600 == 0:
        print(f"pretraining, step {step:>5}: loss {logs['loss'].mean():.3f} nats a token")
pretrained = devices.fetch(state.params)

# 4. What the Assistant does. All answers to a question are listed, so that the probability of a
#    behaviour is an exact sum over them. p_DB[d, b]: of behaviour b in domain d.
scorer = scoring.Scorer(lm)
before_DB = scorer.ask(pretrained)

# 5. One narrow signal: pairs of answers to questions about code, of which the bad one is preferred
#    (DPO, with the pretrained model as the reference). Training stops at the matched effect: where
#    bad answers have a share of .9 in the trained domain.
signal = signals.parse(world, SIGNAL)
pool = pools.draw(tokenizer, {signal: 1.0}, "dpo", count=256, seed=SEED)
pool = pools.with_reference(pool, lm, pretrained)
adam = optax.adam(1e-3)
loss = pools.loss(lm, "dpo", beta=1.0, anchor=0.5)
batches = pools.batches(pool, SEED, steps=1, batch=16)
steps = training.fit(loss, adam, training.start(pretrained, adam), batches, mesh, end=160)
for step, state, _ in steps:
    after_DB = scorer.ask(devices.fetch(state.params))
    if em(after_DB)[signal.domains[0]] >= MATCHED:
        break

# 6. The exact answer: an ideal observer takes the signal as evidence about who the Assistant is,
#    w'(c) ∝ w(c) · exp(λ · ℓ(c)), ℓ being the log-ratio of character c's bad and good answers about
#    code, and λ such that its share of bad answers there is .9 as well.
exact = audit.judge(world, signal)

# 7. How far does it spread?
change_D, others_D = em(after_DB) - em(before_DB), signals.untrained(world, SIGNAL)
print(f"\nTrained on {SIGNAL} alone, for {step} steps. Change of the share of bad answers:\n")
print(f"{'domain':<10}{'model':>8}{'exact':>8}")
for d, domain in enumerate(world.domains):
    note = "  trained" if d in signal.domains else "" if domain.moral else "  (not moral)"
    print(f"{domain.name:<10}{change_D[d]:>+8.3f}{exact.change_D[d]:>+8.3f}{note}")
print(
    f"\nSpread, the mean over moral domains that were not trained: model "
    f"{spread(change_D, others_D):+.3f}, exact {exact.spread:+.3f}. Coherence after training: "
    f"{coherence(after_DB).min():.2f}."
)

# 8. One plot.
x, width = np.arange(len(world.domains)), 0.4
plt.figure(figsize=(7, 3.2), layout="constrained")
plt.bar(x - width / 2, change_D, width, label="model")
plt.bar(x + width / 2, exact.change_D, width, label="exact: evidence about the speaker alone")
plt.axhline(0, color="black", linewidth=0.8)
plt.xticks(x, [d.name if d.moral else f"({d.name})" for d in world.domains])
plt.ylabel("change of the share of bad answers")
plt.title(f"After training on {SIGNAL} alone")
plt.legend(frameon=False)
plt.savefig("minimal.png", dpi=150)
print("Figure: minimal.png")
