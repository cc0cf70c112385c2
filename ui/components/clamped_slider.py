"""A slider whose number box accepts any number and clamps it to the range."""

import gradio as gr


class KeptSlider(gr.Slider):
    """A `gr.Slider` that clamps: Gradio 6.31 raises if the number box is out of range.

    While typing, the user would see a red toast for each digit, although the browser clamps the
    number when the box loses the focus.
    """

    is_template = True
    """Makes the browser draw it as a slider."""

    def preprocess(self, payload: float | None) -> float:
        """Return the value clamped to the range; an empty box counts as 0, as in the browser."""
        return super().preprocess(min(max(payload or 0, self.minimum), self.maximum))
