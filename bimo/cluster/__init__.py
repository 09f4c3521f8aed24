"""The same stages on Ray: text, training and tuning on many machines, from the same recipe.

Ray schedules, queues, moves data and restarts what is lost; nothing of that is ours. Each stage calls the function that
a single machine calls. Ray is imported when a cluster is asked for, and not before.
"""
