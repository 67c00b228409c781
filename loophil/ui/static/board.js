// The rating board. It rates here and tells the server behind: each act is kept in this browser, under a key of its own so that tabs do not
// overwrite each other, until the server has acknowledged its id. The server answers with the groups that come next and a revision.
const FLASH = matchMedia('(prefers-reduced-motion: reduce)').matches ? 0 : 120;  // ms for which a finished choice stays in view
const TOUCH = matchMedia('(hover: none)').matches;
const RESEND = 3000;
const SEEN_TAB = 12000;  // ms after which a tab that was silent is taken for closed
const SILENCE = 5000;  // ms without an answer after which the server counts as gone
const PATIENCE = 6000;  // ms of loading before there is an example
const MODE_KEPT = 'loophil.stars';
const EXAMPLE = [['#f4b942', '#1c3d5a'], ['#e4572e', '#f3e9dc'], ['#3f8f6b', '#f3e9dc'], ['#8f5fbf', '#2b2b33']].map(([shape, ground], i) => {
  const drawn = [`<circle cx='32' cy='32' r='17'/>`, `<path d='M32 13 51 49H13Z'/>`, `<rect x='16' y='16' width='32' height='32' rx='5'/>`, `<path d='M32 12 52 32 32 52 12 32Z'/>`][i];
  return `data:image/svg+xml,${encodeURIComponent(`<svg xmlns='http://www.w3.org/2000/svg' width='512' height='512' viewBox='0 0 64 64'><rect width='64' height='64' fill='${ground}'/><g fill='${shape}'>${drawn}</g></svg>`)}`;
});

const cards = findAll('.lh-card');
const picks = findAll('.pick');

let run = null;         // its name; known with the server's first answer
let k = 4;              // images of a group
let outbox = [];        // acts not yet acknowledged, oldest first
let queue = [];         // groups to come, pictures loading
let current = null;     // the group on the board
let history = [];       // groups rated on this page, for undo
let seen = new Set();   // a guest's ratings are not stored, so the server offers the same groups again
let order = [];         // position shown -> position in the group
let best = null;        // position shown
let stars = [];         // by position shown: 1 to 5, null = none on purpose, undefined = not yet
let given = [];         // positions shown, in the order in which they got their stars
let starMode = storage((s) => s.getItem(MODE_KEPT)) === 'on';  // digits are the stars of the picture whose turn it is
let turn = 0;           // position shown
let example = null;     // pictures to try the keys on while the model loads; nothing of it is sent
let last = null;        // what was done last: the group's id, words and best picture in shown numbers, the order shown
let shownAt = 0;
let revision = -1;
let rater = null;
let tab = null;         // groups are leased to it; a reload keeps it
let guest = false;
let stranger = null;    // the name under which a guest has signed in
let leaving = 0;        // timer of the flash
let status = null;
let lastSent = 0;
let unanswered = 0;     // when something was sent first since the last answer, 0 = there was one
let said = 0;
let reconnecting = false;  // whether the notice says so
const others = new Map();  // this browser's other tabs on the run -> when they were heard of
let channel = null;

// --- what is kept in the browser ---------------------------------------------------------------------------------------------------------

const keyOfRun = (name) => `loophil.${run}.${name}`;

// What was kept of this run. When the server opens another one, the page begins anew.
function enterRun(name, size) {
  if (run === name && k === size) return;
  if (run !== null) { location.reload(); return; }
  [run, k] = [name, size];
  cards.splice(k).forEach((card) => card.remove());
  picks.splice(k);
  say('.most', k);
  find('.lh-board').dataset.run = run;
  if ('BroadcastChannel' in window) {
    channel = new BroadcastChannel(keyOfRun('tabs'));
    channel.onmessage = ({ data }) => { if (data !== tab) others.set(data, performance.now()); };
  }
  storage((s) => {
    for (let i = 0; i < s.length; i += 1) {
      const act = s.key(i).startsWith(keyOfRun('act.')) && parsed(s.getItem(s.key(i)));
      if (act?.uid) outbox.push(act);
    }
  });
  outbox.sort((a, b) => a.at - b.at);
  const kept = parsed(storage(() => sessionStorage.getItem(keyOfRun('history'))));
  history = Array.isArray(kept) ? kept.filter((group) => Array.isArray(group?.pictures)) : [];
}

function post(act) {
  outbox.push(act);
  storage((s) => s.setItem(keyOfRun(`act.${act.uid}`), JSON.stringify(act)));
  send();
}

function remember(group) {
  history = [...history, { id: group.id, prompt: group.prompt, version: group.version, pictures: group.pictures }].slice(-20);
  storage(() => sessionStorage.setItem(keyOfRun('history'), JSON.stringify(history)));
}

function send(more) {
  lastSent = performance.now();
  unanswered ||= lastSent;
  trigger('sync', { rater, who: personName(), tab, batch: outbox.slice(0, 50), ...more });
}

// --- what the server says ----------------------------------------------------------------------------------------------------------------

function absorb(value) {
  if (value.asked !== undefined || value.error) { answerWish(value); return; }
  if (value.guest === undefined) return;
  unanswered = 0;
  [guest, stranger] = [value.guest, value.signed_in];
  enterRun(value.run, value.k);
  for (const uid of value.ack || []) storage((s) => s.removeItem(keyOfRun(`act.${uid}`)));
  outbox = outbox.filter((act) => !(value.ack || []).includes(act.uid));
  if (reconnecting) notice('');
  const words = [value.notice, ...(value.refused || [])].filter(Boolean).join(' ');
  if (words) notice(words);
  if (value.prompts) offer(value.prompts);
  if (value.back) bringBack(value.back);
  if (last && value.facts?.[last.gid]) reveal(value.facts[last.gid]);
  if (value.rev > revision) {
    revision = value.rev;
    const rated = new Map(outbox.map((act) => [act.gid, act.kind !== 'undo']));
    const old = new Map(queue.map((group) => [group.id, group]));
    queue = value.groups.filter((group) => group.id !== current?.id && !rated.get(group.id) && !(guest && seen.has(group.id)))
      .map((group) => old.get(group.id) || loaded(group));
  }
  const practised = example !== null && current === example && best === null && !given.length;
  if (!leaving && queue.length && (!current || practised)) { next(); return; }
  const sketches = value.sketches || [];
  if (practised && sketches.length) { current = null; put(); }
  if (!leaving && !current) sketch(sketches);
  tell();
}

function loaded(group) {
  const made = { ...group, images: group.pictures.map((src) => picture(src, '')) };
  for (const image of made.images) image.addEventListener('error', () => { if (current === made) mend(made, image); });
  return made;
}

const broken = (image) => image.complete && image.naturalWidth === 0;

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

// What is being drawn, as far as it is: rough, not to be rated.
function sketch(pictures) {
  cards.forEach((card, i) => {
    const image = pictures[i] ? picture(pictures[i], `candidate ${i + 1}, being drawn`) : null;
    image?.classList.add('rough');
    card.querySelector('.frame').replaceChildren(...(image ? [image] : []));
  });
}

function put() {
  const sketched = find('.frame .rough') !== null;  // who has watched them come does not see them change places
  clearMarks();
  unzoom();
  element.querySelector('.lh-board').dataset.state = !current ? 'waiting' : current === example ? 'example' : 'rating';
  order = cards.map((_, i) => i).slice(0, current ? current.images.length : k);
  if (current && !sketched) shuffle(order);
  cards.forEach((card, shown) => {
    card.hidden = shown >= order.length;
    const frame = card.querySelector('.frame');
    const image = current && !card.hidden ? current.images[order[shown]] : null;
    if (image) image.alt = `candidate ${shown + 1} of ${order.length}`;
    frame.classList.toggle('lost', Boolean(image) && broken(image));
    frame.replaceChildren(...(image ? [image] : []));
    picks[shown].setAttribute('aria-label', `candidate ${shown + 1} of ${order.length}`);
    picks[shown].setAttribute('aria-disabled', String(current === null));  // not `disabled`, which would lose the focus between groups
  });
  say('.prompt', current ? current.prompt : '\u00a0');
  for (const image of current?.images.filter(broken) || []) mend(current, image);
  shownAt = performance.now();
  tell();
}

// A picture that is gone for good makes its group one that says nothing; one that only could not be fetched is tried again.
async function mend(group, image) {
  const answer = await fetch(image.dataset.src, { method: 'HEAD', cache: 'no-store' }).catch(() => null);
  if (current !== group) return;
  if (answer && answer.status >= 400 && answer.status < 500) {
    commit('skip', {}, 'skipped, a picture is lost');
  } else {
    setTimeout(() => { if (current === group) { image.src = image.dataset.src; image.closest('.frame')?.classList.remove('lost'); } }, RESEND);
  }
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
  given = [];
  cards.forEach((card) => { mark(card, ''); light(card, 0); });
  turnTo(0);
}

function mark(card, word) {
  card.dataset.mark = word;
  card.querySelector('.mark').textContent = word;
  const pick = card.querySelector('.pick');
  pick.setAttribute('aria-pressed', String(word === 'best' || word === 'worst'));
  pick.setAttribute('aria-label', [pick.getAttribute('aria-label').split(',')[0], word].filter(Boolean).join(', '));
}

function light(card, n) {
  card.querySelectorAll('.stars button').forEach((star, i) => { star.classList.toggle('on', i < n); star.setAttribute('aria-pressed', String(i + 1 === n)); });
}

function choose(shown) {
  if (leaving) next();
  if (!current || shown >= order.length) return;
  if (starMode) { turnTo(shown); tell(); return; }
  if (given.length) clearMarks();
  if (best === null) {
    best = shown;
    mark(cards[shown], 'best');
    tell();
  } else if (best === shown) {
    commitBest(null);
  } else {
    mark(cards[shown], 'worst');
    commitBest(shown);
  }
}

function star(shown, n) {
  if (leaving) next();
  if (!current || shown >= order.length) return;
  if (best !== null) clearMarks();
  give(shown, n);
  const open = order.map((_, i) => (shown + 1 + i) % order.length).find((i) => stars[i] === undefined);
  if (open === undefined) { commitStars(); return; }
  turnTo(open);
  tell();
}

// n stars, null for none on purpose, undefined to take them back.
function give(shown, n) {
  stars[shown] = n;
  given = given.filter((i) => i !== shown);
  if (n !== undefined) given.push(shown);
  light(cards[shown], n || 0);
  mark(cards[shown], n === null ? 'no stars' : '');
}

function digit(n) {
  if (!starMode) { if (n) choose(n - 1); return; }
  if (leaving) next();
  if (n <= 5) star(turn, n || null);
}

function turnTo(shown) {
  turn = shown;
  if (starMode && document.activeElement !== picks[shown] && picks.includes(document.activeElement)) focusOn(picks, shown);
}

function commitBest(worst) {
  const words = worst === null ? `best ${best + 1}` : `best ${best + 1}, worst ${worst + 1}`;
  commit('best', { best: order[best], worst: worst === null ? null : order[worst] }, words, best);
}

function commitStars() {
  const inGroup = order.map(() => null);
  order.forEach((position, shown) => { inGroup[position] = stars[shown] || null; });
  const most = Math.max(...inGroup);
  if (most === 0) { commit('skip', {}, 'skipped'); return; }
  const favourites = order.map((_, shown) => shown).filter((shown) => stars[shown] === most);
  const words = `${order.map((_, shown) => stars[shown] || '–').join(' ')} stars`;
  commit('stars', { stars: inGroup }, words, favourites.length === 1 ? favourites[0] : null);
}

function enter() {
  if (leaving) next();
  if (!current) return;
  if (given.length) commitStars(); else if (best !== null) commitBest(null);
}

function commit(kind, what, words, favourite = null) {
  if (leaving) next();
  if (!current) return;
  const ms = Math.round(performance.now() - shownAt);
  const group = current;
  if (group === example) { say('.last', `You chose: ${words} (an example, not stored)`); current = null; leaving = setTimeout(next, FLASH); tell(); return; }
  remember(group);
  seen.add(group.id);
  current = null;
  last = { gid: group.id, words: `Last: ${words}`, order, favourite };
  say('.last', guest ? `${last.words} (demo, not stored)` : last.words);
  post({ uid: newId(), gid: group.id, kind, ...what, order, ms, at: Date.now() });
  leaving = setTimeout(next, FLASH);
  tell();
}

// Something to try the keys on while a large model loads.
function practise() {
  const images = cards.map((_, i) => picture(EXAMPLE[i % EXAMPLE.length], ''));
  example = { id: 'example', prompt: 'An example, to try the keys while the model loads', images };
  current = example;
  put();
}

// Only after the rating, when it can no longer sway anybody: version, seeds as they were shown, and where the reward models saw the best picture.
function reveal(facts) {
  const { words, favourite } = last;
  const ranks = Object.entries(facts.scores).map(([reward, scores]) => [reward, rank(scores, favourite === null ? -1 : last.order[favourite])]);
  const seeds = last.order.map((position) => facts.seeds[position]).join(' ');
  say('.last', [words, `v${facts.version}`, `seeds ${seeds}`, ...ranks.filter(([, n]) => n).map(([reward, n]) => `${reward}: your best is its ${ordinal(n)}`)].join(' · '));
  last = null;
}

function rank(scores, position) {
  const own = scores[position] ?? null;
  return own === null ? 0 : 1 + scores.filter((score) => score !== null && score > own).length;
}

function undo() {
  if (!leaving && given.length) { const shown = given[given.length - 1]; give(shown, undefined); turnTo(shown); tell(); return; }
  if (!leaving && best !== null) { clearMarks(); tell(); return; }
  if (leaving) { clearTimeout(leaving); leaving = 0; }
  const group = history.pop();
  storage(() => sessionStorage.setItem(keyOfRun('history'), JSON.stringify(history)));
  if (!group) { send({ undo: true }); return; }
  seen.delete(group.id);
  bringBack(group);
  if (!guest) post({ uid: newId(), gid: group.id, kind: 'undo', order: [], at: Date.now() });
}

function bringBack(group, words = 'Taken back') {
  clearTimeout(leaving);
  leaving = 0;
  if (current?.id === group.id) return;
  queue = [...(current && current !== example ? [current] : []), ...queue.filter((other) => other.id !== group.id)];
  current = loaded(group);
  last = null;
  say('.last', words);
  put();
}

function switchStars() {
  if (leaving) next();
  starMode = !starMode;
  storage((s) => s.setItem(MODE_KEPT, starMode ? 'on' : 'off'));
  clearMarks();
  tell();
}

const ACTS = {
  enter,
  undo,
  tie: () => commit('tie', {}, 'tie'),
  good: () => commit('good', {}, 'all good'),
  bad: () => commit('bad', {}, 'all bad'),
  skip: () => commit('skip', {}, 'skipped'),
  stars: switchStars,
  sheet: openSheet,
};

// --- words -------------------------------------------------------------------------------------------------------------------------------

function tell() {
  say('.hint', hint());
  say('.enter', starMode || given.length ? 'Done' : 'Best only');
  find('[data-act=enter]').classList.toggle('strong', !leaving && (best !== null || given.length > 0));
  find('[data-act=stars]').setAttribute('aria-pressed', String(starMode));
  find('.lh-board').toggleAttribute('data-over', demoOver());
  find('.lh-board').dataset.mode = starMode ? 'stars' : 'best';
  cards.forEach((card, shown) => {
    const its = starMode && current !== null && shown === turn;
    card.toggleAttribute('data-turn', its);
    picks[shown].setAttribute('aria-current', String(its));
  });
  const unsent = guest ? 0 : outbox.length;
  const waited = current || leaving || guest ? '' : `waiting for ${Math.round((performance.now() - shownAt) / 1000)} s`;
  say('.ahead', [unsent > 1 ? `${unsent} to send` : '', queue.length ? `${queue.length} more ready` : waited].filter(Boolean).join(' · '));
}

function hint() {
  if (leaving) return '\u00a0';
  if (!current) return waiting();
  const byKeys = keys.on && !TOUCH;
  const [tap, Tap] = TOUCH ? ['tap', 'Tap'] : ['click', 'Click'];
  if (starMode && byKeys) return `Picture ${turn + 1} of ${order.length}: press 1 to 5 for its stars, 0 for none.${given.length ? ' Backspace takes the last back.' : ''}`;
  if (given.length) return byKeys ? 'Give the others stars too, or press Enter to keep only these.' : `Give the others stars too, or ${tap} Done.`;
  if (starMode) return `Give each picture its stars, or some and ${tap} Done.`;
  if (best !== null) return byKeys ? 'And the worst? Press its number, or Enter for best only.' : `And the worst? ${Tap} it, or ${tap} Best only.`;
  return byKeys ? `Which is the best? Press 1 to ${order.length}, or click. Or give stars.` : `Which is the best? ${Tap} it. Or give stars.`;
}

const cutOff = () => run !== null && unanswered > 0 && performance.now() - unanswered > SILENCE;

const demoOver = () => guest && !current && seen.size > 0;

const loading = () => Boolean(status) && /^loading/.test(status.worker || '');

function waiting() {
  if (demoOver()) {
    const member = stranger ? `You are signed in as ${stranger}, who is not on this run's list: its owner can add the name.` : 'Sign in to teach this model.';
    return `That was the demo; nothing of it was stored. ${member}`;
  }
  if (cutOff()) return 'No answer from the server. The next pictures come once there is one.';
  const worker = String(status?.worker || '');
  if (status?.last_error && !status.ready) return `No pictures are ready. ${status.last_error}`;
  if (!status || /start|load/i.test(worker)) return `The model is loading${worker.split(',').slice(1).map((part) => ` (part${part})`).join('')}. The first pictures appear here in a moment.`;
  const seconds = status.seconds_per_group;
  return seconds ? `The next pictures are being drawn, about ${Math.max(1, Math.round(seconds))} s.` : 'The next pictures are being drawn.';
}

function notice(words) {
  say('.notice', words);
  show('.notice', words !== '');
  said = performance.now();
  reconnecting = false;
}

function answerWish(value) {
  notice(value.error || `"${value.asked}" is drawn next.`);
  if (!value.error) { find('.wish').value = ''; send(); }
}

// --- keys, mouse, clock ------------------------------------------------------------------------------------------------------------------

function onKey(event) {
  if (!element.isConnected) { document.removeEventListener('keydown', onKey); return; }
  if (sheet.open) { sheetKey(event); return; }
  if (!visible() || event.repeat || event.isComposing || event.altKey || typing(event.target)) return;
  const act = zoomed === null ? actOf(event) : zoomActOf(event);
  if (act) { event.preventDefault(); act(); }
}

document.addEventListener('keydown', onKey);
element.addEventListener('mousedown', (event) => { if (event.target.closest('.lh-cards, .lh-actions')) event.preventDefault(); });  // Enter stays ours after a click
cards.forEach((card, shown) => {
  picks[shown].addEventListener('click', () => choose(shown));
  picks[shown].addEventListener('focus', () => { if (starMode && turn !== shown && shown < order.length) { turn = shown; tell(); } });
  picks[shown].tabIndex = shown ? -1 : 0;
  card.querySelectorAll('.stars button').forEach((button, i) => { button.tabIndex = i ? -1 : 0; button.addEventListener('click', () => star(shown, i + 1)); });
});
findAll('[data-act]').forEach((button) => button.addEventListener('click', () => ACTS[button.dataset.act]()));
find('.unfocused button').addEventListener('click', () => { window.focus(); look(); });
find('.lh-ask').addEventListener('submit', (event) => {
  event.preventDefault();
  const prompt = find('.wish').value.trim();
  if (!prompt) { notice('Draw needs a prompt: type what is to be drawn.'); return; }
  notice('');
  trigger('ask', { prompt });
  find('.wish').blur();
});

function look() {
  show('.unfocused', !document.hasFocus());
}

function onStatus(event) {
  if (!element.isConnected) { window.removeEventListener('loophil:status', onStatus); return; }
  status = event.detail;
  if (run !== null && status.run !== run) { location.reload(); return; }
  show('.unsaid', status.updates === 0 && status.no_signal > 2);
  if (run !== null && !current && !leaving && loading() && performance.now() - shownAt > PATIENCE) practise();
  if (!current) tell();
}

// Another tab of the page sends a rated group here, to be rated anew.
function onAgain(event) {
  if (!element.isConnected) { window.removeEventListener('loophil:again', onAgain); return; }
  seen.delete(event.detail.id);
  bringBack(event.detail, 'Rated before. What you choose now counts instead.');
}

// Somebody deleted what they rated: what is on its way would file it again.
function onForgotten() {
  if (!element.isConnected) { window.removeEventListener('loophil:forgotten', onForgotten); return; }
  for (const act of outbox) storage((s) => s.removeItem(keyOfRun(`act.${act.uid}`)));
  outbox = [];
  history = [];
  storage(() => sessionStorage.removeItem(keyOfRun('history')));
  tell();
}

function tick() {
  if (!element.isConnected) { clearInterval(clock); return; }
  const now = performance.now();
  look();
  if (visible() && !guest) channel?.postMessage(tab);
  show('.twice', !guest && [...others.values()].some((heard) => now - heard < SEEN_TAB));
  if (said && now - said > 12000) { notice(''); said = 0; }
  if (!guest && outbox.length && cutOff()) { notice(`Reconnecting. ${count(outbox.length, 'rating')} kept in this browser.`); reconnecting = true; }
  if (!current) tell();
  const since = now - lastSent;
  if (outbox.length && since > RESEND) send();
  else if (visible() && !document.hidden && (since > 15000 || (since > 1200 && !current) || (since > RESEND && queue.length < 2))) send();
}

const clock = setInterval(tick, 1500);
window.addEventListener('loophil:status', onStatus);
window.addEventListener('loophil:again', onAgain);
window.addEventListener('loophil:forgotten', onForgotten);
window.addEventListener('focus', look);
window.addEventListener('blur', look);
watch('value', () => absorb(props.value || {}));
rater = browserName();
tab = storage(() => sessionStorage.getItem('loophil.tab')) || newId();
storage(() => sessionStorage.setItem('loophil.tab', tab));
put();
send({ hello: true });
