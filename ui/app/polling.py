"""Polling: asks about once a second what is new, draws it, and redraws the tab only if it has to.

A server function answers: a tick of `gr.Timer` costs 35 ms of the page's process even without
changes (Gradio 6.31: queue, event stream), a server function a tenth of that. Its answer contains
the views that each step of a run changes (`live_views.py`). For all other changes the visible tab is
redrawn: Gradio 6.31 rebuilds the component of each output of an event, whether it changed or not.
"""

import json
import uuid
from collections.abc import Iterable
from typing import Any

import gradio as gr

from ui.app.live_views import BAR, RUN, LiveViews

BEAT_MS = 900
REST_MS = 1700
"""The shortest time between two redraws: the table of runs changes with each step of a run.

Two beats and the redraw itself stay below two seconds, within which changes should be visible.
"""
HEAL_MS = 20_000
"""The longest time between two redraws: if two arrive out of order, the older one may stay."""
PATIENCE_MS = 6000
"""The longest wait for an answer: the page's process is slow while it draws for many tabs."""
GONE = (
    "The app does not respond. It was closed, or its computer is asleep or not reachable. "
    "The page may be out of date. It reconnects automatically when the app is back."
)
DRAW = "draw_"
SCRIPT = """
let seen = null, drawn = performance.now(), missed = 0, life = null;  // a page load draws by itself
const draws = __DRAWS__;
const gone = document.createElement('p');
gone.className = 'aw-gone';
gone.setAttribute('role', 'alert');
function say(text) {
  gone.textContent = text;
  if (text) document.body.append(gone); else gone.remove();
}
function within(ms, promise) {  // a dead app may never answer
  return Promise.race([promise, new Promise((_, fail) => setTimeout(fail, ms))]);
}
const mount = (id) => document.getElementById(id)?.querySelector('.aw-mount');
const runShown = () => document.querySelector('#__RUN__ [data-run]')?.dataset.run ?? '';
function ask() {
  const shown = {};
  for (const id of __LIVE__) shown[id] = mount(id)?.dataset.mark ?? '';
  return { tab: document.querySelector('#tabs [role=tab][aria-selected=true]').dataset.tabId, run: runShown(), shown };
}
function draw(asked, views) {  // unless the tab was redrawn meanwhile, which removes the marks
  for (const [id, { mark, node }] of Object.entries(views)) {
    const place = mount(id);
    if (!place || (place.dataset.mark ?? '') !== asked.shown[id] || (id === '__RUN__' && runShown() !== asked.run)) continue;
    place.dispatchEvent(new CustomEvent('aw-news', { detail: node, bubbles: true }));
    place.dataset.mark = mark;
  }
}
async function beat() {
  try {
    if (!document.hidden) {
      const asked = ask();
      const { state, life: born, views } = await within(__PATIENCE__, server.news(asked));
      if (life !== null && born !== life) { location.reload(); return; }  // restarted
      life = born; missed = 0; say('');
      draw(asked, views);
      const now = performance.now();
      const news = state !== seen || now - drawn > __HEAL__;
      if (news && now - drawn > __REST__) {
        seen = state; drawn = now;
        trigger(draws[asked.tab], {});
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
// Gradio 6.31: the timer of the loading screen keeps running in every frame after it is gone, which
// takes up to a fifth of a core. Only an exception ends it, and it calls performance.now each time.
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


def pulse(live: LiveViews, tabs: Iterable[str]) -> gr.HTML:
    """Make the invisible component with one event per tab: "this tab needs a redraw"."""
    life = uuid.uuid4().hex[:12]

    def news(asked: dict[str, Any]) -> dict[str, Any]:
        # a restarted app counts states from zero, and does not know open pages
        shown = asked.get("shown")
        marks = shown if isinstance(shown, dict) else {}
        return {"life": life, **live.news(str(asked.get("tab")), str(asked.get("run")), marks)}

    script = SCRIPT + END_LOADING_TIMER
    script = script.replace("__BEAT__", str(BEAT_MS)).replace("__REST__", str(REST_MS))
    script = script.replace("__HEAL__", str(HEAL_MS))
    script = script.replace("__DRAWS__", json.dumps({tab: DRAW + tab for tab in tabs}))
    script = script.replace("__RUN__", RUN).replace("__LIVE__", json.dumps([BAR, RUN]))
    script = script.replace("__PATIENCE__", str(PATIENCE_MS)).replace("__GONE__", GONE)
    return gr.HTML(
        "",
        html_template="<span></span>",
        js_on_load=script,
        server_functions=[news],
        apply_default_css=False,
        elem_id="pulse",
        elem_classes=["aw-view", "aw-pulse"],
        label="Pulse",
    )
