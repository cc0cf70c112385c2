// Draws the curves of several runs in one chart: training loss as lines, held-out loss as marks.
const $ = (selector) => element.querySelector(selector);
const figure = $('.aw-chart'), plot = $('.aw-plot');
let waiting = false;

function traces(runs) {
  return runs.flatMap((run) => {
    const colour = shade(run.colour);
    const held = { name: `${run.name}, held out`, x: run.es, y: run.el, mode: 'lines+markers', legendgroup: run.id, showlegend: false,
      line: { color: colour, width: 1, dash: 'dot' }, marker: { color: colour, size: 6, symbol: 'circle-open' }, hovertemplate: '%{y:.3f}' };
    return [{ name: run.name, x: run.s, y: run.l, mode: 'lines', legendgroup: run.id, hovertemplate: '%{y:.3f}',
      line: { color: colour, width: 1.8, dash: run.dash } }, held];
  });
}

async function draw() {
  const { runs, title, said } = props.value || { runs: [] };
  $('.aw-chart-title').textContent = title || '';
  $('.aw-only-read').textContent = said || '';
  plot.setAttribute('aria-label', `Loss curves. ${title}. ${said}`);
  waiting = !plot.offsetParent;  // a hidden chart has no size to draw in
  if (waiting || !runs.length) return;
  const Plotly = await plotly();
  await Plotly.react(plot, traces(runs), layout({ uirevision: runs.map((run) => run.id).join() }), CONFIG);
  figure.classList.add('aw-has-points');
  figure.dataset.runs = runs.length;
}

const redraw = () => draw().catch((error) => console.warn(String(error)));
watch('value', redraw);
redraw();
new MutationObserver(redraw).observe(document.body, { attributes: true, attributeFilter: ['class'] });
new ResizeObserver(() => {
  if (!plot.offsetParent) return;
  if (waiting) redraw(); else if (window.Plotly && plot.data) window.Plotly.Plots.resize(plot);
}).observe(plot);
