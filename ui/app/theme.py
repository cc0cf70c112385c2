"""The theme: one accent colour, neutral greys, system fonts. Details are in `style.css`."""

from pathlib import Path

import gradio as gr

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")

INK_BLUE = gr.themes.Color(
    c50="#f1f5f9", c100="#e1eaf2", c200="#c3d5e4", c300="#9ab8d0", c400="#6d97b9", c500="#457aa3",
    c600="#2f6389", c700="#285372", c800="#23445d", c900="#1c3548", c950="#12222f",
    name="ink-blue",
)  # fmt: skip
STONE = gr.themes.Color(
    c50="#fafaf8", c100="#f4f4f1", c200="#e6e5e0", c300="#d3d2cb", c400="#a2a098", c500="#75736b",
    c600="#56544e", c700="#3d3c38", c800="#282826", c900="#1c1c1b", c950="#131312",
    name="stone-warm",
)  # fmt: skip


LOOK = {
    "body_background_fill": "#fbfbf9",
    "body_background_fill_dark": "#161615",
    "background_fill_primary_dark": "#1b1b1a",
    "background_fill_secondary_dark": "#222221",
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_border_width": "0px",
    "block_border_width_dark": "0px",
    "block_shadow": "none",
    "block_padding": "0px",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_label_border_width": "0px",
    "block_label_border_width_dark": "0px",
    "block_title_text_weight": "550",
    "block_title_text_color": "*neutral_800",
    "block_title_text_color_dark": "*neutral_200",
    "block_info_text_color": "*neutral_500",
    "block_info_text_color_dark": "*neutral_400",
    "block_info_text_size": "13px",
    "body_text_color_subdued": "*neutral_500",
    "body_text_color_subdued_dark": "*neutral_400",
    "border_color_primary": "*neutral_200",
    "border_color_primary_dark": "*neutral_700",
    "input_background_fill": "white",
    "input_background_fill_dark": "#1f1f1e",
    "input_border_color": "*neutral_300",
    "input_border_color_dark": "*neutral_700",
    "input_border_width": "1px",
    "input_shadow": "none",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_primary_background_fill_dark": "*primary_600",
    "button_primary_background_fill_hover_dark": "*primary_500",
    "button_primary_text_color": "white",
    "button_primary_text_color_dark": "white",
    "button_secondary_background_fill": "transparent",
    "button_secondary_background_fill_dark": "transparent",
    "button_secondary_background_fill_hover": "*neutral_100",
    "button_secondary_background_fill_hover_dark": "*neutral_800",
    "button_secondary_border_color": "*neutral_300",
    "button_secondary_border_color_dark": "*neutral_600",
    "button_border_width": "1px",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_dark": "transparent",
    "checkbox_label_background_fill_selected": "transparent",
    "checkbox_label_background_fill_selected_dark": "transparent",
    "checkbox_label_border_width": "0px",
    "checkbox_label_border_width_dark": "0px",
    "panel_background_fill": "transparent",
    "panel_background_fill_dark": "transparent",
}
"""Changes to Gradio's base theme: flat, thin lines, one accent, and a matching dark mode."""


def theme() -> gr.themes.Base:
    """Return the theme for `launch`."""
    return gr.themes.Base(
        primary_hue=INK_BLUE,
        secondary_hue=INK_BLUE,
        neutral_hue=STONE,
        radius_size=gr.themes.sizes.radius_sm,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SF Mono", "Consolas", "monospace"],
    ).set(**LOOK)
