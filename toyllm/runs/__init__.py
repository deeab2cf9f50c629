"""What keeps a run: its folder, its lock, checkpoints, and what it shows while it trains.

    run_folder    a finished run as `eval.py` and the measures see it
    provenance    config.json: what made a run, compared with every later command
    session       a run while it trains: its inputs, its lock, what it prints
    stage         a stage of training: where it resumes, what it logs, when it saves
    checkpoints   trees of arrays in one safetensors file with its SHA-256
    lock          one process at a time in a run folder
    stopping      SIGTERM and Ctrl-C: save, then leave
    tensorboard   TensorBoard events
    narrow_stage    the narrow stage: groups left to train, alarms, events

It imports `base`, `world`, `lm` and `posttrain`.
"""
