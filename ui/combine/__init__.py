"""The Combine screen: recipes for blends, and a mix that is asked before it is kept."""
