// Which key does what on the board: a map kept in this browser, and the sheet that lists and changes it. Digits and Enter are not in the map, they
// belong to the pictures. Single keys can be switched off (WCAG 2.1.4), since speech input and unsteady hands press them by mistake.
const KEYS_KEPT = 'loophil.keys';
const ACTIONS = { tie: 'Tie', good: 'All good', bad: 'All bad', skip: 'Skip', undo: 'Undo', stars: 'Stars', zoom: 'Zoom', sheet: 'Keys' };
const DEFAULT_MAP = { tie: 't', good: 'g', bad: 'b', skip: 's', undo: 'u', stars: 'm', zoom: 'z', sheet: '?' };
const STEPS = { ArrowLeft: -1, ArrowRight: 1 };
const HOW_TO_BIND = 'To change a key, press it here.';
const sheet = find('.lh-sheet');
const bindable = (key) => typeof key === 'string' && /^[^\s\p{N}\p{Lu}]$/u.test(key);

let keys = readKeys(storage((s) => s.getItem(KEYS_KEPT)));
let binding = null;  // the button of the action that waits for its new key

// What was kept, as far as it makes sense: with one key that is none, or that two actions claim, the whole map is the default.
function readKeys(text) {
  const kept = parsed(text);
  const map = Object.fromEntries(Object.keys(ACTIONS).map((name) => [name, kept?.map?.[name] ?? DEFAULT_MAP[name]]));
  const used = Object.values(map);
  const sound = used.every(bindable) && new Set(used).size === used.length;
  return { on: kept?.on !== false, map: sound ? map : { ...DEFAULT_MAP } };
}

function keepKeys() {
  storage((s) => s.setItem(KEYS_KEPT, JSON.stringify(keys)));
  printKeys();
}

function printKeys() {
  find('.lh-board').dataset.keys = keys.on ? 'on' : 'off';
  find('.single').checked = keys.on;
  for (const node of findAll('[data-key]')) node.textContent = printed(node.dataset.key);
  for (const button of findAll('[data-bind]')) {
    const words = button === binding ? 'press a key' : printed(button.dataset.bind);
    button.textContent = words;
    button.setAttribute('aria-label', `${ACTIONS[button.dataset.bind]}: ${words}`);
    button.classList.toggle('waiting', button === binding);
  }
}

const printed = (name) => keys.map[name].toUpperCase();

// Letters go by what is printed on the key; where the keyboard has no Latin ones, by their place.
function keyOf(event) {
  const key = event.key.toLowerCase();
  const elsewhere = /^\p{L}$/u.test(key) && !/^\p{Script=Latin}$/u.test(key) && /^Key[A-Z]$/.test(event.code);
  return elsewhere ? event.code.slice(3).toLowerCase() : key;
}

const actionOf = (key) => Object.keys(ACTIONS).find((name) => keys.map[name] === key);

function typing(target) {
  if (!(target instanceof Element)) return false;
  if (target.closest('dialog[open], [role=dialog], textarea, select, [contenteditable=""], [contenteditable=true]')) return true;
  return target.matches('input:not([type=radio]):not([type=checkbox])');
}

// What a key does, or null where it is the browser's.
function actOf(event) {
  const digits = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  if (STEPS[event.key] && !digits) return rove(event.target, STEPS[event.key]);
  if (!keys.on) return null;
  if (event.ctrlKey || event.metaKey) return keyOf(event) === 'z' && !event.shiftKey ? undo : null;
  if (digits && !event.shiftKey) return () => digit(Number(digits[1]));
  if (event.key === 'Enter') return event.target.closest?.('button:not([role=tab]), a, summary') ? null : enter;
  if (event.key === 'Backspace') return undo;
  const name = actionOf(keyOf(event));
  return name === 'zoom' ? () => zoomByKey(event.code) : ACTS[name] || null;
}

// Pictures, and the stars of one picture, are one stop of the Tab key each; arrows move within.
function rove(target, step) {
  const row = picks.includes(target) ? picks.slice(0, order.length) : target.closest?.('.stars') ? [...target.parentNode.children] : null;
  return row && (() => focusOn(row, (row.indexOf(target) + step + row.length) % row.length));
}

function focusOn(row, i) {
  row.forEach((node, j) => { node.tabIndex = i === j ? 0 : -1; });
  row[i].focus();
}

// --- the sheet -----------------------------------------------------------------------------------------------------------------------------

function openSheet() {
  bind(null);
  say('.bound', HOW_TO_BIND);
  sheet.showModal();
}

function bind(button) {
  binding = button;
  printKeys();
}

function sheetKey(event) {
  if (!binding || event.repeat || event.key === 'Tab' || /^(Shift|Control|Alt|AltGraph|Meta|CapsLock)$/.test(event.key)) return;
  event.preventDefault();
  const name = binding.dataset.bind;
  const key = keyOf(event);
  const other = actionOf(key);
  if (event.key === 'Escape') {
    say('.bound', `${ACTIONS[name]} keeps ${printed(name)}.`);
    bind(null);
  } else if (event.ctrlKey || event.altKey || event.metaKey || !bindable(key) || /^(Digit|Numpad)\d$/.test(event.code)) {
    say('.bound', 'That key cannot be used. Press a letter or a sign, or Escape.');
  } else if (other && other !== name) {
    say('.bound', `${printed(other)} is already the key for ${ACTIONS[other]}. Press another key, or Escape.`);
  } else {
    keys.map[name] = key;
    say('.bound', `${ACTIONS[name]} is now ${printed(name)}.`);
    binding = null;
    keepKeys();
  }
}

for (const button of findAll('[data-bind]')) {
  button.addEventListener('click', () => { bind(button); say('.bound', `Press the new key for ${ACTIONS[button.dataset.bind]}, or Escape.`); });
  button.addEventListener('blur', () => { if (button === binding) { bind(null); say('.bound', HOW_TO_BIND); } });
}
find('.single').addEventListener('change', (event) => { keys.on = event.target.checked; keepKeys(); tell(); });
find('.reset').addEventListener('click', () => { keys.map = { ...DEFAULT_MAP }; keepKeys(); say('.bound', 'All keys are as they were at first.'); });
find('.lh-sheet .close').addEventListener('click', () => sheet.close());
sheet.addEventListener('click', (event) => { if (event.target === sheet) sheet.close(); });  // beside it
sheet.addEventListener('close', () => { bind(null); if (sheet.contains(document.activeElement)) document.activeElement.blur(); });
printKeys();
