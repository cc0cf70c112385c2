// Draws the tree that safe_view.py describes. Text is set as text; nothing is ever parsed as HTML.
// The page loads this once, in its head; each view calls it with what Gradio gives to its script.
window.drawSafely = (element, props, trigger, watch) => {
const TAGS = new Set(('div section span p b strong em small h2 h3 ul ol li dl dt dd table caption thead tbody '
  + 'tr th td button details summary code pre input output').split(' '));
const NAMES = new Set(['class', 'title', 'role', 'scope', 'colspan', 'disabled', 'tabindex', 'open', 'lang']);
const RANGE = new Set(['min', 'max', 'step']);
const COLOUR = /^#[0-9a-fA-F]{6}$/;

function setAttributes(dom, wanted) {
  const keep = new Set();
  for (const [name, value] of Object.entries(wanted)) {
    if (name === 'colour') { if (COLOUR.test(value)) dom.style.setProperty('--c', value); keep.add('style'); continue; }
    if (name === 'share') { dom.style.setProperty('--share', String(Math.min(1, Math.max(0, Number(value) || 0)))); keep.add('style'); continue; }
    if (dom.tagName === 'INPUT' && setRange(dom, name, value)) { keep.add(name); continue; }
    if (!NAMES.has(name) && !/^(aria|data)-[a-z-]+$/.test(name)) continue;
    keep.add(name);
    if (name === 'open' && dom.dataset.drawn) continue;  // once drawn, only the user opens or closes it
    const text = value === true ? '' : String(value);
    if (dom.getAttribute(name) !== text) dom.setAttribute(name, text);
  }
  for (const { name } of [...dom.attributes]) if (!keep.has(name) && name !== 'data-drawn' && name !== 'open') dom.removeAttribute(name);
  dom.dataset.drawn = '1';
}

// The only input is a slider. Its value is not changed while it has the focus.
function setRange(dom, name, value) {
  if (name === 'type') { dom.type = 'range'; return true; }
  if (RANGE.has(name)) { if (dom.getAttribute(name) !== String(value)) dom.setAttribute(name, Number(value)); return true; }
  if (name !== 'value') return false;
  if (document.activeElement !== dom && dom.value !== String(value)) dom.value = Number(value);
  return true;
}

function make(node) {
  if (!Array.isArray(node)) return document.createTextNode(String(node));
  const dom = document.createElement(TAGS.has(node[0]) ? node[0] : 'span');
  if (node[0] === 'button') dom.type = 'button';
  return fill(dom, node);
}

function fill(dom, [, attributes, children]) {
  setAttributes(dom, attributes || {});
  drawChildren(dom, children || []);
  return dom;
}

function drawChildren(dom, children) {
  children.forEach((child, index) => {
    const old = dom.childNodes[index];
    if (!old) dom.append(make(child));
    else if (!Array.isArray(child) && old.nodeType === Node.TEXT_NODE) { if (old.data !== String(child)) old.data = String(child); }
    else if (Array.isArray(child) && old.nodeName.toLowerCase() === child[0]) fill(old, child);
    else old.replaceWith(make(child));
  });
  while (dom.childNodes.length > children.length) dom.lastChild.remove();
}

// What is shown is the value, or what the page's poll has brought since (polling.py). The mark says
// which of the latter it is.
let shown = props.value;
function draw() {
  const mount = element.querySelector('.aw-mount');
  if (mount && Array.isArray(shown)) drawChildren(mount, [shown]);
}
function drawValue() {
  shown = props.value;
  delete element.querySelector('.aw-mount')?.dataset.mark;
  draw();
}
element.addEventListener('aw-news', ({ detail }) => { shown = detail; draw(); });

function act(event) {
  const target = event.target.closest('[data-act]');
  if (!target || target.tagName === 'INPUT' || target.hasAttribute('disabled')) return;
  if (event.type === 'keydown') {
    if (target.tagName === 'BUTTON' || !['Enter', ' '].includes(event.key)) return;
    event.preventDefault();
  }
  trigger('click', { act: target.dataset.act, arg: target.dataset.arg || '' });
}

function slide(event) {
  const target = event.target;
  if (!target.matches('input[data-act]')) return;
  if (target.nextElementSibling) target.nextElementSibling.textContent = Number(target.value).toFixed(2);
  if (event.type !== 'change') return;
  clearTimeout(resting);
  resting = null;
  if (keyed) { resting = setTimeout(send, 400, target); return; }  // a held key sends many changes
  send(target);
  target.blur();
}

// A slider moved by keys keeps the focus, and keeps its own value until it loses the focus.
let keyed = false, resting = null;
function send(target) {
  resting = null;
  trigger('click', { act: target.dataset.act, arg: target.dataset.arg || '', value: target.value });
}
function leave(event) {
  if (!keyed || !event.target.matches('input[data-act]')) return;
  if (resting === null) { draw(); return; }
  clearTimeout(resting);
  send(event.target);
}
element.addEventListener('keydown', () => { keyed = true; });
element.addEventListener('pointerdown', () => { keyed = false; });
element.addEventListener('focusout', leave);

element.addEventListener('input', slide);
element.addEventListener('change', slide);
element.addEventListener('click', act);
element.addEventListener('keydown', act);
watch('value', drawValue);
draw();
};
