// Draws the loss of a run live. The cursor is kept here, so a reload or a second tab starts from the
// beginning, and an update has the same size at 100 and at 10,000 points. The zoom is never changed.
const $ = (selector) => element.querySelector(selector);
const figure = $('.aw-chart'), plot = $('.aw-plot'), rate = $('.aw-rate'), fold = $('details');
const FAST = 700, CALM = 2000, SLOW = 5000;
const SHARE = 0.01;  // of the time, that drawing may take: it takes the processor from the training
const run = { id: null, seq: 0, busy: false, drawn: false, settled: true, points: 0, rates: [], pause: FAST };

const lineColour = () => shade(props.value.colour);
const MARKS_AXIS = { yaxis2: { overlaying: 'y', range: [0, 1], visible: false, fixedrange: true } };

function traces(p) {
  const line = lineColour(), quiet = css('--aw-quiet'), ink = css('--body-text-color');
  return [
    { name: 'training', x: p.s, y: p.l, mode: 'lines', line: { color: line, width: 1.8 }, hovertemplate: '%{y:.3f}' },
    { name: 'held out', x: p.es, y: p.el, mode: 'lines+markers', line: { color: ink, width: 1.2, dash: 'dot' },
      marker: { color: ink, size: 6, symbol: 'circle-open' }, hovertemplate: '%{y:.3f}' },
    { name: 'saved', x: p.ms, y: p.ms.map(() => 0), text: p.mk, mode: 'markers', yaxis: 'y2', cliponaxis: false, showlegend: false,
      marker: { color: quiet, size: 8, symbol: p.mk.map(symbol) }, hovertemplate: '%{text}<extra></extra>' },
  ];
}
const symbol = (kind) => ({ resumed: 'diamond', paused: 'square', adjusted: 'star', 'data-changed': 'x' })[kind] ?? 'triangle-up';
const rateTraces = (p) => [{ x: p.s, y: p.r, mode: 'lines', line: { color: css('--aw-quiet'), width: 1.4 }, hovertemplate: '%{y:.2e}<extra></extra>' }];

async function drawRate(Plotly) {
  if (!fold.open) return;  // nothing is drawn in a folded part
  await Plotly.react(rate, rateTraces({ s: plot.data[0].x, r: run.rates }), layout({ uirevision: run.id, showlegend: false,
    datarevision: run.points, xaxis: axis('step'), yaxis: axis('learning rate', { rangemode: 'tozero', exponentformat: 'e' }) }), CONFIG);
}

async function redraw(p) {
  const Plotly = await plotly();
  await Plotly.react(plot, traces(p), layout({ uirevision: run.id, ...MARKS_AXIS }), CONFIG);
  run.drawn = true; run.points = p.s.length; run.rates = p.r; figure.classList.add('aw-has-points');
  await drawRate(Plotly);
}

async function extend(p) {  // one redraw, however many kinds of points there are
  const Plotly = await plotly();
  const [training, tests, marks] = plot.data;
  run.points += p.s.length;
  run.rates.push(...p.r);
  training.x.push(...p.s); training.y.push(...p.l);
  tests.x.push(...p.es); tests.y.push(...p.el);
  marks.x.push(...p.ms); marks.y.push(...p.ms.map(() => 0)); marks.text.push(...p.mk); marks.marker.symbol.push(...p.mk.map(symbol));
  if (p.s.length + p.es.length + p.ms.length === 0) return;
  await Plotly.redraw(plot);
  if (p.s.length) await drawRate(Plotly);
}

function tell(p) {
  $('.aw-chart-title').textContent = p.title;
  const parts = [];
  if (p.s.length) parts.push(`Step ${p.s.at(-1)}: training loss ${p.l.at(-1)}`);
  if (p.el.length) parts.push(`held-out loss ${p.el.at(-1)} at step ${p.es.at(-1)}`);
  if (parts.length) $('.aw-only-read').textContent = parts.join(', ') + '.';
  plot.setAttribute('aria-label', `Loss curve. ${p.title}.`);
}

function clear() {
  Object.assign(run, { seq: 0, settled: !run.id, drawn: false, points: 0, rates: [], pause: FAST });
  figure.classList.remove('aw-has-points');
  if (window.Plotly) { window.Plotly.purge(plot); window.Plotly.purge(rate); }
  $('.aw-chart-title').textContent = run.id && !props.value.step ? 'Waiting for the first step' : 'Loss';
  $('.aw-plot-empty').textContent = run.id ? '' : __EMPTY__;
  $('.aw-only-read').textContent = '';
}

async function poll() {
  const asked = run.id;
  if (!asked || run.busy || document.hidden || !plot.offsetParent) return;
  run.busy = true;
  try {
    const p = await server.points({ run: asked, seq: run.seq });
    if (asked !== run.id) return;
    if (p.gone) { run.settled = true; return; }
    const began = performance.now();
    if (!p.reset) await extend(p);
    else if (p.s.length || p.es.length) await redraw(p);
    const took = p.reset ? 0 : performance.now() - began;  // the first time, plotly.js is loaded, too
    if (run.drawn) run.pause = Math.min(SLOW, Math.max(CALM, took / SHARE));
    run.seq = run.drawn ? p.seq : 0;
    run.settled = p.over;
    tell(p);
    figure.dataset.points = run.points;
  } finally { run.busy = false; }
}

async function loop() {
  if (!run.settled || props.value.live) await poll().catch((error) => console.warn(String(error)));
  setTimeout(loop, run.pause);
}

function show() {
  const { run: id } = props.value || {};
  if ((id || null) !== run.id) { run.id = id || null; clear(); }
  if (run.id) run.settled = false;  // it is active, or was active while unseen
}

function repaint() {  // dark mode changed: fetch and redraw in the new colours
  if (run.drawn) { run.seq = 0; run.settled = false; }
}

// 1.4 MB of plotly.js, from this machine: loaded when the page is idle.
(window.requestIdleCallback || setTimeout)(() => plotly().catch(() => {}));
watch('value', show);
show();
clear();
loop();
new MutationObserver(repaint).observe(document.body, { attributes: true, attributeFilter: ['class'] });
new ResizeObserver(() => { if (run.drawn && plot.offsetParent) window.Plotly.Plots.resize(plot); }).observe(plot);
fold.addEventListener('toggle', () => { if (run.drawn) drawRate(window.Plotly); });
