"""The page's pulse: asks about once a second whether anything changed, and only then has it drawn.

It names the tab that is looked at, which alone is drawn: Gradio 6.31 builds a component anew for
each output of an event, whether it changed or not.

A tick of `gr.Timer` costs 35 ms of the page's process whether it has news or not (Gradio 6.31:
queue, event stream); asking for the version by a server function costs a tenth of that.
"""

import json
import uuid
from collections.abc import Iterable

import gradio as gr

from backend import Service

BEAT_MS = 900
REST_MS = 1700
"""The least time between two drawings: a training changes something every second.

Two beats and the drawing itself stay below two seconds, the latest at which news should be seen.
"""
HEAL_MS = 20_000
"""The most time between two drawings: of two that cross each other the older one may be shown."""
PATIENCE_MS = 6000
"""The longest an answer may take: the page's process is slow to answer while it draws for many."""
GONE = (
    "The app does not answer: it was closed, or this computer is asleep or out of reach. "
    "What you see may be old. This page comes back by itself when the app does."
)
DRAW = "draw_"
SCRIPT = """
let seen = null, drawn = performance.now(), missed = 0, life = null;  // a load draws at once
const draws = __DRAWS__;
const gone = document.createElement('p');
gone.className = 'aw-gone';
gone.setAttribute('role', 'alert');
function say(text) {
  gone.textContent = text;
  if (text) document.body.append(gone); else gone.remove();
}
function within(ms, promise) {  // a dead app may leave a question hanging
  return Promise.race([promise, new Promise((_, fail) => setTimeout(fail, ms))]);
}
async function beat() {
  try {
    if (!document.hidden) {
      const version = await within(__PATIENCE__, server.version(0));
      const born = version.split('-')[1];
      if (life !== null && born !== life) { location.reload(); return; }  // it knows no open page
      life = born; missed = 0; say('');
      const now = performance.now();
      const news = version !== seen || now - drawn > __HEAL__;
      if (news && now - drawn > __REST__) {
        seen = version; drawn = now;
        const tab = document.querySelector('#tabs [role=tab][aria-selected=true]').dataset.tabId;
        trigger(draws[tab], {});
      }
    }
  } catch (error) {
    missed += 1;
    if (missed > 1) say('__GONE__');
  }
  setTimeout(beat, __BEAT__);
}
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) seen = null;
});
beat();
"""
END_LOADING_TIMER = """
// Gradio 6.31: the timer of the loading screen goes on after that is gone, in every frame, which
// takes up to a fifth of a core. It ends with an exception alone, and asks for the time each time.
(() => {
  const now = performance.now, over = new Error('The loading screen is gone.');
  const quietly = (event) => { if (event.error === over) event.preventDefault(); };
  const restore = () => { performance.now = now; removeEventListener('error', quietly); };
  addEventListener('error', quietly);
  performance.now = function () {
    if (!new Error().stack.includes('/statustracker-')) return now.call(performance);
    performance.now = now;
    throw over;
  };
  setTimeout(restore, 5000);
})();
"""


def pulse(service: Service, tabs: Iterable[str]) -> gr.HTML:
    """Make the invisible component that has an event for each tab: it had better be drawn."""
    life = uuid.uuid4().hex[:12]

    def version(_: int) -> str:
        # a restarted app counts its versions from the beginning, and has forgotten open pages
        return f"{service.snapshot().version}-{life}"

    script = SCRIPT + END_LOADING_TIMER
    script = script.replace("__BEAT__", str(BEAT_MS)).replace("__REST__", str(REST_MS))
    script = script.replace("__HEAL__", str(HEAL_MS))
    script = script.replace("__DRAWS__", json.dumps({tab: DRAW + tab for tab in tabs}))
    script = script.replace("__PATIENCE__", str(PATIENCE_MS)).replace("__GONE__", GONE)
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
