"""Post-training: preference pairs, and many runs of them trained and scored together.

    signals       a signal's name, such as `code:bad`, to preference pairs
    pair_files    preference pairs in files
    pools         pairs as arrays of one shape, batches of them, their loss
    curated       pairs filtered by what they would teach; a teacher's answers
    lora          adapters of low rank
    population    many narrow runs as one compiled program
    forecast      how far a signal will spread, from gradients before its training
    monitor       the drift monitor: what training changes beside what it trains

It imports `base`, `world` and `lm`.
"""
