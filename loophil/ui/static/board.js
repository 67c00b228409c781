// The rating board. It rates here and tells the server behind: each act is kept in this browser, under a key of its own so that tabs do not
// overwrite each other, until the server has acknowledged its id. The server answers with the groups that come next and a revision.
const PREFIX = `loophil.${find('.lh-board').dataset.run}.`;
const FLASH = matchMedia('(prefers-reduced-motion: reduce)').matches ? 0 : 120;  // ms for which a finished choice stays in view
const TOUCH = matchMedia('(hover: none)').matches;
const RESEND = 3000;
const KINDS = { KeyT: 'tie', KeyG: 'good', KeyB: 'bad', KeyS: 'skip' };

const storage = (use) => { try { return use(localStorage); } catch { return null; } };  // blocked in some frames: then nothing survives a reload
const cards = findAll('.lh-card');

let outbox = [];        // acts not yet acknowledged, oldest first
let queue = [];         // groups to come, pictures loading
let current = null;     // the group on the board
let history = [];       // groups rated on this page, for undo
let seen = new Set();   // a guest's ratings are not stored, so the server offers the same groups again
let order = [];         // position shown -> position in the group
let best = null;        // position shown
let stars = [];         // by position shown
let shownAt = 0;
let revision = -1;
let rater = null;
let guest = false;
let leaving = 0;        // timer of the flash
let status = null;
let lastSent = 0;
let lastAnswer = 0;
let said = 0;

// --- what is kept in the browser ---------------------------------------------------------------------------------------------------------

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

function recall() {
  rater = storage((s) => s.getItem('loophil.rater')) || newId();
  storage((s) => s.setItem('loophil.rater', rater));
  storage((s) => {
    for (let i = 0; i < s.length; i += 1) {
      if (s.key(i).startsWith(`${PREFIX}act.`)) outbox.push(JSON.parse(s.getItem(s.key(i))));
    }
  });
  outbox.sort((a, b) => a.at - b.at);
  history = JSON.parse(storage((s) => sessionStorage.getItem(`${PREFIX}history`)) || '[]');
}

function post(act) {
  outbox.push(act);
  storage((s) => s.setItem(`${PREFIX}act.${act.uid}`, JSON.stringify(act)));
  send();
}

function remember(group) {
  history = [...history, { id: group.id, prompt: group.prompt, version: group.version, pictures: group.pictures }].slice(-20);
  storage(() => sessionStorage.setItem(`${PREFIX}history`, JSON.stringify(history)));
}

function send(more) {
  lastSent = performance.now();
  trigger('sync', { rater, batch: outbox.slice(0, 50), ...more });
}

// --- what the server says ----------------------------------------------------------------------------------------------------------------

function absorb(value) {
  if (value.asked !== undefined || value.error) { answerWish(value); return; }
  if (value.guest === undefined) return;
  lastAnswer = performance.now();
  guest = value.guest;
  for (const uid of value.ack || []) storage((s) => s.removeItem(`${PREFIX}act.${uid}`));
  outbox = outbox.filter((act) => !(value.ack || []).includes(act.uid));
  const words = [value.notice, ...(value.refused || [])].filter(Boolean).join(' ');
  if (words) notice(words);
  if (value.prompts) offer(value.prompts);
  if (value.back) bringBack(value.back);
  if (value.rev > revision) {
    revision = value.rev;
    const rated = new Map(outbox.map((act) => [act.gid, act.kind !== 'undo']));
    const old = new Map(queue.map((group) => [group.id, group]));
    queue = value.groups.filter((group) => group.id !== current?.id && !rated.get(group.id) && !(guest && seen.has(group.id)))
      .map((group) => old.get(group.id) || loaded(group));
  }
  if (!current && !leaving) next(); else tell();
}

function loaded(group) {
  const images = group.pictures.map((src, i) => picture(src, `candidate ${i + 1} of ${group.pictures.length}`));
  return { ...group, images };
}

function offer(prompts) {
  find('datalist').replaceChildren(...prompts.map((text) => { const option = make('option'); option.value = text; return option; }));
}

// --- the board ---------------------------------------------------------------------------------------------------------------------------

function next() {
  clearTimeout(leaving);
  leaving = 0;
  current = queue.shift() || null;
  put();
}

function put() {
  clearMarks();
  element.querySelector('.lh-board').dataset.state = current ? 'rating' : 'waiting';
  order = cards.map((_, i) => i).slice(0, current ? current.images.length : cards.length);
  if (current) shuffle(order);
  cards.forEach((card, shown) => {
    card.hidden = current !== null && shown >= order.length;
    const frame = card.querySelector('.frame');
    frame.classList.remove('lost');
    frame.replaceChildren(...(current && !card.hidden ? [current.images[order[shown]]] : []));
    card.querySelector('.pick').disabled = current === null;
  });
  say('.prompt', current ? current.prompt : '\u00a0');
  shownAt = performance.now();
  tell();
}

function shuffle(list) {
  for (let i = list.length - 1; i > 0; i -= 1) {
    const j = Math.floor(Math.random() * (i + 1));
    [list[i], list[j]] = [list[j], list[i]];
  }
}

function clearMarks() {
  best = null;
  stars = [];
  cards.forEach((card) => { mark(card, ''); light(card, 0); });
}

function mark(card, word) {
  card.dataset.mark = word;
  card.querySelector('.mark').textContent = word;
  card.querySelector('.pick').setAttribute('aria-pressed', String(word !== ''));
}

function light(card, n) {
  card.querySelectorAll('.stars button').forEach((star, i) => { star.classList.toggle('on', i < n); star.setAttribute('aria-pressed', String(i + 1 === n)); });
}

function choose(shown) {
  if (leaving) next();
  if (!current || shown >= order.length) return;
  if (stars.length) clearMarks();
  if (best === null) {
    best = shown;
    mark(cards[shown], 'best');
    tell();
  } else if (best === shown) {
    commit('best', { best: order[best], worst: null }, `best ${best + 1}`);
  } else {
    mark(cards[shown], 'worst');
    commit('best', { best: order[best], worst: order[shown] }, `best ${best + 1}, worst ${shown + 1}`);
  }
}

function star(shown, n) {
  if (leaving) next();
  if (!current || shown >= order.length) return;
  if (best !== null) clearMarks();
  stars[shown] = n;
  light(cards[shown], n);
  if (order.every((_, i) => stars[i])) commitStars(); else tell();
}

function commitStars() {
  const inGroup = order.map(() => null);
  order.forEach((position, shown) => { inGroup[position] = stars[shown] || null; });
  commit('stars', { stars: inGroup }, `${order.map((_, shown) => stars[shown] || '–').join(' ')} stars`);
}

function enter() {
  if (leaving) next();
  if (!current) return;
  if (stars.length) commitStars(); else if (best !== null) commit('best', { best: order[best], worst: null }, `best ${best + 1}`);
}

function commit(kind, what, words) {
  if (leaving) next();
  if (!current) return;
  const ms = Math.round(performance.now() - shownAt);
  const group = current;
  remember(group);
  seen.add(group.id);
  current = null;
  say('.last', guest ? `Last: ${words} (demo, not stored)` : `Last: ${words}`);
  post({ uid: newId(), gid: group.id, kind, ...what, order, ms, at: Date.now() });
  leaving = setTimeout(next, FLASH);
  tell();
}

function undo() {
  if (best !== null || stars.length) { if (!leaving) { clearMarks(); tell(); return; } }
  if (leaving) { clearTimeout(leaving); leaving = 0; }
  const group = history.pop();
  storage(() => sessionStorage.setItem(`${PREFIX}history`, JSON.stringify(history)));
  if (!group) { send({ undo: true }); return; }
  seen.delete(group.id);
  bringBack(group);
  if (!guest) post({ uid: newId(), gid: group.id, kind: 'undo', order: [], at: Date.now() });
}

function bringBack(group) {
  clearTimeout(leaving);
  leaving = 0;
  if (current?.id === group.id) return;
  queue = [...(current ? [current] : []), ...queue.filter((other) => other.id !== group.id)];
  current = loaded(group);
  say('.last', 'Taken back');
  put();
}

const ACTS = { enter, undo, tie: () => commit('tie', {}, 'tie'), good: () => commit('good', {}, 'all good'), bad: () => commit('bad', {}, 'all bad'), skip: () => commit('skip', {}, 'skipped') };

// --- words -------------------------------------------------------------------------------------------------------------------------------

function tell() {
  say('.hint', hint());
  say('.enter', stars.length ? 'Done' : 'Best only');
  find('[data-act=enter]').classList.toggle('strong', !leaving && (best !== null || stars.length > 0));
  const unsent = guest ? 0 : outbox.length;
  say('.ahead', [unsent > 1 ? `${unsent} to send` : '', queue.length ? `${queue.length} more ready` : ''].filter(Boolean).join(' · '));
}

function hint() {
  if (leaving) return '\u00a0';
  if (!current) return waiting();
  if (stars.length) return TOUCH ? 'Give the others stars too, or tap Done.' : 'Give the others stars too, or press Enter to keep only these.';
  if (best !== null) return TOUCH ? 'And the worst? Tap it, or tap Best only.' : 'And the worst? Press its number, or Enter for best only.';
  return TOUCH ? 'Which is the best? Tap it. Or give stars.' : `Which is the best? Press 1 to ${order.length}, or click. Or give stars.`;
}

function waiting() {
  if (guest && seen.size) return 'That was the demo. Sign in to teach this model; nothing of the demo was stored.';
  const worker = String(status?.worker || '');
  if (status?.last_error && !status.ready) return `No pictures are ready. ${status.last_error}`;
  if (!status || /start|load/i.test(worker)) return 'The model is loading. The first pictures appear here in a moment.';
  const seconds = status.seconds_per_group;
  return seconds ? `The next pictures are being drawn, about ${Math.max(1, Math.round(seconds))} s.` : 'The next pictures are being drawn.';
}

function notice(words) {
  say('.notice', words);
  show('.notice', words !== '');
  said = performance.now();
}

function answerWish(value) {
  notice(value.error || `"${value.asked}" is drawn next.`);
  if (!value.error) { find('.wish').value = ''; send(); }
}

// --- keys, mouse, clock ------------------------------------------------------------------------------------------------------------------

function typing(target) {
  if (!(target instanceof Element)) return false;
  if (target.closest('[role=dialog], textarea, select, [contenteditable=""], [contenteditable=true]')) return true;
  return target.matches('input:not([type=radio]):not([type=checkbox])');
}

function onKey(event) {
  if (!element.isConnected) { document.removeEventListener('keydown', onKey); return; }
  if (!visible() || event.repeat || event.isComposing || event.altKey || typing(event.target)) return;
  const letter = /^[a-z]$/i.test(event.key) ? `Key${event.key.toUpperCase()}` : event.code;
  let act = null;
  if (event.ctrlKey || event.metaKey) {
    if (letter === 'KeyZ' && !event.shiftKey) act = undo;
  } else if (/^(Digit|Numpad)[1-9]$/.test(event.code) && !event.shiftKey) {
    act = () => choose(Number(event.code.slice(-1)) - 1);
  } else if (event.key === 'Enter') {
    if (!event.target.closest?.('button:not([role=tab]), a, summary')) act = enter;
  } else if (letter === 'KeyU' || event.key === 'Backspace') {
    act = undo;
  } else if (KINDS[letter]) {
    act = ACTS[KINDS[letter]];
  }
  if (act) { event.preventDefault(); act(); }
}

document.addEventListener('keydown', onKey);
element.addEventListener('mousedown', (event) => { if (event.target.closest('.lh-cards, .lh-actions')) event.preventDefault(); });  // Enter stays ours after a click
cards.forEach((card, shown) => {
  card.querySelector('.pick').addEventListener('click', () => choose(shown));
  card.querySelectorAll('.stars button').forEach((button, i) => button.addEventListener('click', () => star(shown, i + 1)));
});
findAll('[data-act]').forEach((button) => button.addEventListener('click', () => ACTS[button.dataset.act]()));
find('.unfocused button').addEventListener('click', () => { window.focus(); look(); });
find('.lh-ask').addEventListener('submit', (event) => {
  event.preventDefault();
  const prompt = find('.wish').value.trim();
  if (prompt) { notice(''); trigger('ask', { prompt }); find('.wish').blur(); }
});

function look() {
  show('.unfocused', !document.hasFocus());
}

function onStatus(event) {
  if (!element.isConnected) { window.removeEventListener('loophil:status', onStatus); return; }
  status = event.detail;
  if (!current) tell();
}

function tick() {
  if (!element.isConnected) { clearInterval(clock); return; }
  const now = performance.now();
  look();
  if (said && now - said > 12000) { notice(''); said = 0; }
  if (!guest && outbox.length && now - lastAnswer > 5000 && lastSent) notice(`Reconnecting. ${count(outbox.length, 'rating')} kept in this browser.`);
  const since = now - lastSent;
  if (outbox.length && since > RESEND) send();
  else if (visible() && !document.hidden && (since > 15000 || (since > 1200 && !current) || (since > RESEND && queue.length < 2))) send();
}

const clock = setInterval(tick, 1500);
window.addEventListener('loophil:status', onStatus);
window.addEventListener('focus', look);
window.addEventListener('blur', look);
watch('value', () => absorb(props.value || {}));
recall();
put();
send({ hello: true });
