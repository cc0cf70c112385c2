"""GGUF files as bases: checked in a process of its own, then converted once into a plain folder.

`parts` finds the files, `checks` reads what they say, `process` keeps the work in a process with
limits, `settings`, `tokenizer` and `conversion` do it there, and `converted` keeps the folders.
Knows nothing of loading such a folder.
"""
