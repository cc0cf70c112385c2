"""The Chat screen: the choice of models, the conversations, and scores of texts.

Knows nothing of the other tabs.
"""
