"""The page's pulse: asks once a second whether anything changed, and only then has it drawn.

A tick of `gr.Timer` costs 35 ms of the page's process whether it has news or not (Gradio 6.31:
queue, event stream); asking for the version by a server function costs a tenth of that.
"""

import gradio as gr

from backend import Service

BEAT_MS = 1000
REST_MS = 1900
"""The least time between two drawings: a training changes something every second."""
SCRIPT = """
let seen = null, drawn = 0;
async function beat() {
  try {
    if (!document.hidden) {
      const version = await server.version(0);
      const now = performance.now();
      if (version !== seen && now - drawn > __REST__) {
        seen = version; drawn = now;
        trigger('click', {});
      }
    }
  } catch (error) { seen = null; }
  setTimeout(beat, __BEAT__);
}
document.addEventListener('visibilitychange', () => { if (!document.hidden) seen = null; });
beat();
"""


def pulse(service: Service) -> gr.HTML:
    """Make the invisible component whose `click` says that something changed."""

    def version(_: int) -> str:
        # a restarted app counts its versions from the beginning, so they alone are not enough
        return f"{service.snapshot().version}-{id(service)}"

    script = SCRIPT.replace("__BEAT__", str(BEAT_MS)).replace("__REST__", str(REST_MS))
    return gr.HTML(
        "",
        html_template="<span></span>",
        js_on_load=script,
        server_functions=[version],
        apply_default_css=False,
        elem_id="pulse",
        elem_classes=["aw-view", "aw-pulse"],
        label="Pulse",
    )
