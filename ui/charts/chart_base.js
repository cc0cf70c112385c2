// Shared by all charts: plotly.js from this machine, theme colours, axes. Must come first.
const plotly = () => (window.awPlotly ??= new Promise((resolve, reject) => {
  const script = document.createElement('script');
  script.src = new URL('gradio_api/file=' + __PLOTLY__, document.baseURI).href;
  script.onload = () => resolve(window.Plotly);
  script.onerror = () => { window.awPlotly = undefined; reject(new Error('plotly.js did not load')); };
  document.head.append(script);
}));

const css = (name) => getComputedStyle(element).getPropertyValue(name).trim();
const isDark = () => document.body.classList.contains('dark') || !!document.querySelector('.dark');

function shade(colour) {  // light colours are invisible on white: darken them
  const hex = /^#[0-9a-f]{6}$/i.test(colour) ? colour : '#0072B2';
  const part = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const bright = (0.3 * part[0] + 0.59 * part[1] + 0.11 * part[2]) / 255;
  const factor = !isDark() && bright > 0.55 ? 0.72 : 1;
  const lift = isDark() && bright < 0.4 ? 60 : 0;
  return `rgb(${part.map((v) => Math.min(255, Math.round(v * factor + lift))).join(',')})`;
}

const axis = (title, extra) => ({ title: { text: title, standoff: 8 }, gridcolor: css('--aw-grid'),
  linecolor: css('--aw-line'), zeroline: false, ticks: '', automargin: true,
  ticklabeloverflow: 'allow', ...extra });  // measuring each label is a third of a redraw

function layout(extra) {
  return { margin: { l: 52, r: 12, t: 26, b: 40 }, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: { family: css('--font'), size: 12, color: css('--aw-quiet') }, hovermode: 'x unified',
    hoverlabel: { bgcolor: css('--background-fill-primary'), bordercolor: css('--aw-line'), font: { color: css('--body-text-color') } },
    legend: { orientation: 'h', x: 0, xanchor: 'left', y: 1, yanchor: 'bottom', bgcolor: 'rgba(0,0,0,0)' },
    xaxis: axis('step'), yaxis: axis('loss (nats per token)', { rangemode: 'tozero' }),
    ...extra };
}

const CONFIG = { responsive: true, displaylogo: false, displayModeBar: 'hover', doubleClick: 'reset+autosize',
  plotlyServerURL: '', modeBarButtonsToRemove: ['sendChartToCloud', 'select2d', 'lasso2d', 'autoScale2d', 'toImage'] };
