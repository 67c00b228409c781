// The settings at the side: what may change while the run is open is sent at once; the rest can be read.
let live = null;

function weight(name, label, value, send) {
  const box = make('label');
  const output = make('output', '', value.toFixed(2));
  const words = make('span', '', `${label} `);
  words.append(output);
  const range = make('input');
  Object.assign(range, { type: 'range', min: 0, max: 2, step: 0.05, value });
  range.setAttribute('aria-label', `weight of ${label}`);
  range.addEventListener('input', () => { output.textContent = Number(range.value).toFixed(2); });
  range.addEventListener('change', () => send(Number(range.value)));
  box.append(words, range);
  return box;
}

const change = (changes) => trigger('turn', { changes });

function paint(value) {
  live = value.live;
  find('.lh-settings').inert = !value.may_teach;
  findAll('.bold input').forEach((input) => { input.checked = input.value === value.boldness; });
  const rewards = Object.entries(live.rewards).map(([name, w]) => weight(name, name, w, (now) => change({ rewards: { ...live.rewards, [name]: now } })));
  find('.weights').replaceChildren(weight('people', 'people', live['learn.human_weight'], (now) => change({ 'learn.human_weight': now })), ...rewards);
  if (document.activeElement !== find('.negative')) find('.negative').value = live['draw.negative_prompt'];
  find('.guidance').value = live['draw.guidance_scale'];
  say('.guided', live['draw.guidance_scale'].toFixed(1));
  find('.all').replaceChildren(...value.rows.flatMap(([flag, now, what]) => {
    const name = make('dt', '', flag);
    name.title = what;
    return [name, make('dd', '', now === '' ? '–' : now)];
  }));
}

watch('value', () => {
  const value = props.value || {};
  say('.error', value.error || '');
  show('.error', Boolean(value.error));
  if (value.error) trigger('look');
  if (value.live) paint(value);
});

findAll('.bold input').forEach((input) => input.addEventListener('change', () => trigger('turn', { boldness: input.value })));
find('.negative').addEventListener('change', () => change({ 'draw.negative_prompt': find('.negative').value.trim() }));
find('.guidance').addEventListener('input', () => say('.guided', Number(find('.guidance').value).toFixed(1)));
find('.guidance').addEventListener('change', () => change({ 'draw.guidance_scale': Number(find('.guidance').value) }));
find('.who').value = personName();
find('.who').addEventListener('change', () => { storage((s) => s.setItem('loophil.name', find('.who').value.trim())); });
trigger('look');
