"""The world: characters with traits, the documents they appear in, and the exact ideal observer.

Read in this order:

    world       World: all arrays that define the generative process
    cards       a TOML file of character cards to a World; reader: the checks of its fields
    random_worlds  a seed to a world file: characters at random, texts of nonsense words
    corpus      a World to Documents: the generative process; dialogues with chosen turns
    observer    Bayes' rule on documents: who speaks, what comes next, the least possible loss
    quantities  EM, coherence, spread, the matched effect: what results are stated in
    persona     training as evidence about the speaker: tilted priors, and one solver for them
    mixtures    the mixture of known distributions that is nearest to a given one

It is plain NumPy and imports `base` only; every other package may import it.
"""
