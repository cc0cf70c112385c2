"""The Chat screen: who answers, and what was said."""
