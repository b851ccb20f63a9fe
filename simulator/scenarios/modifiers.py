from types import SimpleNamespace


def modified_turn(text, modifiers, *, seed, turn, protected):
    return SimpleNamespace(texts=(text,), notes=())
