"""Live charts: Python sends points, the browser draws them."""
