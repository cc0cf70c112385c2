"""Who may reach the page and on what terms; all of it stands in front of Gradio."""
