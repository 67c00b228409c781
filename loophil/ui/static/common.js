// What every component uses. Texts are written by textContent only: nothing that anybody typed becomes HTML or code.
const find = (selector) => element.querySelector(selector);
const findAll = (selector) => [...element.querySelectorAll(selector)];
const say = (selector, text) => { find(selector).textContent = text; };
const show = (selector, shown) => { find(selector).hidden = !shown; };
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const visible = () => element.isConnected && element.offsetParent !== null;
// What a text of JSON holds, null where it is none: what is kept in the browser may be anybody's.
function parsed(text) {
  try { return JSON.parse(text); } catch { return null; }
}

const storage = (use) => { try { return use(localStorage); } catch { return null; } };  // blocked in some frames: then nothing survives a reload

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

// The name that somebody gave themselves in the settings, "" = none.
const personName = () => storage((s) => s.getItem('loophil.name')) || '';

// Under which name this browser rates, where nobody signs in.
function browserName() {
  const name = storage((s) => s.getItem('loophil.rater')) || newId();
  storage((s) => s.setItem('loophil.rater', name));
  return name;
}

// Where a phone has no room for a tab, Gradio makes it a plain button behind three dots; a click reaches it there, open or not.
const TABS = '.lh-tabs [role=tab], .lh-tabs .overflow-dropdown button';
const openTab = (name) => [...document.querySelectorAll(TABS)].find((tab) => tab.textContent.trim() === name)?.click();

function age(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} s ago`;
  if (s < 5400) return `${Math.round(s / 60)} min ago`;
  if (s < 129600) return `${Math.round(s / 3600)} h ago`;
  return `${Math.round(s / 86400)} days ago`;
}

const ordinal = (n) => n + { one: 'st', two: 'nd', few: 'rd', other: 'th' }[new Intl.PluralRules('en', { type: 'ordinal' }).select(n)];

const versionName = (number, name) => (number === 0 ? 'base' : `v${number}`) + (name ? ` ${name}` : '');

const percent = (share) => Math.round(100 * share);

// How a version did in the blind test; the interval is Wilson's, of 95%.
const verdictWords = (v) => `v${v.version} wins ${v.wins} of ${count(v.n, 'blind pair')} against the base: ${percent(v.share)}% (${percent(v.low)} to ${percent(v.high)})`;

const count = (n, one, many) => `${n} ${n === 1 ? one : many || `${one}s`}`;

// A picture in a box of fixed shape. Small ones (the embedded model draws 64 x 64) are enlarged here: browsers only blur them.
function picture(src, alt) {
  const image = new Image();
  image.alt = alt;
  image.draggable = false;
  image.addEventListener('load', () => { if (image.naturalWidth <= SMALL) later(() => enlarge(image)); });
  image.addEventListener('error', () => image.closest('.frame')?.classList.add('lost'));
  image.dataset.src = src;
  image.src = src;
  return image;
}

const later = window.requestIdleCallback || setTimeout;  // a key that was pressed goes first
const SMALL = 128;
const TIMES = 4;
const REACH = 3;
const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const TAPS = Array.from({ length: TIMES }, (_, phase) => {
  const at = (phase + 0.5) / TIMES - 0.5;
  const left = Math.floor(at) - REACH + 1;
  const weights = Array.from({ length: 2 * REACH }, (_, i) => sinc(at - left - i) * sinc((at - left - i) / REACH));
  const sum = weights.reduce((a, b) => a + b);
  return { left, weights: weights.map((w) => w / sum) };
});

// Lanczos, 4 times as wide, and transposed, so that doing it twice enlarges both ways. Held between the two nearest pixels: edges sharp, no halo.
function stretched(pixels, width, height) {
  const out = new Uint8ClampedArray(pixels.length * TIMES).fill(255);
  for (let x = 0; x < width * TIMES; x += 1) {
    const { left, weights } = TAPS[x % TIMES];
    const start = Math.floor(x / TIMES) + left;
    const columns = weights.map((_, i) => 4 * Math.min(width - 1, Math.max(0, start + i)));
    for (let y = 0; y < height; y += 1) {
      for (let c = 0; c < 3; c += 1) {
        const row = y * width * 4 + c;
        let sum = 0;
        for (let i = 0; i < 2 * REACH; i += 1) sum += weights[i] * pixels[row + columns[i]];
        const a = pixels[row + columns[REACH - 1]];
        const b = pixels[row + columns[REACH]];
        out[(x * height + y) * 4 + c] = Math.min(Math.max(a, b), Math.max(Math.min(a, b), sum));
      }
    }
  }
  return out;
}

function enlarge(image) {
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const canvas = make('canvas');
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext('2d');
  pen.drawImage(image, 0, 0);
  const pixels = stretched(stretched(pen.getImageData(0, 0, width, height).data, width, height), height, width * TIMES);
  [canvas.width, canvas.height] = [width * TIMES, height * TIMES];
  pen.putImageData(new ImageData(pixels, canvas.width, canvas.height), 0, 0);
  image.src = canvas.toDataURL();
}

// A button that changes the run has to be pressed twice within 4 s.
function pressedTwice(button, ask, act) {
  const label = button.textContent;
  let armed = 0;
  button.addEventListener('click', () => {
    if (armed) { clearTimeout(armed); armed = 0; button.textContent = label; act(); return; }
    button.textContent = ask;
    armed = setTimeout(() => { armed = 0; button.textContent = label; }, 4000);
  });
}
