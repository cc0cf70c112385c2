// Draws the loss of a run live. The cursor is kept here, so a reload or a second tab starts from the
// beginning, and an update has the same size at 100 and at 10,000 points. The zoom is never changed.
const $ = (selector) => element.querySelector(selector);
const figure = $('.aw-chart'), plot = $('.aw-plot'), rate = $('.aw-rate'), fold = $('details');
const FAST = 700, CALM = 2000;
const run = { id: null, seq: 0, busy: false, drawn: false, settled: true, points: 0 };

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

async function redraw(p) {
  const Plotly = await plotly();
  await Plotly.react(plot, traces(p), layout({ uirevision: run.id, ...MARKS_AXIS }), CONFIG);
  await Plotly.react(rate, rateTraces(p), layout({ uirevision: run.id, showlegend: false, xaxis: axis('step'),
    yaxis: axis('learning rate', { rangemode: 'tozero', exponentformat: 'e' }) }), CONFIG);
  run.drawn = true; run.points = p.s.length; figure.classList.add('aw-has-points');
}

async function extend(p) {
  const Plotly = await plotly();
  run.points += p.s.length;
  if (p.s.length) {
    await Plotly.extendTraces(plot, { x: [p.s], y: [p.l] }, [0]);
    await Plotly.extendTraces(rate, { x: [p.s], y: [p.r] }, [0]);
  }
  if (p.es.length) await Plotly.extendTraces(plot, { x: [p.es], y: [p.el] }, [1]);
  if (p.ms.length) await Plotly.extendTraces(plot, { x: [p.ms], y: [p.ms.map(() => 0)], text: [p.mk], 'marker.symbol': [p.mk.map(symbol)] }, [2]);
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
  Object.assign(run, { seq: 0, settled: !run.id, drawn: false, points: 0 });
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
    if (!p.reset) await extend(p);
    else if (p.s.length || p.es.length) await redraw(p);
    run.seq = run.drawn ? p.seq : 0;
    run.settled = p.over;
    tell(p);
    figure.dataset.points = run.points;
  } finally { run.busy = false; }
}

async function loop() {
  if (!run.settled || props.value.live) await poll().catch((error) => console.warn(String(error)));
  setTimeout(loop, run.drawn ? CALM : FAST);
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
fold.addEventListener('toggle', () => { if (run.drawn && fold.open) window.Plotly.Plots.resize(rate); });
