// The run picker: which runs there are, and the ways to another. Everybody who looks at the page gets the other run; the page begins anew by itself.
let known = null;
let seen = null;  // the run that is open

function act(name, data) {
  show('.error', false);
  show('.opening', true);
  find('.lh-settings').inert = true;
  trigger(name, data);
}

function button(words, press, armed) {
  const node = make('button', 'lh-link', words);
  node.type = 'button';
  if (armed) pressedTwice(node, armed, press); else node.addEventListener('click', press);
  return node;
}

function row(run) {
  const name = make('input');
  Object.assign(name, { type: 'text', value: run.name, maxLength: 64, hidden: true });
  name.setAttribute('aria-label', `new name of ${run.name}`);
  const typing = (on) => { name.hidden = !on; rename.hidden = on; };
  const rename = button('Rename', () => { typing(true); name.focus(); });
  name.addEventListener('blur', () => typing(false));
  name.addEventListener('change', () => { typing(false); if (name.value.trim() !== run.name) act('rename', { run: run.name, to: name.value.trim() }); });
  const line = make('p');
  if (run.name === known.current) line.append(make('span', 'lh-tag', 'open'), rename, name);
  else line.append(button('Open', () => act('open', { run: run.name })), rename, button('Delete', () => trigger('remove', { run: run.name }), 'Press again: for ever'), name);
  const text = make('div');
  text.append(make('b', '', run.name), make('span', run.name === known.current ? 'so-far' : '', facts(run.model, run.version, run.ratings)));
  const item = make('li');
  item.append(text, line);
  return item;
}

const facts = (model, version, ratings) => `${model} · ${versionName(version)} · ${ratings} rated`;

const own = () => findAll('.typed').forEach((field) => { field.hidden = find('.list').value !== ''; });

function paint(value) {
  known = value;
  show('.lh-settings', value.may_teach);
  if (!value.may_teach) return;
  if (!find('.lh-runs input:not([hidden])')) find('.lh-runs').replaceChildren(...value.runs.map(row));  // else somebody types a name
  const choices = [...value.lists.map((list) => [list, list]), ['', 'my own']];
  find('.list').replaceChildren(...choices.map(([list, words]) => { const option = make('option', '', words); option.value = list; return option; }));
  find('.list').value = value.list;
  find('.k').value = value.k;
  find('.size').value = value.size;
  find('.model').value = value.model;
  find('.rewards').value = value.rewards;
  own();
}

function wanted() {
  const list = find('.list').value;
  return { model: find('.model').value.trim(), list, prompts: list ? '' : find('.prompts').value, k: find('.k').valueAsNumber || null, size: find('.size').valueAsNumber || 0, rewards: find('.rewards').value.trim() || {} };
}

watch('value', () => {
  const value = props.value || {};
  find('.lh-settings').inert = false;
  show('.opening', false);
  say('.error', value.error || '');
  show('.error', Boolean(value.error));
  if (value.runs) paint(value);
});

function onStatus(event) {
  if (!element.isConnected) { window.removeEventListener('loophil:status', onStatus); return; }
  const { run, policy_version: version, ratings } = event.detail;
  if (run !== seen) { seen = run; trigger('look'); }
  if (run === known?.current && find('.so-far')) say('.so-far', facts(known.runs.find((each) => each.name === run).model, version, ratings));
}

find('.list').addEventListener('change', own);
find('.file').addEventListener('change', async () => { const [file] = find('.file').files; if (file) find('.prompts').value = await file.text(); });
find('.begin').addEventListener('click', () => act('begin', { run: find('.run').value.trim(), ...wanted() }));
pressedTwice(find('.change'), 'Press again: opens it anew', () => act('alter', wanted()));
window.addEventListener('loophil:status', onStatus);
