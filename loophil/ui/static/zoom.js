// One picture large, over the page, for as long as a key, a finger or the mouse is held. It shows and never rates: clicks are swallowed meanwhile.
const LONG_PRESS = 350;  // ms
let zoomed = null;    // position shown that is large
let held = null;      // code of the key that holds it
let press = 0;        // timer of a finger on its way to a long press
let swallow = false;  // the click that ends a long press

function zoom(shown) {
  if (leaving) next();
  if (!current) return;
  zoomed = (shown + order.length) % order.length;
  const { src, alt } = current.images[order[zoomed]];
  find('.lh-zoom .frame').replaceChildren(picture(src, alt));
  say('.lh-zoom figcaption', `${zoomed + 1} of ${order.length}`);
  show('.lh-zoom', true);
}

function unzoom() {
  zoomed = null;
  held = null;
  show('.lh-zoom', false);
}

const cardOf = (node) => findAll('.lh-card').findIndex((card) => card.contains(node));

// The picture under the pointer, else the one with the focus, else the first.
function zoomByKey(code) {
  zoom(Math.max(0, cardOf(find('.lh-card:hover') || document.activeElement)));
  held = code;
}

function zoomActOf(event) {
  if (/^(Digit|Numpad)[1-9]$/.test(event.code)) return () => { const shown = Number(event.code.slice(-1)) - 1; if (shown < order.length) zoom(shown); };
  if (STEPS[event.key]) return () => zoom(zoomed + STEPS[event.key]);
  return event.key === 'Escape' ? unzoom : null;
}

function onKeyUp(event) {
  if (!element.isConnected) { document.removeEventListener('keyup', onKeyUp); return; }
  if (held !== null && event.code === held) unzoom();
}

// A finger that begins to scroll is cancelled by the browser.
function onRelease(event) {
  if (!element.isConnected) { ['pointerup', 'pointercancel', 'blur'].forEach((name) => window.removeEventListener(name, onRelease)); return; }
  clearTimeout(press);
  press = 0;
  if (zoomed !== null && (held === null || event.type === 'blur')) unzoom();
}

function onPress(event) {
  swallow = false;
  clearTimeout(press);
  press = 0;
  const shown = cardOf(event.target);
  if (shown < 0 || event.button !== 0 || !event.isPrimary) return;
  const start = () => { swallow = true; zoom(shown); };
  if (event.target.closest('.loupe')) start();
  else if (event.pointerType !== 'mouse' && event.target.closest('.pick')) press = setTimeout(start, LONG_PRESS);
}

function onClick(event) {
  const byKeyboard = event.detail === 0 && event.target.closest('.loupe');
  if (!byKeyboard && zoomed === null && !(swallow && event.detail)) return;
  event.preventDefault();
  event.stopPropagation();
  swallow = false;
  if (byKeyboard) { if (zoomed === null) zoom(cardOf(event.target)); else unzoom(); }
}

document.addEventListener('keyup', onKeyUp);
for (const name of ['pointerup', 'pointercancel', 'blur']) window.addEventListener(name, onRelease);
element.addEventListener('pointerdown', onPress);
element.addEventListener('click', onClick, true);
find('.lh-cards').addEventListener('touchmove', (event) => { if (zoomed !== null && event.cancelable) event.preventDefault(); }, { passive: false });  // no scrolling under it
find('.lh-cards').addEventListener('contextmenu', (event) => { if (press || zoomed !== null) event.preventDefault(); });  // what phones make of a long press
