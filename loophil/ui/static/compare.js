// Any two versions at one seed, and the blind test. Pictures of comparisons are not stored; answers of the blind test are.
const rater = browserName();
let known = [];       // versions, newest first
let pictures = null;  // the two on show

// One request at a time: of two answers that came at once, one would be lost.
const waiting = [];
let busy = false;

function request(name, data) {
  waiting.push([name, data]);
  if (!busy) sendNext();
}

function sendNext() {
  const next = waiting.shift();
  busy = next !== undefined;
  if (busy) trigger(next[0], { rater, who: personName(), ...next[1] });
}

// --- two versions --------------------------------------------------------------------------------------------------------------------------

function options(select, choices) {
  const before = select.value;
  select.replaceChildren(...choices.map(([value, words]) => { const option = make('option', '', words); option.value = value; return option; }));
  if (choices.some(([value]) => value === before)) select.value = before;
}

function paintKnown() {
  const all = known.map(({ number, name }) => [String(number), versionName(number, name)]);
  const base = all.slice(-1);
  options(find('.left'), [...base, ...all.slice(0, -1)]);
  options(find('.right'), [['', 'in use'], ...all]);
}

function draw() {
  show('.error', false);
  find('.shown').classList.add('busy');
  const right = find('.right').value === '' ? known[0]?.number || 0 : Number(find('.right').value);
  const strength = Number(find('.strength').value);
  request('draw', { prompt: find('.prompt').value.trim(), seed: find('.seed').valueAsNumber, strength, left: Number(find('.left').value), right });
}

function paintPair(value) {
  const strength = value.strength === 1 ? '' : ` at strength ${value.strength.toFixed(2)}`;
  const words = value.versions.map((number) => versionName(number, known.find((v) => v.number === number)?.name) + (number ? strength : ''));
  pictures = value.pictures.map((src, i) => [picture(src, `drawn by ${words[i]}`), words[i]]);
  place(false);
  find('.swap').disabled = false;
}

function place(swapped) {
  if (!pictures) return;
  const [one, two] = swapped ? [pictures[1], pictures[0]] : pictures;
  find('.one').replaceChildren(one[0]);
  find('.two').replaceChildren(two[0]);
  say('.one-name', one[1]);
  say('.two-name', two[1]);
}

// --- the blind test ------------------------------------------------------------------------------------------------------------------------

const PAIRS = 20;
let running = false;
let answered = 0;
let question = null;  // on show
let ready = null;     // the next one
let version = null;   // all pairs of a test are of one, though others come meanwhile
let shownAt = 0;

function start() {
  running = true;
  answered = 0;
  [question, ready, version] = [null, null, null];
  say('.told', '\u00a0');
  show('.lh-trial', true);
  show('.start', false);
  request('ask');
  paintQuestion();
  find('.lh-trial').scrollIntoView({ block: 'nearest' });
}

function stop() {
  running = false;
  show('.lh-trial', false);
  show('.start', true);
}

function paintQuestion() {
  say('.which', question ? `Pair ${answered + 1} of ${PAIRS}` : 'The next pair is being drawn');
  say('.asked', question?.prompt || '\u00a0');
  findAll('.lh-side .frame').forEach((frame, i) => frame.replaceChildren(...(question ? [question.images[i]] : [])));
  findAll('.lh-trial [data-choice]').forEach((button) => { button.disabled = !question; });
  shownAt = performance.now();
}

function advance() {
  [question, ready] = [ready, null];
  if (question && answered + 1 < PAIRS) request('ask', { version });
  paintQuestion();
}

function choose(choice) {
  if (!question) return;
  request('answer', { question: question.id, choice, ms: Math.round(performance.now() - shownAt) });
  answered += 1;
  if (answered < PAIRS) advance(); else stop();
}

function tell({ choice, version, left_is_tuned: left }) {
  const tie = `tuned was the ${left ? 'left' : 'right'} one`;
  say('.told', `The last pair: ${choice === 'tie' ? tie : `you chose ${choice === 'tuned' ? `tuned, v${version}` : 'the base'}`}.`);
}

const KEYS = { ArrowLeft: 'left', ArrowRight: 'right', ArrowDown: 'tie', 1: 'left', 2: 'right' };

function onKey(event) {
  if (!element.isConnected) { document.removeEventListener('keydown', onKey); return; }
  const typed = event.target instanceof Element && event.target.matches('input:not([type=range]), textarea, select');
  if (!visible() || typed || event.ctrlKey || event.metaKey || event.altKey) return;
  const choice = running && KEYS[event.key];
  const act = event.key.toLowerCase() === 'c' ? () => place(true) : choice ? () => choose(choice) : null;
  if (!act) return;
  event.preventDefault();
  if (!event.repeat) act();
}

function onKeyUp(event) {
  if (!element.isConnected) { document.removeEventListener('keyup', onKeyUp); return; }
  if (event.key.toLowerCase() === 'c') place(false);
}

// --- answers, keys, mouse ------------------------------------------------------------------------------------------------------------------

watch('value', () => {
  const value = props.value || {};
  if (!value.stamp) return;
  find('.shown').classList.remove('busy');
  say('.error', value.error || '');
  show('.error', Boolean(value.error));
  if (value.error && running) stop();
  if (value.known) {
    known = value.known;
    paintKnown();
    find('.lh-verdicts').replaceChildren(...value.verdicts.map((verdict) => make('li', '', verdictWords(verdict))));
    show('.lh-verdicts', value.verdicts.length > 0);
  }
  if (value.versions) paintPair(value);
  if (value.question && running) {
    ready = { ...value.question, images: value.question.pictures.map((src, i) => picture(src, ['left', 'right'][i])) };
    version = value.question.version;
    if (!question) advance();
  }
  if (value.answered) tell(value);
  sendNext();
});

function onStatus(event) {
  if (!element.isConnected) { window.removeEventListener('loophil:status', onStatus); return; }
  if (visible() && !busy && event.detail.policy_version !== known[0]?.number) request('versions');
}

document.addEventListener('keydown', onKey);
document.addEventListener('keyup', onKeyUp);
window.addEventListener('loophil:status', onStatus);
window.addEventListener('blur', () => place(false));
find('.lh-ask').addEventListener('submit', (event) => { event.preventDefault(); draw(); });
find('.strength').addEventListener('input', () => say('.strong-as', Number(find('.strength').value).toFixed(2)));
find('.dice').addEventListener('click', () => {
  find('.seed').value = Math.floor(Math.random() * 1e6);
  if (find('.lh-ask').reportValidity()) draw();
});
find('.swap').addEventListener('pointerdown', () => place(true));
for (const end of ['pointerup', 'pointercancel', 'pointerleave']) find('.swap').addEventListener(end, () => place(false));
find('.start').addEventListener('click', start);
find('.start').disabled = false;
find('.stop').addEventListener('click', stop);
findAll('.lh-trial [data-choice]').forEach((button) => button.addEventListener('click', () => choose(button.dataset.choice)));
request('versions');
