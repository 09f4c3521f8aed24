"""Models over HTTP, in the dialect of OpenAI: a gateway (keys, limits, bounds), a guard, and engines.

`contract.py` is what they say to each other; `local.py` answers it in this process.
"""
