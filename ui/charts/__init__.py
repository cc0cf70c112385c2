"""Loss charts: Python sends points, the browser draws them with plotly.js.

Knows nothing of the tabs that show them.
"""
