// Asks about once a second what is new, draws it, and has the tab redrawn if it has to (polling.py).
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
  const tab = document.querySelector('#tabs [role=tab][aria-selected=true]')?.dataset.tabId ?? 'train';
  return { tab, run: runShown(), shown };
}
function draw(asked, views) {  // but not where Gradio has drawn meanwhile, which removes the mark
  for (const [id, { mark, node }] of Object.entries(views)) {
    const place = mount(id);
    if (!place || (place.dataset.mark ?? '') !== asked.shown[id]) continue;
    if (id === '__RUN__' && runShown() !== asked.run) continue;
    place.dispatchEvent(new CustomEvent('aw-news', { detail: node, bubbles: true }));
    place.dataset.mark = mark;
  }
}
async function drawEarly() {  // what first_look.js asked for, as soon as there is a place for it
  const news = await window.awFirst;
  const place = () => {
    if (__LIVE__.every(mount)) draw({ run: '', shown: { '__BAR__': '', '__RUN__': '' } }, news.views);
    else if (performance.now() < __PATIENCE__) setTimeout(place, 50);
  };
  if (news?.views) place();
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
drawEarly();
beat();

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
