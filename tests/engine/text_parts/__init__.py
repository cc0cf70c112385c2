"""Models with a text part beside parts for pictures, through the whole cycle."""
