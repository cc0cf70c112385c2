"""Access to the page: addresses, sign-in, proxies, limits and headers, in front of Gradio.

Knows nothing of the page itself.
"""
