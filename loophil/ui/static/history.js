// What was rated and can be rated again, ratings as files, and all versions with a way back.
const rater = browserName();
const KINDS = { best: 'best and worst', stars: 'stars', tie: 'tie', good: 'all good', bad: 'all bad', skip: 'skipped' };
let status = null;
let shownRatings = -1;
let shownVersion = -1;
let oldest = null;

function look(before = null) {
  const version = find('.version').value;
  trigger('look', { rater, who: personName(), kind: find('.kind').value, version: version === '' ? null : Number(version), mine: find('.mine').checked, before });
}

function taught({ kind, taught: versions }) {
  if (!versions.length) return kind === 'skip' ? '' : 'not learned from yet';
  const [first, last] = [versions[0], versions[versions.length - 1]];
  return versions.length > 2 ? `taught ${versions.length} versions, v${first} to v${last}` : `taught ${versions.map((n) => `v${n}`).join(' and ')}`;
}

function entry(row, now) {
  const thumbs = make('div', 'lh-thumbs');
  row.pictures.forEach((src, i) => {
    const tile = make('figure', 'lh-tile');
    const frame = make('span', 'frame');
    frame.append(picture(src, `image ${i + 1}`));
    const n = row.stars[i];
    const stars = make('figcaption', '', n === null ? '–' : '★'.repeat(Math.round(n)));
    stars.setAttribute('aria-label', n === null ? 'not rated' : count(n, 'star'));
    tile.append(frame, stars);
    thumbs.append(tile);
  });
  const whose = row.mine ? 'by you' : row.rater && `by ${row.rater.slice(0, 12)}`;
  const facts = [KINDS[row.kind], whose, `drawn by ${versionName(row.version)}`, age(now - row.created), taught(row)].filter(Boolean).join(' · ');
  const text = make('div', 'lh-said');
  text.append(make('p', '', row.prompt), make('p', 'lh-sub', facts));
  const item = make('li', 'lh-entry');
  item.append(thumbs, text);
  if (row.mine) {
    const button = make('button', 'lh-button', 'Rate again');
    button.type = 'button';
    button.addEventListener('click', () => trigger('group', { group: row.group }));
    item.append(button);
  }
  return item;
}

function paintEntries(value) {
  const items = value.entries.map((row) => entry(row, value.now));
  if (value.before === null) find('.lh-entries').replaceChildren(...items); else find('.lh-entries').append(...items);
  if (value.entries.length) oldest = value.entries[value.entries.length - 1].act;
  show('.older', value.more);
  show('.none', find('.lh-entries').children.length === 0);
}

function nameOf(version) {
  if (version.number === 0 || !status?.may_teach) return version.name;
  const input = make('input');
  input.type = 'text';
  input.maxLength = 80;
  input.value = version.name;
  input.placeholder = 'name it';
  input.setAttribute('aria-label', `name of ${versionName(version.number)}`);
  input.addEventListener('change', () => { trigger('rename', { number: version.number, name: input.value.trim() }); input.blur(); });
  return input;
}

function useOf(version, current) {
  if (version.number === current) return make('span', 'lh-tag', 'in use');
  if (!status?.may_teach) return '';
  const button = make('button', 'lh-button', 'Use this version');
  button.type = 'button';
  pressedTwice(button, 'Press again to go back', () => trigger('go_back', { number: version.number }));
  return button;
}

function paintVersions({ versions, current, now }) {
  if (find('tbody').contains(document.activeElement) && document.activeElement.matches('input')) return;  // somebody types a name
  find('tbody').replaceChildren(...versions.map((version) => {
    const from = version.kind === 'rollback' ? `back to ${versionName(version.parent)}` : version.parent === null ? '' : versionName(version.parent);
    const cells = [versionName(version.number), nameOf(version), age(now - version.created), from, String(version.ratings), useOf(version, current)];
    const row = make('tr');
    row.append(...cells.map((content) => { const cell = make('td'); cell.append(content); return cell; }));
    return row;
  }));
  const chosen = find('.version').value;
  const choices = [['', 'any version'], ...versions.map((version) => [version.number, versionName(version.number, version.name)])];
  find('.version').replaceChildren(...choices.map(([value, words]) => { const option = make('option', '', words); option.value = value; return option; }));
  find('.version').value = chosen;
}

// In parts, because the server takes no large bodies; the answer to one asks for the next.
const PART = 600000;  // bytes
function bring(part, key) {
  const [file] = find('.bring').files;
  if (!file) return;
  const reader = new FileReader();
  const end = (part + 1) * PART;
  reader.addEventListener('load', () => trigger('bring', { file: file.name, key, part, last: end >= file.size, data: reader.result.split(',')[1] || '' }));
  reader.addEventListener('error', () => done('The file could not be read.'));
  reader.readAsDataURL(file.slice(part * PART, end));
  done(`Sending ${file.name}: ${Math.floor((100 * part * PART) / Math.max(file.size, 1))}%`);
}

function done(words) {
  say('.done', words);
  show('.done', true);
}

watch('value', () => {
  const value = props.value || {};
  say('.error', value.error || '');
  show('.error', Boolean(value.error));
  if (value.versions) { shownVersion = value.current; paintVersions(value); }
  if (value.entries) paintEntries(value);
  if (value.again) { window.dispatchEvent(new CustomEvent('loophil:again', { detail: value.again })); openTab('Rate'); }
  if (value.url) {
    const link = find('.file');
    link.href = value.url;
    link.download = value.file;
    link.click();
    done(`${value.file}, ${Math.ceil(value.bytes / 1000)} kB`);
  }
  if (value.part !== undefined) bring(value.part, value.key);
  if (value.imported !== undefined) {
    find('.bring').value = '';
    const rest = value.passed_over ? ` (passed over: ${value.passed_over})` : '';
    done(`${count(value.imported, 'group')} imported${rest}. They teach your taste, not the LoRA.`);
  }
  if (value.error) { find('.bring').value = ''; show('.done', false); }
  if (value.forgotten !== undefined) {
    window.dispatchEvent(new Event('loophil:forgotten'));
    done(`${count(value.forgotten, 'rated group')} deleted for ever. The LoRA keeps what it learned from them: go back to an older version, or start a new run, to be rid of that too.`);
    look();
  }
});

function onStatus(event) {
  if (!element.isConnected) { window.removeEventListener('loophil:status', onStatus); return; }
  status = event.detail;
  show('.forget', status.may_teach);
  show('.bringing', status.is_owner);
  if (visible() && (status.ratings !== shownRatings || status.policy_version !== shownVersion)) { shownRatings = status.ratings; look(); }
}

for (const selector of ['.kind', '.version', '.mine']) find(selector).addEventListener('change', () => look());
for (const form of ['.filters', '.bringing']) find(form).addEventListener('submit', (event) => event.preventDefault());
find('.bring').addEventListener('change', () => bring(0, ''));
find('.older').addEventListener('click', () => look(oldest));
for (const button of findAll('[data-take]')) button.addEventListener('click', () => trigger('take', { format: button.dataset.take }));
pressedTwice(find('.forget'), 'Press again: all that you rated', () => trigger('forget', { rater, who: personName() }));
window.addEventListener('loophil:status', onStatus);
