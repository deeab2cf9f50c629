"""The language model: from documents to tokens, a transformer, its training and exact scores.

Read in this order:

    tokenizer     documents to tokens and back; packing several documents into a row
    transformer   the model (Llama layout), its parameters as a plain dict of arrays; LM: a
                  tokenizer, the sizes and the function of parameters, in one object
    losses        next token, SFT, DPO, exact RLHF: pure functions of arrays
    training      `fit`, a generator of training steps; batches as a function of (seed, step)
    scoring       the exact probability of every listed answer, and so of every behaviour

    heldout       excess and captured: how far a model is from the ideal observer
    joints        the joint distribution over two-turn dialogues
    optimizers    Muon for the matrices inside the blocks, Adam for all else
    sampling      answers sampled from a model
    activations   the residual stream: reading it and adding to it
    plaintext     plain text mixed into pretraining
    llama         parameters as a Llama checkpoint for other libraries, and back

It imports `base` and `world`.
"""
