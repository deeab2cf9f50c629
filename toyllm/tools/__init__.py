"""Small commands: `uv run -m toyllm.tools.NAME`.

    show           documents drawn from a world
    pairs          preference pairs of a signal, or a check of a file of them
    audit          what a world or a file of pairs contains, before any training
    chat           talk to a model; conversation: the dialogue, followed by the ideal observer
    new_world      a commented world file to start from
    export         a model as a Llama checkpoint
    import_llama   models trained elsewhere as a run
    playground     models of a run in one HTML page, to talk to
    release        trained models to take away

Nothing imports them but scripts, tests and each other.
"""
