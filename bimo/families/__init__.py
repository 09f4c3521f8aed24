"""The families side by side: a GPT, an encoder-decoder and an encoder learn one task from the same rows, with equally
many weights, in equal time. `families.compare` wires it; each family is one small file on the contract of `family.py`.
"""
