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

function age(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} s ago`;
  if (s < 5400) return `${Math.round(s / 60)} min ago`;
  if (s < 129600) return `${Math.round(s / 3600)} h ago`;
  return `${Math.round(s / 86400)} days ago`;
}

const count = (n, one, many) => `${n} ${n === 1 ? one : many || `${one}s`}`;

// A picture in a box of fixed shape. Small ones (the embedded model draws 64 x 64) are enlarged in the way that suits them: see page.css.
function picture(src, alt) {
  const image = new Image();
  image.alt = alt;
  image.draggable = false;
  image.addEventListener('load', () => image.classList.toggle('small', image.naturalWidth <= 128));
  image.addEventListener('error', () => image.closest('.frame')?.classList.add('lost'));
  image.src = src;
  return image;
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
