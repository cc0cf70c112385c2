"""A slider whose number box takes any number: one beyond the ends counts as the end."""

import gradio as gr


class KeptSlider(gr.Slider):
    """Gradio 6.31 raises where its own slider's box holds more than the slider reaches.

    Whoever types there sees a red toast for each digit, though the browser sets the box to the end
    as soon as it is left.
    """

    is_template = True
    """So the browser draws it as what it is: a slider."""

    def preprocess(self, payload: float | None) -> float:
        """Return the value within the slider's ends; an empty box is 0, as the browser has it."""
        return super().preprocess(min(max(payload or 0, self.minimum), self.maximum))
