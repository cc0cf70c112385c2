"""The page: Gradio on top of the service, and nothing that imports torch."""
